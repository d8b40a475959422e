"""Lowering: the program of a region, evaluated by its interpreter, means what the region means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smelt.codegen.program import Checked, Combiner, Guard, Program, Skeleton, can_fail, postorder, program_roots
from smelt.ir import ops
from smelt.ir.errors import UnsupportedError
from smelt.ir.node import Node
from smelt.ir.types import symbol

from .cases import Case, Sizes, operand
from .regions import FILLED, I64, SIZES, B, S, all_regions, one, x, y, z

REGIONS = all_regions()


@pytest.mark.parametrize("name", REGIONS)
def test_program_means_what_the_region_means(name: str) -> None:
    case = REGIONS[name]
    for sizes in case.sizes:
        case.check_program(sizes)


def guards(program: Program) -> int:
    return sum(isinstance(e, Guard) for e in postorder(program_roots(program)))


@pytest.mark.parametrize(
    ("name", "stores"),
    [
        ("concat", 2),
        ("concat last", 3),
        ("concat of concat", 3),
        ("concat in a sum", 2),
        ("pad by a size", 4),
        ("slice_put", 3),
        ("rope", 2),
        ("rope of heads", 2),
        ("rope and more", 2),
    ],
)
def test_what_stands_side_by_side_is_stored_piece_by_piece(name: str, stores: int) -> None:
    program = REGIONS[name].program()
    assert (len(program.stores), guards(program)) == (stores, 0)


def test_halves_of_equal_size_share_their_loops() -> None:
    assert len({store.axes for store in REGIONS["rope"].program().stores}) == 1


def test_many_pieces_are_one_nest_with_guards() -> None:
    program = one(lambda n: ops.concat(*[ops.neg(n)] * 20, dim=1), (B, 3)).program()
    assert len(program.stores) == 1
    assert guards(program) == 19


def test_heads_are_read_without_divisions() -> None:
    for name in ("split heads", "merge heads", "rope of heads"):
        text = str(REGIONS[name].program())
        assert "floor" not in text
        assert "Mod" not in text


@pytest.mark.parametrize("name", ["embedding of one row", "embedding", "index by two"])
def test_indices_from_data_are_checked(name: str) -> None:
    program = REGIONS[name].program()
    assert can_fail(program)
    assert any(isinstance(e, Checked) for e in postorder(program_roots(program)))


def test_index_out_of_range_is_an_error() -> None:
    case = REGIONS["embedding"]
    for bad in (7, -1, 2**40):
        with pytest.raises(IndexError):
            case.interpret(case.program(), [torch.randn(7, 6), torch.tensor([[0, bad]])], {"b": 1, "s": 2})


# --- rows -------------------------------------------------------------------------------------------------------------


def reductions() -> dict[str, Case]:
    found = {
        f"{op.name} {dims} {keepdim}": one(
            lambda n, op=op, dims=dims, keepdim=keepdim: op(n, dims=dims, keepdim=keepdim), (B, S, 4), FILLED
        )
        for op in (ops.sum, ops.amax, ops.mean, ops.var, ops.prod)
        for dims in ((0,), (1,), (2,), (0, 2), (1, 2), None, ())
        for keepdim in (False, True)
    }
    for dim in range(3):
        found[f"softmax {dim}"] = one(lambda n, dim=dim: ops.softmax(n, dim=dim), (B, S, 4))
        found[f"cumsum {dim}"] = one(lambda n, dim=dim: ops.cumsum(n, dim=dim), (B, S, 4))
        found[f"argmax {dim}"] = one(lambda n, dim=dim: ops.argmax(n, dim=dim, keepdim=dim == 1), (B, S, 4), FILLED)
    found["sum of nothing"] = one(lambda n: ops.sum(n, dims=(1,)), (B, S))
    found["cumsum of a number"] = one(lambda n: ops.cumsum(n, dim=0), (), [{}])
    found["softmax of a running sum"] = one(lambda n: ops.softmax(ops.cumsum(n, dim=1), dim=1), (B, S))
    return found


REDUCTIONS = reductions()


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_reduction_means_what_it_says(name: str) -> None:
    case = REDUCTIONS[name]
    for sizes in case.sizes:
        case.check_program(sizes)


def test_equal_reductions_are_one_stage() -> None:
    program = one(
        lambda n: ops.add(ops.softmax(n, dim=1), ops.exp(ops.amax(n, dims=(1,), keepdim=True))), (B, S)
    ).program()
    assert [stage.combine.kind for stage in program.stages if stage.combine] == [Combiner.MAX, Combiner.SUM]


def shifted_sum(n: Node) -> Node:
    running = ops.cumsum(n, dim=1)
    first, rest = ops.slice_(running, dim=1, start=0, stop=3), ops.slice_(running, dim=1, start=1, stop=4)
    return ops.sub(rest, first)


@pytest.mark.parametrize(
    "case",
    [
        one(lambda n: ops.add(ops.sum(n, dims=(0,)), ops.sum(n, dims=(1,))), (4, 4)),
        one(shifted_sum, (B, 4)),
        one(lambda n: ops.permute(ops.sub(n, ops.mean(n, dims=(1,), keepdim=True)), dims=(1, 0)), (B, S)),
        one(lambda n: ops.flip(ops.sum(n, dims=(1,)), dims=(0,)), (B, S)),
        Case([x(B, 4), y(4, 5)], [ops.permute(ops.matmul(x(B, 4), y(4, 5)), dims=(1, 0))]),
        Case(
            [x(9, 3), y(S, 3), z(S, dtype=I64)],
            [ops.neg(ops.index_put(x(9, 3), y(S, 3), z(S, dtype=I64), dim=0))],
        ),
        one(lambda n: ops.reshape(n, shape=(2 * (S // 2),)), (S,)),
    ],
    ids=[
        "other rows",
        "shifted scan",
        "permuted rows",
        "flipped result",
        "permuted product",
        "after a scatter",
        "halves",
    ],
)
def test_what_is_no_kernel_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedError):
        case.program()


# --- products ---------------------------------------------------------------------------------------------------------


def products() -> dict[str, Case]:
    q, k, v = (operand(i, (B, 4, S, 6)) for i in range(3))
    few = [operand(i, (B, 2, S, 6)) for i in (1, 2)]
    mask, bias = operand(3, (B, 1, S, S), torch.bool), operand(3, (S, S))
    packed = frozenset([1])
    gates, w, b, h = x(S, B, 12), operand(1, (12, 3)), operand(2, (12,)), [operand(3, (B, 3)), operand(4, (B, 3))]
    return {
        "linear": Case([x(B, S, 5), y(7, 5), z(7)], [ops.relu(ops.linear(x(B, S, 5), y(7, 5), z(7)))], SIZES),
        "packed linear": Case([x(B, 5), y(7, 5), z(7)], [ops.linear(x(B, 5), y(7, 5), z(7))], SIZES, weights=packed),
        "packed matmul": Case([x(B, 5), y(5, 7)], [ops.matmul(x(B, 5), y(5, 7))], SIZES, weights=packed),
        "batched matmul": Case([x(B, S, 5), y(B, 5, 7)], [ops.matmul(x(B, S, 5), y(B, 5, 7))], SIZES),
        "broadcast matmul": Case([x(B, 1, S, 5), y(3, 5, 7)], [ops.matmul(x(B, 1, S, 5), y(3, 5, 7))], SIZES),
        "attention": Case([q, k, v], [ops.attention(q, k, v, scale=0.5)], SIZES),
        "causal attention": Case([q, k, v, mask], [ops.attention(q, k, v, mask, causal=True, scale=0.5)], SIZES),
        "grouped attention": Case([q, *few, bias], [ops.attention(q, *few, bias, scale=0.5)], SIZES),
        "lstm": Case([gates, w, b, *h], list(ops.results(ops.recurrence(gates, w, b, *h, kind="lstm"))), SIZES),
        "gru backwards": Case(
            [x(S, B, 9), operand(1, (9, 3)), operand(2, (9,)), h[0]],
            list(
                ops.results(
                    ops.recurrence(x(S, B, 9), operand(1, (9, 3)), operand(2, (9,)), h[0], kind="gru", reverse=True)
                )
            ),
            SIZES,
        ),
    }


PRODUCTS = products()


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_means_what_it_says(name: str) -> None:
    case = PRODUCTS[name]
    for sizes in case.sizes:
        case.check_program(sizes)


def test_skeletons() -> None:
    kinds = {"packed linear": Skeleton.MATMUL, "attention": Skeleton.ATTENTION, "lstm": Skeleton.RECURRENCE}
    assert {name: PRODUCTS[name].program().skeleton for name in kinds} == kinds
    assert REGIONS["scatter"].program().skeleton is Skeleton.SCATTER
    assert REDUCTIONS["softmax 1"].program().skeleton is Skeleton.ROWS


# --- any chain of views -----------------------------------------------------------------------------------------------


def permuted(draw: Any, n: Node) -> Node:
    return ops.permute(n, dims=tuple(draw(st.permutations(range(n.tensor_type.rank)))))


def merged(draw: Any, n: Node) -> Node:
    at = draw(st.integers(0, n.tensor_type.rank - 2))
    return ops.reshape(n, shape=(*n.shape[:at], n.shape[at] * n.shape[at + 1], *n.shape[at + 2 :]))


def divided(draw: Any, n: Node) -> Node:
    known = [d for d, size in enumerate(n.shape) if isinstance(size, int) and size % 2 == 0 and size > 2]
    assume(known)
    at = draw(st.sampled_from(known))
    return ops.reshape(n, shape=(*n.shape[:at], 2, n.shape[at] // 2, *n.shape[at + 1 :]))


def cut(draw: Any, n: Node) -> Node:
    known = [d for d, size in enumerate(n.shape) if isinstance(size, int) and size > 1]
    assume(known)
    at = draw(st.sampled_from(known))
    size = n.shape[at]
    start = draw(st.integers(0, size - 1))
    return ops.slice_(n, dim=at, start=start, stop=draw(st.integers(start + 1, size)), step=draw(st.integers(1, 3)))


def turned(draw: Any, n: Node) -> Node:
    return ops.flip(n, dims=tuple(draw(st.sets(st.integers(0, n.tensor_type.rank - 1), min_size=1))))


def framed(draw: Any, n: Node) -> Node:
    widths = st.tuples(*[st.integers(0, 2)] * n.tensor_type.rank)
    return ops.pad(n, low=draw(widths), high=draw(widths), value=0.5)


def beside(draw: Any, n: Node) -> Node:
    return ops.concat(n, ops.neg(n), dim=draw(st.integers(0, n.tensor_type.rank - 1)))


def computed(draw: Any, n: Node) -> Node:
    return ops.add(n, ops.tanh(n)) if draw(st.booleans()) else ops.mul(n, ops.scalar(0.5, n.dtype))


def spread(draw: Any, n: Node) -> Node:
    return ops.expand(ops.unsqueeze(n, 0), shape=(draw(st.integers(1, 3)), *n.shape))


STEPS: list[Callable[[Any, Node], Node]] = [permuted, merged, divided, cut, turned, framed, beside, computed, spread]


@st.composite
def chains(draw: Any) -> Node:
    n = x(*draw(st.permutations([symbol("b"), symbol("s"), 4, 6])))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)):
        assume(step is not merged or n.tensor_type.rank > 1)
        assume(n.tensor_type.rank < 7)
        n = step(draw, n)
    return n


@settings(max_examples=150, deadline=None)
@given(chains(), st.integers(0, 3), st.integers(0, 4), st.booleans())
def test_any_chain_of_views(n: Node, b: int, s: int, reduce: bool) -> None:
    sizes: Sizes = {"b": b, "s": s}
    root = ops.sum(n, dims=(n.tensor_type.rank - 1,)) if reduce else n
    case = Case([_source(n)], [root])
    try:
        program = case.program()
    except UnsupportedError:
        assume(False)
    case.check_program(sizes, program)
    case.check_program(sizes, case.program(plain=True))


def _source(n: Node) -> Node:
    while n.inputs:
        n = n.inputs[0]
    return n
