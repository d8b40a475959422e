"""Matching: what fits, what the variables stand for, and what a mismatch says."""

from typing import Any

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import SmeltError, TypeRuleError
from smelt.ir.node import Node, Var
from smelt.ir.ops import add, amax, attention, cast, concat, exp, linear, mul, neg, permute, scalar, softmax, sub
from smelt.rewrites.instance import instantiate, variables
from smelt.rewrites.pattern import ANY, Match, constant, match, matches, near, rest

F32 = torch.float32


def tensor(name: str, *shape: int, dtype: torch.dtype = F32) -> Node:
    return ops.input(name=name, shape=shape, dtype=dtype)


X, Y = tensor("x", 2, 3), tensor("y", 2, 3)
x, y, c = Var("x"), Var("y"), Var("c")


def bindings(pattern: Node, node: Node) -> dict[str, Any]:
    found = match(pattern, node)
    assert isinstance(found, Match), str(found)
    return dict(found.bindings)


def reason(pattern: Node, node: Node) -> str:
    found = match(pattern, node)
    assert not isinstance(found, Match)
    return str(found)


def test_a_variable_stands_for_any_node() -> None:
    assert bindings(sub(x, neg(y)), sub(X, neg(Y))) == {"x": X, "y": Y}


def test_a_variable_used_twice_stands_for_one_node() -> None:
    assert bindings(sub(x, x), sub(X, X)) == {"x": X}
    said = "x stands for x : f32[2, 3] and cannot be y : f32[2, 3] too"
    assert reason(sub(x, x), sub(X, Y)) == f"{said}, at y : f32[2, 3]"


def test_anonymous_variables_are_not_bound() -> None:
    assert bindings(sub(ANY, ANY), sub(X, Y)) == {}


def test_operands_of_commutative_operators_match_in_either_order() -> None:
    assert bindings(add(exp(x), y), add(X, exp(Y))) == {"x": Y, "y": X}
    nested = mul(add(x, exp(y)), neg(x))
    assert bindings(nested, mul(neg(Y), add(exp(X), Y))) == {"x": Y, "y": X}


def test_operands_of_other_operators_do_not() -> None:
    assert reason(sub(exp(x), y), sub(X, exp(Y))) == "expected exp, found input, at x : f32[2, 3]"


def test_every_way_is_found_the_one_written_first() -> None:
    assert list(matches(add(x, y), add(X, Y))) == [{"x": X, "y": Y}, {"x": Y, "y": X}]
    assert list(matches(add(x, y), add(X, X))) == [{"x": X, "y": X}]


def test_attributes_are_bound_compared_and_normalised() -> None:
    node = softmax(X, dim=1)
    assert bindings(softmax(x, dim=Var("d")), node) == {"x": X, "d": 1}
    assert bindings(softmax(x, dim=-1), node) == {"x": X}
    assert reason(softmax(x, dim=0), node) == "dim is 1, not 0, at softmax(x) : f32[2, 3]"
    assert reason(softmax(x, dim=7), node).startswith("dim is 1, not 7")


def test_variables_inside_of_tuples_of_attributes() -> None:
    node = amax(X, dims=(1,), keepdim=True)
    assert bindings(amax(x, dims=(Var("d"),), keepdim=True), node) == {"x": X, "d": 1}
    assert not match(amax(x, dims=(Var("d"),), keepdim=True), amax(X, dims=(0, 1), keepdim=True))
    assert bindings(amax(x, dims=(-1,), keepdim=True), node) == {"x": X}


def test_an_attribute_variable_used_twice_stands_for_one_value() -> None:
    pattern = permute(permute(x, dims=Var("p")), dims=Var("p"))
    assert match(pattern, permute(permute(X, dims=(1, 0)), dims=(1, 0)))
    z = tensor("z", 2, 3, 4)
    assert not match(pattern, permute(permute(z, dims=(1, 0, 2)), dims=(0, 2, 1)))


def test_the_operands_that_are_left() -> None:
    w, b = tensor("w", 4, 3), tensor("b", 4)
    pattern = linear(x, Var("w"), rest("bias"))
    assert bindings(pattern, linear(X, w)) == {"x": X, "w": w, "bias": ()}
    assert bindings(pattern, linear(X, w, b)) == {"x": X, "w": w, "bias": (b,)}
    assert not match(linear(x, Var("w")), linear(X, w, b))
    assert "expected at least 2 operands" in reason(concat(x, y, rest("z"), dim=0), concat(X, dim=0))


def test_scalar_constants_of_any_dtype_and_shape() -> None:
    pattern = mul(x, constant(2))
    assert bindings(pattern, mul(scalar(2.0, F32), X)) == {"x": X}
    assert match(pattern, mul(X, ops.full(shape=(1, 3), value=2.0, dtype=F32)))
    integers = tensor("i", 4, dtype=torch.int64)
    assert match(pattern, mul(integers, scalar(2, torch.int64)))
    assert reason(pattern, mul(X, scalar(3.0, F32))) == "value is 3.0, not 2, at 3.0 : f32[]"


def test_a_constant_that_widens_the_result_is_no_scalar() -> None:
    wide = mul(X, ops.full(shape=(5, 2, 3), value=2.0, dtype=F32))
    assert reason(mul(x, constant(2)), wide) == "a constant widens the result, at mul(x, 2.0) : f32[5, 2, 3]"


def test_zeros_have_signs() -> None:
    assert match(add(x, constant(0.0)), add(X, scalar(0.0, F32)))
    assert not match(add(x, constant(0.0)), add(X, scalar(-0.0, F32)))


def test_constants_bound_and_near() -> None:
    node = mul(X, scalar(0.70710678, F32))
    assert bindings(mul(x, constant(c)), node) == {"x": X, "c": 0.70710678}
    assert match(mul(x, constant(near(0.7071067811865476))), node)
    assert reason(mul(x, constant(near(0.5))), node) == "value is 0.70710678, not near 0.5, at 0.70710678 : f32[]"


def test_the_furthest_mismatch_is_reported() -> None:
    pattern = mul(add(exp(x), y), neg(y))
    assert reason(pattern, mul(add(exp(X), Y), exp(Y))) == "expected neg, found exp, at exp(y) : f32[2, 3]"


def test_casts_of_half_types_are_passed_over_on_request() -> None:
    h = tensor("h", 2, 3, dtype=torch.bfloat16)
    wide = cast(h, dtype=F32)
    node = mul(h, cast(exp(wide), dtype=torch.bfloat16))
    pattern = mul(x, exp(x))
    assert not match(pattern, node)
    assert list(matches(pattern, node, through_casts=True)) == [{"x": h}]
    to_double = mul(X, cast(exp(cast(X, dtype=torch.float64)), dtype=F32))
    assert list(matches(pattern, to_double, through_casts=True)) == []


def test_a_pattern_knows_its_variables() -> None:
    pattern = attention(x, y, Var("v"), rest("m"), causal=Var("causal"), scale=1.0)
    assert list(variables(pattern)) == ["x", "y", "v", "m", "causal"]
    with pytest.raises(SmeltError, match="x is used as an operand and as something else"):
        variables(softmax(x, dim=x))


def test_a_pattern_becomes_a_node() -> None:
    pattern = mul(softmax(x, dim=Var("d")), constant(near(0.5)))
    node = instantiate(pattern, {"x": X, "d": -1})
    assert node is mul(softmax(X, dim=1), scalar(0.5, F32))
    assert match(pattern, node)
    with pytest.raises(TypeRuleError, match="leaves an attribute open"):
        instantiate(softmax(x, dim=ANY), {"x": X})
    with pytest.raises(TypeRuleError, match="dtype of a constant follows from nothing"):
        instantiate(exp(constant(1)), {})


def test_a_match_does_not_depend_on_the_depth_of_the_graph() -> None:
    deep = X
    for _ in range(20_000):
        deep = neg(exp(deep))
    assert bindings(neg(exp(x)), deep)["x"].op is ops.neg
