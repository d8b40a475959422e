"""The interpreter: what it binds, widens, frees, refuses and leaves alone. Operators have their own tests."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import GraphError, InputError, TypeRuleError
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import evaluate, interpret
from smelt.ir.node import OpDef, Trait
from smelt.ir.types import SymbolRange, TensorType, symbol

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
S = symbol("s")
RANGES = (SymbolRange(S, 1, 100),)


def test_model() -> None:
    x = ops.input(name="x", shape=(S, 8), dtype=F32)
    w = ops.weight(name="w", shape=(4, 8), dtype=F32)
    b = ops.weight(name="b", shape=(4,), dtype=F32)
    graph = Graph([x], [ops.softmax(ops.linear(x, w, b), dim=-1)], (), RANGES)
    layer = torch.nn.Linear(8, 4)
    tensor = torch.randn(3, 8)
    results = interpret(graph, [tensor], {"w": layer.weight, "b": layer.bias, "other": tensor})
    torch.testing.assert_close(results.outputs[0], layer(tensor).softmax(-1))
    assert results.mutations == ()
    assert not results.outputs[0].requires_grad


def test_symbols_in_attributes_become_numbers() -> None:
    x = ops.input(name="x", shape=(S, 2), dtype=F32)
    size = ops.scalar(S * 3, torch.int64)
    outputs = [
        ops.reshape(x, shape=(2 * S,)),
        size,
        ops.arange(size=S, start=S, step=-1),
        ops.full(shape=(S,), value=S, dtype=F32),
    ]
    flat, three, down, filled = interpret(Graph([x], outputs, (), RANGES), [torch.randn(4, 2)], {}).outputs
    assert flat.shape == (8,)
    assert three == 12
    assert down.tolist() == [4, 3, 2, 1]
    assert filled.tolist() == [4.0] * 4


def test_sizes_that_no_input_tells() -> None:
    graph = Graph([], [ops.arange(size=S)], (), RANGES)
    assert interpret(graph, [], {}, sizes={S: 3}).outputs[0].tolist() == [0, 1, 2]
    with pytest.raises(TypeRuleError, match="the size of s is not known"):
        interpret(graph, [], {})
    with pytest.raises(InputError, match="out of range"):
        interpret(graph, [], {}, sizes={S: 101})


def test_reference_widens_everything() -> None:
    x = ops.input(name="x", shape=(4,), dtype=BF16)
    w = ops.weight(name="w", shape=(4,), dtype=torch.float16)
    third = ops.scalar(1 / 3, BF16)
    steps = ops.arange(size=4, step=0.1, dtype=F32)
    total = ops.add(ops.cast(ops.mul(x, third), dtype=torch.float16), w)
    inner = ops.input(name="0", shape=(4,), dtype=torch.float16)
    fused = ops.fused(total, region=Graph([inner], [ops.cast(ops.exp(inner), dtype=BF16)]), layouts=((0,),))
    call = ops.aten_call(
        fused,
        target="aten._to_copy.default",
        args=(("operand", 0),),
        kwargs=(("dtype", ("value", F32)),),
        types=(TensorType((4,), F32),),
    )
    graph = Graph([x], [call, ops.add(call, steps), ops.isnan(call)])
    tensor, weight = torch.randn(4, dtype=BF16), torch.randn(4, dtype=torch.float16)
    value, sum_, flag = interpret(graph, [tensor], {"w": weight}, dtype=F64).outputs
    expected = (tensor.double() / 3 + weight.double()).exp()
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(sum_, expected + torch.arange(4, dtype=F64) * 0.1, rtol=1e-14, atol=0)
    assert flag.dtype == torch.bool
    narrow = interpret(graph, [tensor], {"w": weight}).outputs
    assert [x.dtype for x in narrow] == [F32, F32, torch.bool]


def test_reference_takes_arguments_that_are_wide_already() -> None:
    x = ops.input(name="x", shape=(2,), dtype=F32)
    tensor = torch.tensor([1 / 3, 2 / 3], dtype=F64)
    assert torch.equal(interpret(Graph([x], [ops.neg(x)]), [tensor], {}, dtype=F64).outputs[0], -tensor)


def test_arguments_that_do_not_fit() -> None:
    x = ops.input(name="x", shape=(S,), dtype=F32)
    w = ops.weight(name="w", shape=(4,), dtype=F32)
    graph = Graph([x], [ops.add(ops.sum(x), w)], (), RANGES)
    good, weight = torch.ones(2), torch.ones(4)
    cases = [
        ([good.double()], {"w": weight}, None, "input 'x' is torch.float64, the graph takes f32"),
        ([good.long()], {"w": weight}, F64, "input 'x' is torch.int64"),
        ([good], {}, None, "there is no weight 'w'"),
        ([good], {"w": weight[:3]}, None, r"weight 'w' is \[3\], the graph takes f32\[4\]"),
        ([good], {"w": weight.half()}, None, "weight 'w' is torch.float16"),
        ([torch.ones(2, 2)], {"w": weight}, None, "input 'x' has 2 dims"),
        ([torch.ones(0)], {"w": weight}, None, "input 'x': dim 0 is 0, out of range"),
        ([], {"w": weight}, None, "takes 1 inputs, got 0"),
    ]
    for inputs, weights, dtype, message in cases:
        with pytest.raises(InputError, match=message):
            interpret(graph, inputs, weights, dtype=dtype)


def test_results_share_no_memory_with_arguments() -> None:
    x = ops.input(name="x", shape=(4,), dtype=F32)
    w = ops.weight(name="w", shape=(4,), dtype=F32)
    graph = Graph([x], [x, w, ops.slice_(x, dim=0, stop=2)], [Mutation(x, ops.flip(x, dims=(0,))), Mutation(w, x)])
    tensor, weight = torch.arange(4.0), torch.ones(4)
    results = interpret(graph, [tensor], {"w": weight})
    for result in (*results.outputs, *results.mutations):
        result.fill_(9)
    assert tensor.tolist() == [0, 1, 2, 3]
    assert weight.tolist() == [1, 1, 1, 1]


def test_mutations_are_returned_and_not_applied() -> None:
    cache = ops.input(name="cache", shape=(4,), dtype=F32)
    graph = Graph([cache], [cache], [Mutation(cache, ops.add(cache, cache))])
    tensor = torch.ones(4)
    results = interpret(graph, [tensor], {})
    assert results.outputs[0].tolist() == [1] * 4
    assert results.mutations[0].tolist() == [2] * 4
    assert tensor.tolist() == [1] * 4


def test_values_are_freed_after_their_last_use() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def probe(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        made = x + 1
        alive.append(weakref.ref(made))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    step = OpDef("step", infer=lambda x: x, evaluate=probe, traits=frozenset({Trait.POINTWISE}))
    x = ops.input(name="x", shape=(4,), dtype=F32)
    node = x
    for _ in range(20):
        node = step(node)
    assert interpret(Graph([x], [node]), [torch.zeros(4)], {}).outputs[0].tolist() == [20] * 4
    gc.collect()
    assert most == 2


def test_an_operator_that_lies_about_its_type_is_caught() -> None:
    x = ops.input(name="x", shape=(4,), dtype=F32)
    for evaluate_ in (lambda t: t[:2], lambda t: t.double(), lambda t: (t, t)):
        liar = OpDef("liar", infer=lambda t: t, evaluate=evaluate_)
        with pytest.raises(GraphError, match=r"liar of type f32\[4\] gave"):
            interpret(Graph([x], [liar(x)]), [torch.ones(4)], {})


def test_derived_weights() -> None:
    w = ops.weight(name="w", shape=(2, 3), dtype=F32)
    v = ops.weight(name="v", shape=(2, 3), dtype=F32)
    weights = {"w": torch.randn(2, 3), "v": torch.randn(2, 3)}
    packed, same, one = evaluate([ops.concat(w, v, dim=0), w, ops.scalar(1.0, F32)], weights)
    assert torch.equal(packed, torch.cat([weights["w"], weights["v"]]))
    assert torch.equal(same, weights["w"])
    assert same.data_ptr() != weights["w"].data_ptr()
    assert one == 1
    assert evaluate([w], weights, dtype=F64)[0].dtype == F64
    assert evaluate([], weights) == []


def test_derived_weights_depend_on_no_input() -> None:
    x = ops.input(name="x", shape=(2,), dtype=F32)
    with pytest.raises(GraphError, match="the input 'x' has no value"):
        evaluate([ops.neg(x)], {})


def test_weights_that_nobody_needs_are_not_loaded() -> None:
    class Store(dict[str, torch.Tensor]):
        def values(self) -> None:  # type: ignore[override]
            raise AssertionError

    w = ops.weight(name="w", shape=(2,), dtype=F32)
    assert interpret(Graph([], [ops.neg(w)]), [], Store(w=torch.ones(2))).outputs[0].tolist() == [-1, -1]


def test_constants_are_made_on_the_device_of_the_arguments() -> None:
    x = ops.input(name="x", shape=(3,), dtype=F32)
    graph = Graph(
        [x], [ops.add(x, ops.cast(ops.arange(size=3), dtype=F32)), ops.scalar(1.0, F32), ops.causal_mask(2, 3)]
    )
    assert [y.device.type for y in interpret(graph, [torch.ones(3, device="meta")], {}).outputs] == ["meta"] * 3
    w = ops.weight(name="w", shape=(3,), dtype=F32)
    values = evaluate([w, ops.arange(size=2)], {"w": torch.ones(3, device="meta")})
    assert [y.device.type for y in values] == ["meta"] * 2


def test_regions() -> None:
    x = ops.input(name="x", shape=(S, 3), dtype=F32)
    inner = ops.input(name="0", shape=(S, 3), dtype=F32)
    low = Graph([inner], [ops.sum(inner, dims=(0,))], (), RANGES)
    middle = Graph([inner], [inner, ops.fused(inner, region=low, layouts=((0,),))], (), RANGES)
    graph = Graph([x], ops.results(ops.fused(x, region=middle, layouts=((1, 0), (0,)))), (), RANGES)
    tensor = torch.randn(5, 3)
    same, total = interpret(graph, [tensor], {}).outputs
    assert torch.equal(same, tensor)
    torch.testing.assert_close(total, tensor.sum(0))


@pytest.mark.parametrize("write", [False, True])
def test_indices_count_only_where_there_is_something_to_pick(write: bool) -> None:
    """As in eager: with no rows an index out of range is none."""
    n = symbol("n")
    x, i = ops.input(name="x", shape=(n, 9), dtype=torch.float32), ops.input(name="i", shape=(1,), dtype=torch.int64)
    v = ops.input(name="v", shape=(n, 1), dtype=torch.float32)
    result = ops.index_put(x, v, i, dim=1) if write else ops.add(ops.index(x, i, dim=1), v)
    graph = Graph([x, i, v], [result], (), [SymbolRange(n, 0, 8)])

    def run(rows: int) -> list[torch.Tensor]:
        return list(interpret(graph, [torch.ones(rows, 9), torch.tensor([20]), torch.ones(rows, 1)], {}).outputs)

    assert [x.shape[0] for x in run(0)] == [0]
    with pytest.raises(IndexError, match="out of range"):
        run(1)
