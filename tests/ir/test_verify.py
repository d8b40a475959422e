"""Every check of the verifier, made to fail. Operators refuse most of this, so that nodes are forged past them."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch

from smelt.ir import ops
from smelt.ir.errors import GraphError
from smelt.ir.graph import Graph, Mutation
from smelt.ir.node import Node, OpDef, Var, _intern
from smelt.ir.types import UNKNOWN, SymbolRange, TensorType, Type, symbol
from smelt.ir.verify import verify

F32 = torch.float32
S = symbol("s")
X = ops.input(name="x", shape=(4,), dtype=F32)
W = ops.weight(name="w", shape=(4,), dtype=F32)


def forge(op: OpDef, inputs: tuple[Node, ...], type_: Type, **attrs: Any) -> Node:
    """A node whose operator was not asked."""
    return _intern(op, inputs, {**op.attrs, **attrs}, type_)


def tensor(*shape: Any, dtype: torch.dtype = F32) -> TensorType:
    return TensorType(shape, dtype)


def refused(graph: Graph, message: str) -> None:
    with pytest.raises(GraphError) as error:
        verify(graph)
    assert message in str(error.value)


def fuse(region: Graph, *operands: Node) -> Graph:
    """A graph of one fused node, its type forged where the region does not fit."""
    layouts = tuple(tuple(range(len(x.type.shape))) for x in region.outputs)
    return Graph([X], [forge(ops.fused, operands, region.outputs[0].type, region=region, layouts=layouts)])


def test_a_sound_graph_passes() -> None:
    x = ops.input(name="x", shape=(S, 4), dtype=F32)
    inner = ops.input(name="0", shape=(S, 4), dtype=F32)
    region = Graph([inner], [ops.exp(inner)], (), [SymbolRange(S, 1, 8)])
    y = ops.fused(ops.add(x, W), region=region, layouts=((0, 1),))
    verify(Graph([x], [y, x], [Mutation(x, y), Mutation(W, ops.neg(W))], [SymbolRange(S, 1, 8)]))


def test_pattern() -> None:
    refused(Graph([], [ops.exp(Var("a"))]), "?a: a pattern in a graph")
    refused(Graph([X], [forge(ops.softmax, (X,), UNKNOWN, dim=0)]), "a pattern in a graph")
    refused(Graph([X], [forge(ops.softmax, (X,), X.type, dim=Var("d"))]), "a pattern in a graph")


def test_type_is_not_what_the_rule_says() -> None:
    refused(Graph([X], [forge(ops.exp, (X,), tensor(5))]), "%0 = exp(%x) : f32[5]: its type rule says f32[4]")


def test_operands_that_the_rule_refuses() -> None:
    i = ops.cast(X, dtype=torch.int64)
    refused(Graph([X], [forge(ops.exp, (i,), tensor(4))]), "%1 = exp(%0) : f32[4]: exp: needs a floating-point operand")


def test_attributes_out_of_normal_form() -> None:
    refused(Graph([X], [forge(ops.softmax, (X,), X.type, dim=-1)]), "not in normal form")
    refused(Graph([], [forge(ops.full, (), tensor(), shape=(), value=1, dtype=F32)]), "not in normal form")


def test_inputs_of_one_name() -> None:
    other = ops.input(name="x", shape=(5,), dtype=F32)
    refused(Graph([X, other], [X]), '%x.2 = input "x" : f32[5]: two inputs of one name')
    refused(Graph([X, X], [X]), "two inputs of one name")


def test_an_input_that_is_none() -> None:
    refused(Graph([W], [W]), '%w = weight "w" : f32[4]: an input of the graph that is no input node')


def test_an_input_that_is_not_passed() -> None:
    refused(Graph([], [ops.exp(X)]), '%x = input "x" : f32[4]: read, but not an input of the graph')


def test_weights_of_one_name_and_two_types() -> None:
    other = ops.weight(name="w", shape=(5,), dtype=F32)
    refused(Graph([], [W, other]), "a weight of that name is f32[4] elsewhere")


def test_mutation_of_a_computed_value() -> None:
    refused(Graph([X], [], [Mutation(ops.exp(X), X)]), "only inputs and weights are mutated")


def test_mutation_to_another_type() -> None:
    refused(Graph([X], [], [Mutation(X, ops.cast(X, dtype=torch.float64))]), "mutated to a f64[4]")


def test_mutation_of_an_input_that_is_not_passed() -> None:
    refused(Graph([], [], [Mutation(X, W)]), "not an input of the graph")


def test_two_mutations_of_one_target() -> None:
    refused(Graph([X], [], [Mutation(X, W), Mutation(X, ops.exp(X))]), "mutated twice")


def test_symbol_in_a_type_that_is_not_declared() -> None:
    x = ops.input(name="x", shape=(S,), dtype=F32)
    refused(Graph([x], [x]), '%x = input "x" : f32[s]: the symbol s is not declared')


def test_symbol_in_an_attribute_that_is_not_declared() -> None:
    refused(Graph([], [ops.scalar(S + 1, torch.int64)]), "the symbol s is not declared")
    call = ops.aten_call(target="t", args=((("value", (S,)),),), types=(tensor(),))
    refused(Graph([], [call]), "the symbol s is not declared")


def test_symbol_declared_twice() -> None:
    refused(Graph([], [], (), [SymbolRange(S, 0, 1), SymbolRange(S, 0, 2)]), "the symbol s is declared 2 times")


def test_symbol_of_another_making() -> None:
    refused(Graph([], [], (), [SymbolRange(sympy.Symbol("s"))]), "not made by types.symbol")


def test_range_of_no_size() -> None:
    refused(Graph([], [], (), [SymbolRange(S, 4, 3)]), "s in [4, 3] holds no size")
    refused(Graph([], [], (), [SymbolRange(S, -1, 3)]), "s in [-1, 3] holds no size")


SEVERAL = ops.aten_call(X, target="t", args=(), types=(tensor(4), tensor(4)))


def test_several_results_read_without_item() -> None:
    refused(Graph([X], [forge(ops.exp, (SEVERAL,), tensor(4))]), "reads the several results of aten.call without item")


def test_item_of_one_tensor() -> None:
    refused(Graph([X], [forge(ops.item, (X,), tensor(4), index=0)]), "item of f32[4], which is one tensor")


def test_item_that_is_not_there() -> None:
    refused(Graph([X], [forge(ops.item, (SEVERAL,), tensor(4), index=2)]), "has no result 2")


def test_output_of_several_results() -> None:
    refused(Graph([X], [SEVERAL]), "an output that is not one tensor")


# --- regions ----------------------------------------------------------------------------------------------------------


def inner(name: str = "0", *shape: Any) -> Node:
    return ops.input(name=name, shape=shape or (4,), dtype=F32)


def test_a_region_is_verified_as_a_graph() -> None:
    region = Graph([inner()], [forge(ops.exp, (inner(),), tensor(5))])
    refused(
        fuse(region, X), "%0 = fused(%x, layouts=[[0]], region=graph {...}) : f32[5]: in its region: %0 = exp(%arg0)"
    )


def test_inputs_of_a_region_are_named_by_position() -> None:
    refused(fuse(Graph([inner("1")], [inner("1")]), X), 'must be named "0"')


def test_weights_in_a_region() -> None:
    refused(fuse(Graph([inner()], [ops.add(inner(), W)]), X), "a weight in a region")


def test_mutations_in_a_region() -> None:
    refused(fuse(Graph([inner()], [inner()], [Mutation(inner(), ops.exp(inner()))]), X), "a mutation in a region")


def test_symbols_of_a_region_are_declared_there_or_around_it() -> None:
    x = ops.input(name="x", shape=(S,), dtype=F32)
    wide = SymbolRange(S, 0, 9)
    for own, around, message in [
        ((), (wide,), None),
        ((wide,), (wide,), None),
        ((SymbolRange(S, 1, 9),), (wide,), "the region says s in [1, 9], the graph around it s in [0, 9]"),
    ]:
        region = Graph([inner("0", S)], [ops.exp(inner("0", S))], (), own)
        graph = Graph([x], [ops.fused(x, region=region, layouts=((0,),))], (), around)
        verify(graph) if message is None else refused(graph, message)


def test_a_region_in_a_region() -> None:
    bad = Graph([inner("zero")], [inner("zero")])
    middle = Graph([inner()], [forge(ops.fused, (inner(),), tensor(4), region=bad, layouts=((0,),))])
    refused(
        fuse(middle, X), "in its region: %0 = fused(%arg0, layouts=[[0]], region=graph {...}) : f32[4]: in its region: "
    )
