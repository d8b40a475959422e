"""One harness for all operators: a new operator is tested as soon as it has a sample, and fails until it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import OPS, REQUIRED, Node, Trait
from smelt.ir.text import parse_graph, print_graph
from smelt.ir.types import SymbolRange, TensorType, concrete, symbol
from smelt.ir.verify import verify

SIZES = {"s": 6, "t": 3}
CONCRETE = SimpleNamespace(**SIZES)
SYMBOLIC = SimpleNamespace(**{name: symbol(name) for name in SIZES})
RANGES = tuple(SymbolRange(symbol(name), 1, 64) for name in SIZES)
VALUES = {symbol(name): size for name, size in SIZES.items()}
F32, F64, F16, BF16, I64 = torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64

# What the words before an operand's dims stand for; the numbers of a word without a dtype take the test's.
KINDS: Mapping[str, tuple[torch.dtype | None, Callable[[tuple[int, ...]], torch.Tensor]]] = {
    "float": (None, torch.randn),
    "positive": (None, lambda shape: torch.rand(shape) * 3 + 0.25),
    "int": (I64, lambda shape: torch.randint(-9, 9, shape)),
    "nonzero": (I64, lambda shape: torch.randint(1, 9, shape)),
    "index": (I64, lambda shape: torch.randint(0, 3, shape)),
    "byte": (torch.uint8, lambda shape: torch.randint(0, 3, shape, dtype=torch.uint8)),
    "word": (torch.int32, lambda shape: torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)),
    "int8": (torch.int8, lambda shape: torch.randint(-127, 128, shape, dtype=torch.int8)),
    "bool": (torch.bool, lambda shape: torch.rand(shape) > 0.3),
}


@dataclass(frozen=True)
class Sample:
    """Operands, ``"kind: dims"``, and what is built of them."""

    op: str
    operands: tuple[str, ...]
    build: Callable[[list[Node], Any], Node]

    def inputs(self, dims: Any, dtype: torch.dtype) -> list[Node]:
        found = []
        for i, text in enumerate(self.operands):
            kind, shape = _split(text, dims)
            found.append(ops.input(name=f"x{i}", shape=shape, dtype=KINDS[kind][0] or dtype))
        return found

    def tensors(self, dtype: torch.dtype) -> list[torch.Tensor]:
        made = []
        for text in self.operands:
            kind, shape = _split(text, CONCRETE)
            made.append(KINDS[kind][1](shape).to(KINDS[kind][0] or dtype))
        return made

    def graph(self, dims: Any = CONCRETE, dtype: torch.dtype = F32) -> Graph:
        inputs = self.inputs(dims, dtype)
        return Graph(inputs, ops.results(self.build(inputs, dims)), (), RANGES)


def _split(text: str, dims: Any) -> tuple[str, tuple[Any, ...]]:
    kind, _, shape = text.rpartition(": ")
    return kind or "float", tuple(int(d) if d.isdigit() else getattr(dims, d) for d in words(shape))


def sample(op: str, *operands: str, attrs: Callable[[Any], dict[str, Any]] | None = None, **plain: Any) -> Sample:
    """A sample of plain attributes, or of attributes that depend on the dims."""
    return Sample(op, operands, lambda nodes, dims: OPS[op](*nodes, **plain, **(attrs(dims) if attrs else {})))


def _region(nodes: list[Node], dims: Any) -> Node:
    x = ops.input(name="0", shape=nodes[0].shape, dtype=nodes[0].dtype)
    region = Graph([x], [ops.exp(x), ops.sum(x, dims=(1,))])
    return ops.fused(*nodes, region=region, layouts=((1, 0), (0,)))


def _topk(nodes: list[Node], dims: Any) -> Node:
    types = (TensorType((dims.s, 2), nodes[0].dtype), TensorType((dims.s, 2), I64))
    return ops.aten_call(*nodes, target="aten.topk.default", args=(("operand", 0), ("value", 2)), types=types)


def words(text: str) -> list[str]:
    return text.split()


UNARY_FLOAT = "floor ceil round trunc exp exp2 expm1 sin cos tan tanh sigmoid erf isnan silu gelu softplus leaky_relu"
UNARY_POSITIVE = "log log1p log2 sqrt rsqrt reciprocal"
BINARY_ANY = "add mul maximum minimum eq ne lt le gt ge"
DIVISIONS = "floor_div trunc_div remainder fmod"

SAMPLES = [
    *(sample(op, "s 4") for op in words(f"{UNARY_FLOAT} neg abs sign relu")),
    *(sample(op, "positive: s 4") for op in words(UNARY_POSITIVE)),
    *(sample(op, "s 4", "4") for op in words(f"{BINARY_ANY} sub div atan2 swiglu")),
    *(sample(op, "bool: s 1", "bool: 4") for op in words(f"{BINARY_ANY} bit_and bit_or bit_xor")),
    *(sample(op, "int: s 4", "int: s 1") for op in words("sub bit_and bit_or bit_xor")),
    *(sample(op, "float: s 4", "positive: s 4") for op in words(DIVISIONS)),
    *(sample(op, "int: s 4", "nonzero: s 4") for op in words(DIVISIONS)),
    *(sample(op, "int: s 4") for op in words("neg abs sign relu bit_not")),
    sample("bit_not", "bool: s"),
    sample("pow", "positive: s 4", "s 4"),
    sample("pow", "int: s", "index: s"),
    sample("where", "bool: s 1", "s 4", "4"),
    sample("cast", "s 4", dtype=BF16),
    sample("cast", "s 4", dtype=F32),
    sample("cast", "bool: s", dtype=I64),
    sample("gelu", "s 4", approximate="tanh"),
    sample("softplus", "s 4", beta=2, threshold=1),
    sample("leaky_relu", "s 4", slope=0.3),
    sample("clamp", "s 4", low=-0.5),
    sample("clamp", "s 4", low=-0.5, high=1),
    sample("clamp", "int: s 4", high=2),
    sample("clamp", "s 4"),
    # reductions
    *(sample(op, "s 4") for op in ("sum", "prod", "amax", "amin", "mean", "var")),
    *(sample(op, "s 4 t", dims=(0, -1), keepdim=True) for op in ("sum", "prod", "amax", "amin", "mean", "var")),
    *(sample(op, "s 4", dims=()) for op in ("sum", "prod", "amax", "amin", "mean")),
    *(sample(op, "bool: s 4", dims=(1,)) for op in ("any", "all", "sum", "amax")),
    *(sample(op, "s 4", dim=-1, keepdim=True) for op in ("argmax", "argmin")),
    *(sample(op, "int: s 4", dim=0) for op in ("argmax", "argmin", "cumsum")),
    sample("cumsum", "s 4", dim=1),
    sample("sum", "int: s 4", dims=(0,)),
    sample("var", "s 4", dims=(1,), correction=0),
    *(sample(op, "s 4", dim=-1) for op in ("softmax", "log_softmax")),
    *(sample(op, "s 4 t", dim=1) for op in ("softmax", "log_softmax")),
    sample("softmax", "", dim=0),
    sample("layer_norm", "s 4"),
    sample("layer_norm", "s t 4", "4"),
    sample("layer_norm", "s t 4", "t 4", "t 4", axes=2, eps=1e-3),
    sample("rms_norm", "s 4"),
    sample("rms_norm", "s t 4", "4", eps=1e-3),
    # products
    sample("matmul", "s 4", "4 t"),
    sample("matmul", "2 1 s 4", "3 4 t"),
    sample("matmul", "int: s 4", "int: 4 t"),
    sample("linear", "s t 4", "5 4", "5"),
    sample("linear", "4", "5 4"),
    # few bits
    sample("weight_scale", "5 7", bits=8, group=4),
    sample("weight_scale", "5 11", bits=4, group=8, zeros=True),
    sample("weight_zero", "5 7", "5 2", bits=8, group=4),
    sample("quantize_weight", "5 7", "5 2", bits=8, group=4),
    sample("quantize_weight", "5 11", "5 2", "byte: 5 2", bits=4, group=8),
    sample("float8_value", "byte: s 7"),
    sample("weight_scale", "5 7", bits=8, group=4, float8=True),
    sample("quantize_weight", "5 7", "5 2", bits=8, group=4, float8=True),
    sample("dequantize", "byte: 5 7", "5 2", bits=8, group=4, features=7, float8=True),
    sample("quantized_linear", "s 7", "byte: 5 7", "5 2", "5", bits=8, group=4, float8=True),
    sample("dequantize", "int8: 5 7", "5 2", bits=8, group=4, features=7),
    sample("dequantize", "word: 5 2", "5 2", bits=4, group=8, features=11),
    sample("dequantize", "word: 5 1", "5 1", "byte: 5 1", bits=4, group=8, features=8),
    sample("quantized_linear", "s t 7", "int8: 5 7", "5 1", bits=8, group=7),
    sample("quantized_linear", "s 7", "word: 5 1", "5 1", "5", bits=4, group=8),
    sample("quantized_linear", "s 7", "byte: 5 7", "5 2", "byte: 5 2", "5", bits=8, group=4, zeros=True),
    sample("row_scale", "s t 7"),
    Sample("quantize_rows", ("s t 7",), lambda nodes, dims: ops.quantize_rows(nodes[0], ops.row_scale(nodes[0]))),
    sample("float8_of", "s 7"),
    sample("row_scale", "s t 7", float8=True),
    Sample(
        "quantize_rows",
        ("s t 7",),
        lambda nodes, dims: ops.quantize_rows(nodes[0], ops.row_scale(nodes[0], float8=True), float8=True),
    ),
    sample("float8_linear", "byte: s t 7", "s t 1", "byte: 5 7", "5 1"),
    sample("float8_linear", "byte: s 7", "s 1", "byte: 5 7", "5 1", "5"),
    sample("int8_linear", "int8: s t 7", "s t 1", "int8: 5 7", "5 1"),
    sample("int8_linear", "int8: s 7", "s 1", "int8: 5 7", "5 1", "5"),
    # views
    sample("reshape", "s 4", attrs=lambda d: {"shape": (2, d.s, 2)}),
    sample("permute", "s 4 t", dims=(2, 0, -2)),
    sample("expand", "s 1", attrs=lambda d: {"shape": (2, d.s, 4)}),
    sample("slice", "s 4", attrs=lambda d: {"dim": 0, "start": 1, "stop": d.s}),
    sample("slice", "s 7", dim=-1, start=1, stop=6, step=2),
    sample("windows", "s 9", dim=1, size=3, step=2, count=4),
    sample("windows", "bool: 9 s", dim=-2, size=2, step=1, apart=3, count=5),
    sample("windows", "s 4", attrs=lambda d: {"dim": 0, "size": 1, "step": 1, "count": d.s}),
    sample("windows", "2 4", dim=1, size=5, step=1, count=0),
    sample("flip", "s 4", dims=(0, 1)),
    sample("concat", "s 4", "t 4", dim=0),
    sample("pad", "s 4", low=(1, 0), high=(0, 2), value=-1),
    sample("pad", "s 4", low=(0, -1), high=(1, -2)),
    sample("pad", "bool: s", low=(1,), high=(1,), value=True),
    # indices
    sample("index", "s 4", "index: t 2"),
    sample("index", "s 4 5", "index: t 1", "byte: 2", dim=1, wrap=False),
    sample("gather", "s 4", "index: s t", dim=1),
    sample("index_put", "s 4", "t 4", "index: t"),
    sample("index_put", "s 4 5", "s t 2", "index: t 1", "index: 2", dim=1, accumulate=True),
    sample("scatter", "s 4", "index: t 3", "t 4", dim=1),
    sample("scatter", "s 4", "index: t 3", "t 4", dim=1, reduce="add"),
    sample("slice_put", "s 4", "s 2", dim=1, start=1, step=2),
    sample("embedding", "t 4", "index: s 2"),
    sample("rope", "2 t s 4", "s 4", "s 4"),
    sample("rope", "2 t s 4", "s 4", "s 4", interleaved=True),
    # attention
    sample("attention", "2 4 s 8", "2 4 t 8", "2 4 t 6", scale=0.3),
    sample("attention", "2 4 s 8", "2 2 s 8", "2 2 s 8", scale=0.3, causal=True),
    sample("attention", "2 4 s 8", "2 2 t 8", "2 2 t 8", "bool: 2 1 s t", scale=0.3),
    sample("attention", "2 4 s 8", "2 4 t 8", "2 4 t 8", "s t", scale=0.3, causal=True),
    sample("attention", "2 4 s 8", "2 4 t 8", "2 4 t 8", "int: ", scale=0.3, causal=True),
    sample("attention", "2 4 s 8", "2 4 t 8", "2 4 t 8", "bool: 2 1 s t", "int: ", scale=0.3, causal=True),
    sample("attention", "2 4 s 8", "2 4 t 8", "2 4 t 8", "t", scale=0.3),
    sample("recurrence", "s t 4", "4 4", "4", "t 4", kind="tanh"),
    sample("recurrence", "s t 4", "4 4", "4", "t 4", kind="relu", reverse=True),
    sample("recurrence", "s t 16", "16 4", "16", "t 4", "t 4", kind="lstm"),
    sample("recurrence", "s t 12", "12 4", "12", "t 4", kind="gru"),
    # sources and structure
    Sample("input", ("s 4",), lambda nodes, dims: nodes[0]),
    Sample("weight", (), lambda nodes, dims: ops.weight(name="w", shape=(4, 2), dtype=F32)),
    sample("full", attrs=lambda d: {"shape": (d.s, 2), "value": 0.5, "dtype": F32}),
    sample("full", attrs=lambda d: {"shape": (), "value": d.s * 2, "dtype": I64}),
    sample("full", shape=(2,), value=float("-inf"), dtype=F16),
    sample("arange", attrs=lambda d: {"size": d.s}),
    sample("arange", attrs=lambda d: {"size": d.s, "start": -1, "step": 0.5, "dtype": F32}),
    Sample("fused", ("s 4",), _region),
    Sample("aten.call", ("s 4",), _topk),
    Sample("item", ("s 4",), lambda nodes, dims: ops.item(_topk(nodes, dims), index=1)),
]
COMPOSITES = [s for s in SAMPLES if OPS[s.op].decompose is not None]

PRIMITIVES = words("""
input weight full arange
add sub mul div floor_div trunc_div remainder fmod pow maximum minimum atan2 neg abs sign reciprocal
floor ceil round trunc exp exp2 expm1 log log1p log2 sqrt rsqrt sin cos tan tanh sigmoid erf
eq ne lt le gt ge isnan bit_and bit_or bit_xor bit_not where cast float8_value float8_of
sum prod amax amin any all argmax argmin cumsum matmul recurrence weight_scale weight_zero quantize_weight
reshape permute expand slice windows flip concat pad index gather index_put scatter slice_put
item fused aten.call
""")


def _id(s: Sample) -> str:
    return f"{s.op}({', '.join(s.operands)})"


each_sample = pytest.mark.parametrize("s", SAMPLES, ids=_id)
each_composite = pytest.mark.parametrize("s", COMPOSITES, ids=_id)


def run(graph: Graph, tensors: list[torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
    return interpret(graph, tensors, {"w": torch.arange(8.0).reshape(4, 2)}, sizes=VALUES, **options).outputs


def test_every_operator_has_a_sample() -> None:
    assert {s.op for s in SAMPLES} == set(OPS)


def test_the_primitives_are_a_closed_set() -> None:
    assert sorted(PRIMITIVES) == sorted(name for name, op in OPS.items() if op.decompose is None)
    assert all((op.decompose is not None) == (Trait.COMPOSITE in op.traits) for op in OPS.values())


# `interpret` holds every value against its node's type, so that running a graph checks shapes and dtypes
@each_sample
@pytest.mark.parametrize("dims", [CONCRETE, SYMBOLIC], ids=["concrete", "symbolic"])
def test_meaning_has_the_inferred_type(s: Sample, dims: Any) -> None:
    run(s.graph(dims), s.tensors(F32))


@each_sample
def test_symbolic_type_is_the_concrete_one_with_sizes_put_in(s: Sample) -> None:
    for general, special in zip(s.graph(SYMBOLIC).outputs, s.graph().outputs, strict=True):
        assert tuple(concrete(d, VALUES) for d in general.shape) == special.shape


@each_sample
def test_float64_agrees_with_float32(s: Sample) -> None:
    tensors = s.tensors(F32)
    # rounding to bf16 is what the reference leaves out
    tolerance = 1e-2 if s.op == "cast" else 1e-4
    for narrow, wide in zip(run(s.graph(), tensors), run(s.graph(), tensors, dtype=F64), strict=True):
        assert wide.dtype == (F64 if narrow.dtype.is_floating_point else narrow.dtype)
        torch.testing.assert_close(narrow.double(), wide.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@each_sample
def test_graph_is_valid_and_its_text_is_read_back(s: Sample) -> None:
    for graph in (s.graph(), s.graph(SYMBOLIC)):
        verify(graph)
        assert parse_graph(print_graph(graph)) is graph


@each_sample
def test_flops_is_a_dim(s: Sample) -> None:
    for dims in (CONCRETE, SYMBOLIC):
        inputs = s.inputs(dims, F32)
        flops = OPS[s.op].flops(s.build(inputs, dims))
        assert isinstance(flops, int) or (isinstance(flops, sympy.Expr) and flops.free_symbols <= VALUES.keys())
        assert concrete(flops, VALUES) >= 0


@each_sample
def test_attributes_keep_their_normal_form(s: Sample) -> None:
    node = s.build(s.inputs(SYMBOLIC, F32), SYMBOLIC)
    assert node.op(*node.inputs, **node.attrs) is node


@each_sample
def test_operands_of_two_dtypes_are_refused(s: Sample) -> None:
    floats = [i for i, text in enumerate(s.operands) if _split(text, CONCRETE)[0] in ("float", "positive")]
    for other in floats[1:]:
        inputs = s.inputs(CONCRETE, F32)
        inputs[other] = ops.cast(inputs[other], dtype=F64)
        with pytest.raises(TypeError):
            s.build(inputs, CONCRETE)


@each_sample
def test_wrong_numbers_of_operands_are_refused(s: Sample) -> None:
    low, high = OPS[s.op].arity
    attrs = {name: 0 for name, default in OPS[s.op].attrs.items() if default is REQUIRED}
    x = ops.input(name="x", shape=(2,), dtype=F32)
    for count in ([low - 1] if low else []) + ([high + 1] if high is not None else []):
        with pytest.raises(TypeError, match="operands"):
            OPS[s.op](*[x] * count, **attrs)


# --- composites -------------------------------------------------------------------------------------------------------


def decomposed(graph: Graph) -> Graph:
    """Every composite replaced by its definition, once."""

    def define(node: Node, operands: tuple[Node, ...]) -> Node:
        same = node.with_inputs(operands)
        return node.op.decompose(*operands, **same.attrs) if node.op.decompose is not None else same

    return graph.rebuild(define)


@each_composite
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
def test_decomposition_has_the_same_type(s: Sample, dtype: torch.dtype) -> None:
    for dims in (CONCRETE, SYMBOLIC):
        graph = s.graph(dims, dtype)
        verify(decomposed(graph))
        assert [x.type for x in decomposed(graph).outputs] == [x.type for x in graph.outputs]


@each_composite
def test_decomposition_means_the_same(s: Sample) -> None:
    tensors = s.tensors(F64)
    graph = s.graph(SYMBOLIC, F64)
    for expected, found in zip(run(graph, tensors), run(decomposed(graph), tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_composite
@pytest.mark.parametrize(("dtype", "tolerance"), [(BF16, 2e-2), (F16, 3e-3)])
def test_decomposition_means_the_same_in_half_types(s: Sample, dtype: torch.dtype, tolerance: float) -> None:
    tensors = s.tensors(dtype)
    graph = s.graph(CONCRETE, dtype)
    for expected, found in zip(run(graph, tensors), run(decomposed(graph), tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@each_composite
def test_decomposition_ends_in_primitives(s: Sample) -> None:
    graph = s.graph(SYMBOLIC, BF16)
    for _ in range(3):
        graph = decomposed(graph)
    assert {node.op.name for node in graph.nodes} <= set(PRIMITIVES)
    assert decomposed(graph) is graph
