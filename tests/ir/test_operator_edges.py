"""Operators at their edges: NaN and infinities, rows that see nothing, empty axes, indices, against plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import OpDef
from smelt.ir.types import SymbolRange, symbol

F32, F64 = torch.float32, torch.float64
INF, NAN = float("inf"), float("nan")
EDGES = torch.tensor([-INF, -1e38, -30.0, -1.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, 20.0, 21.0, 1e38, INF, NAN])


def both(op: OpDef, *tensors: torch.Tensor, dtype: torch.dtype | None = None, **attrs: Any) -> list[torch.Tensor]:
    """The value of an operator, and of its decomposition."""
    inputs = [ops.input(name=f"x{i}", shape=x.shape, dtype=x.dtype) for i, x in enumerate(tensors)]
    node = op(*inputs, **attrs)
    assert op.decompose is not None
    expanded = op.decompose(*node.inputs, **node.attrs)
    return list(interpret(Graph(inputs, [node, expanded]), tensors, {}, dtype=dtype).outputs)


def value(op: OpDef, *tensors: torch.Tensor, **attrs: Any) -> torch.Tensor:
    inputs = [ops.input(name=f"x{i}", shape=x.shape, dtype=x.dtype) for i, x in enumerate(tensors)]
    return interpret(Graph(inputs, [op(*inputs, **attrs)]), tensors, {}).outputs[0]


# gelu is left out: PyTorch's vectorised kernel gives NaN at infinity where its scalar one does not
@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        (ops.relu, {}),
        (ops.silu, {}),
        (ops.softplus, {}),
        (ops.leaky_relu, {}),
        (ops.clamp, {"low": -1.0, "high": 1.0}),
        (ops.clamp, {"low": 1.0, "high": -1.0}),
        (ops.clamp, {"low": -INF, "high": INF}),
        (ops.softmax, {"dim": 0}),
        (ops.log_softmax, {"dim": 0}),
        (ops.mean, {}),
        (ops.var, {}),
        (ops.rms_norm, {}),
        (ops.layer_norm, {}),
    ],
    ids=str,
)
def test_decompositions_treat_nan_and_infinity_alike(op: OpDef, attrs: dict[str, Any]) -> None:
    for finite in (EDGES, EDGES[1:-2], EDGES[1:-1], EDGES[:-1]):
        expected, found = both(op, finite, dtype=F64, **attrs)
        torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("op", [ops.relu, ops.maximum, ops.minimum, ops.amax, ops.amin, ops.sum, ops.prod])
def test_nan_spreads(op: OpDef) -> None:
    x = torch.tensor([1.0, NAN])
    assert value(op, *[x] * op.arity[0]).flatten()[-1].isnan()


def test_softmax_of_a_row_of_minus_infinity_is_nan() -> None:
    for found in both(ops.softmax, torch.full((2, 3), -INF), dim=1):
        assert found.isnan().all()


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16])
def test_attention_of_a_query_that_sees_no_key_is_zero(kind: str, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 3, 5, 8).to(dtype) for _ in range(3))
    allowed = torch.rand(2, 1, 5, 5) > 0.4
    allowed[:, :, 2] = False
    mask = allowed if kind == "bool" else torch.zeros(2, 1, 5, 5).masked_fill(~allowed, -INF).to(dtype)
    eager = F.scaled_dot_product_attention(q, k, v, mask, scale=0.5)
    for found in both(ops.attention, q, k, v, mask, scale=0.5):
        assert (found[:, :, 2] == 0).all()
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_causal_attention_of_more_keys_than_queries(masked: bool) -> None:
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    mask = [torch.rand(3, 5) > 0.3] if masked else []
    allowed = torch.ones(3, 5, dtype=torch.bool).tril() & (mask[0] if mask else True)
    eager = F.scaled_dot_product_attention(q, k, v, allowed, scale=0.5)
    for found in both(ops.attention, q, k, v, *mask, scale=0.5, causal=True):
        torch.testing.assert_close(found, eager)


def test_attention_with_shared_heads_is_attention_with_repeated_ones() -> None:
    q, k, v = torch.randn(2, 6, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    eager = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
    for found in both(ops.attention, q, k, v, scale=0.5):
        torch.testing.assert_close(found, eager)


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
@pytest.mark.parametrize("correction", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
def test_variance_of_few_elements(correction: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    eager = x.var(1, correction=correction)
    for found in both(ops.var, x, dims=(1,), correction=correction):
        torch.testing.assert_close(found, eager, equal_nan=True)


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
def test_variance_over_a_symbolic_axis_never_divides_by_less_than_zero() -> None:
    s = symbol("s")
    x = ops.input(name="x", shape=(2, s), dtype=F32)
    expanded = ops.var.decompose(x, dims=(1,), keepdim=False, correction=1)  # type: ignore[misc]
    for size in (0, 1, 4):
        tensor = torch.randn(2, size)
        (found,) = interpret(Graph([x], [expanded], (), [SymbolRange(s)]), [tensor], {}).outputs
        torch.testing.assert_close(found, tensor.var(1), equal_nan=True)


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
def test_no_axes_are_none_and_not_all() -> None:
    x = torch.randn(2, 3)
    for op in (ops.sum, ops.prod, ops.amax, ops.amin, ops.mean):
        assert torch.equal(value(op, x, dims=()), x)
    for found in both(ops.var, x, dims=(), correction=0):
        assert torch.equal(found, torch.zeros(2, 3))
    for found in both(ops.var, x, dims=()):
        assert found.isnan().all()


def test_rms_norm_of_a_half_type_rounds_once() -> None:
    x, w = torch.randn(4, 64, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16)
    eager = F.rms_norm(x.float(), (64,), w.float(), 1e-6).bfloat16()
    for found in both(ops.rms_norm, x, w):
        torch.testing.assert_close(found, eager, rtol=1e-2, atol=0)


@pytest.mark.parametrize("op", [ops.layer_norm, ops.rms_norm])
def test_norms_of_half_types_take_weights_in_float32(op: OpDef) -> None:
    x, w = torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(8)
    expected, found = both(op, x, w)
    assert expected.dtype == found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


# --- indices ----------------------------------------------------------------------------------------------------------


def test_index_replaces_the_axes_from_dim() -> None:
    x = torch.randn(2, 5, 6, 3)
    i, j = torch.tensor([[0], [-5], [4]]), torch.tensor([1, -1], dtype=torch.int32)
    found = value(ops.index, x, i, j, dim=1)
    for a in range(3):
        for b in range(2):
            assert torch.equal(found[:, a, b], x[:, int(i[a, 0]), int(j[b])])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_index_put_is_assignment(accumulate: bool, dim: int) -> None:
    x, i = torch.zeros(4, 4, 4), torch.tensor([3, 0, -2])
    shape = [4, 4, 4]
    shape[dim] = 3
    update = torch.randn(shape)
    expected = x.clone()
    place = (slice(None),) * dim + (i,)
    expected[place] = expected[place] + update if accumulate else update
    assert torch.equal(value(ops.index_put, x, update, i, dim=dim, accumulate=accumulate), expected)
    assert not x.any()


def test_index_put_of_two_axes_behind_the_first() -> None:
    x, i, j = torch.zeros(2, 4, 5, 3), torch.tensor([[0], [2]]), torch.tensor([1, 4, 0])
    update = torch.randn(2, 3, 3)
    expected = x.clone()
    expected[:, i, j] = update
    assert torch.equal(value(ops.index_put, x, update, i, j, dim=1), expected)


def test_index_put_accumulates_repeated_indices() -> None:
    found = value(ops.index_put, torch.zeros(3), torch.ones(4), torch.tensor([1, 1, 1, 2]), accumulate=True)
    assert found.tolist() == [0, 3, 1]


@pytest.mark.parametrize("reduce", ["none", "add"])
def test_scatter_is_assignment_element_by_element(reduce: str) -> None:
    x, i, src = torch.zeros(3, 5), torch.tensor([[0, 4], [2, 1]]), torch.randn(2, 3)
    expected = x.clone()
    for a in range(2):
        for b in range(2):
            expected[a, i[a, b]] = src[a, b]
    assert torch.equal(value(ops.scatter, x, i, src, dim=1, reduce=reduce), expected)


def test_gather_picks_element_by_element() -> None:
    x, i = torch.randn(3, 4), torch.tensor([[2, 0, 1], [1, 1, 0]])
    assert value(ops.gather, x, i, dim=0).tolist() == [[x[i[a, b], b] for b in range(3)] for a in range(2)]


@pytest.mark.parametrize("bad", [-5, 4, -1])
@pytest.mark.parametrize("name", ["index", "embedding", "gather", "scatter"])
def test_an_index_out_of_range_raises(name: str, bad: int) -> None:
    x, i = torch.randn(4, 4), torch.tensor([[0, bad]])
    calls = {
        "index": lambda: value(ops.index, x, i, wrap=False),
        "embedding": lambda: value(ops.embedding, x, i),
        "gather": lambda: value(ops.gather, x, i, dim=0),
        "scatter": lambda: value(ops.scatter, x, i, x, dim=0),
    }
    with pytest.raises(IndexError):
        calls[name]()


def test_index_counts_from_the_end_only_where_asked() -> None:
    x = torch.arange(4.0)
    assert value(ops.index, x, torch.tensor([-1])) == 3
    with pytest.raises(IndexError):
        value(ops.index, x, torch.tensor([-5]))


# --- moving and making ------------------------------------------------------------------------------------------------


def test_negative_padding_crops() -> None:
    x = torch.arange(20.0).reshape(4, 5)
    found = value(ops.pad, x, low=(-1, 2), high=(1, -3), value=9)
    assert torch.equal(found, F.pad(x[1:, :2], (2, 0, 0, 1), value=9))


def test_slice_put_writes_every_step() -> None:
    found = value(ops.slice_put, torch.zeros(6), torch.ones(2), dim=0, start=1, step=3)
    assert found.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [F32, F64, torch.int64, torch.int32])
def test_arange_is_pytorchs(dtype: torch.dtype) -> None:
    (found,) = interpret(Graph([], [ops.arange(size=1000, start=3, step=7, dtype=dtype)]), [], {}).outputs
    assert torch.equal(found, torch.arange(3, 7003, 7, dtype=dtype))


def test_arange_in_steps_of_a_fraction() -> None:
    (found,) = interpret(Graph([], [ops.arange(size=1000, start=0.5, step=0.1, dtype=F32)]), [], {}).outputs
    torch.testing.assert_close(found, torch.arange(0.5, 100.45, 0.1, dtype=F32))


def test_a_constant_that_a_half_type_does_not_hold_is_infinity() -> None:
    (found,) = interpret(Graph([], [ops.scalar(-1e10, torch.float16)]), [], {}).outputs
    assert found == -INF


def test_numbers_of_one_value_make_one_constant() -> None:
    assert ops.scalar(1, F32) is ops.scalar(1.0, F32) is ops.scalar(True, F32)
    assert ops.scalar(0.0, F32) is not ops.scalar(-0.0, F32)
    assert ops.scalar(2.0, torch.int32) is ops.scalar(2, torch.int32)
    assert ops.scalar(1, torch.int32) is not ops.scalar(1, torch.int64)


def test_a_call_that_writes_to_its_operand_writes_to_a_copy() -> None:
    x = torch.ones(3)
    node = ops.input(name="x", shape=(3,), dtype=F32)
    call = ops.aten_call(node, target="aten.add_.Scalar", args=(("operand", 0), ("value", 1)), types=(node.type,))
    assert interpret(Graph([node], [call]), [x], {}).outputs[0].tolist() == [2, 2, 2]
    assert x.tolist() == [1, 1, 1]


def test_a_call_with_a_list_of_one_result_is_that_result() -> None:
    x = ops.input(name="x", shape=(4,), dtype=F32)
    call = ops.aten_call(x, target="aten.split.Tensor", args=(("operand", 0), ("value", 4)), types=(x.type,))
    assert interpret(Graph([x], [call]), [torch.ones(4)], {}).outputs[0].shape == (4,)


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh", "relu"])
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrence_is_pytorchs_layer(kind: str, reverse: bool) -> None:
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(kind, torch.nn.RNN)
    options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    module = layer(3, 4, bidirectional=True, **options)
    x = torch.randn(5, 2, 3)
    suffix = "_l0_reverse" if reverse else "_l0"
    w_ih, w_hh, b_ih, b_hh = (
        getattr(module, n + suffix).detach() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    states = [torch.zeros(2, 4)] * (2 if kind == "lstm" else 1)
    operands = [F.linear(x, w_ih, b_ih), w_hh, b_hh, *states]
    inputs = [ops.input(name=str(i), shape=o.shape, dtype=o.dtype) for i, o in enumerate(operands)]
    graph = Graph(inputs, ops.results(ops.recurrence(*inputs, kind=kind, reverse=reverse)))
    found = interpret(graph, operands, {}).outputs
    y, last = module(x)
    half = slice(4, 8) if reverse else slice(0, 4)
    torch.testing.assert_close(found[0], y[..., half])
    for mine, theirs in zip(found[1:], last if kind == "lstm" else (last,), strict=True):
        torch.testing.assert_close(mine, theirs[1 if reverse else 0])
