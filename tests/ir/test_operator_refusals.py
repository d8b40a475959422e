"""What each type rule refuses: every operator has a case, and the message is a TypeRuleError, never a stumble."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import TypeRuleError
from smelt.ir.graph import Graph
from smelt.ir.node import OPS, Node
from smelt.ir.types import DTYPES, TensorType, symbol

S, T = symbol("s"), symbol("t")


def t(text: str) -> Node:
    """An input: ``t("f32 2 s")``."""
    dtype, *dims = text.split()
    return ops.input(name="x", shape=tuple(int(d) if d.isdigit() else symbol(d) for d in dims), dtype=DTYPES[dtype])


def words(text: str) -> list[str]:
    return text.split()


FLOAT_ONLY = words("""
div atan2 reciprocal floor ceil round trunc exp exp2 expm1 log log1p log2 sqrt rsqrt sin cos tan tanh sigmoid erf isnan
silu gelu softplus leaky_relu swiglu
""")
NUMBERS_ONLY = words("sub floor_div trunc_div remainder fmod pow neg abs relu clamp")
BITS_ONLY = words("bit_and bit_or bit_xor bit_not")
REAL_ONLY = words("add mul maximum minimum sign eq ne lt le gt ge")
# dtypes that operators on elements refuse
BAD_DTYPES = {
    **dict.fromkeys(FLOAT_ONLY, "i64"),
    **dict.fromkeys(NUMBERS_ONLY, "bool"),
    **dict.fromkeys(BITS_ONLY, "f32"),
    **dict.fromkeys(REAL_ONLY, "c64"),
}

CASES: list[tuple[str, Callable[[], Node]]] = [
    ("where", lambda: ops.where(t("f32 2"), t("f32 2"), t("f32 2"))),
    ("where", lambda: ops.where(t("bool 2"), t("f32 2"), t("f64 2"))),
    ("cast", lambda: ops.cast(t("c64 2"), dtype=torch.float32)),
    ("gelu", lambda: ops.gelu(t("f32 2"), approximate="fast")),
    ("clamp", lambda: ops.clamp(t("i64 2"), low=0.5)),
    ("clamp", lambda: ops.clamp(t("u8 2"), low=-1)),
    *((op, lambda op=op: OPS[op](t("f32 2 3"), dims=(2,))) for op in ("sum", "prod", "amax", "amin", "mean", "var")),
    *((op, lambda op=op: OPS[op](t("f32 2 3"), dims=(0, -2))) for op in ("sum", "prod", "amax", "amin", "mean", "var")),
    *((op, lambda op=op: OPS[op](t("c64 2"))) for op in ("sum", "prod", "amax", "amin", "mean", "var")),
    *((op, lambda op=op: OPS[op](t("f32 2"))) for op in ("any", "all")),
    *((op, lambda op=op: OPS[op](t("bool 2"), dim=0)) for op in ("argmax", "argmin", "cumsum")),
    *(
        (op, lambda op=op: OPS[op](t("f32 2"), dim=1))
        for op in ("argmax", "argmin", "cumsum", "softmax", "log_softmax")
    ),
    *((op, lambda op=op: OPS[op](t("f32"), dim=0)) for op in ("argmax", "argmin")),
    *((op, lambda op=op: OPS[op](t("i64 2"), dim=0)) for op in ("softmax", "log_softmax")),
    *((op, lambda op=op: OPS[op](t("f32 2 3"), t("f32 2"))) for op in ("layer_norm", "rms_norm")),
    *((op, lambda op=op: OPS[op](t("f32"))) for op in ("layer_norm", "rms_norm")),
    ("layer_norm", lambda: ops.layer_norm(t("f32 2 3"), axes=3)),
    ("layer_norm", lambda: ops.layer_norm(t("f32 2 3"), axes=0)),
    ("matmul", lambda: ops.matmul(t("f32 2 3"), t("f32 2 3"))),
    ("matmul", lambda: ops.matmul(t("f32 3"), t("f32 3 2"))),
    ("matmul", lambda: ops.matmul(t("f32 2 4 3"), t("f32 5 3 4"))),
    ("matmul", lambda: ops.matmul(t("bool 2 3"), t("bool 3 2"))),
    ("matmul", lambda: ops.matmul(t("f32 2 s"), t("f32 t 2"))),
    ("linear", lambda: ops.linear(t("f32 2 3"), t("f32 3 2"))),
    ("linear", lambda: ops.linear(t("f32 2 3"), t("f32 4 3"), t("f32 3"))),
    ("linear", lambda: ops.linear(t("f32"), t("f32 4 3"))),
    ("weight_scale", lambda: ops.weight_scale(t("f32 2 s"), bits=8, group=4)),
    ("weight_scale", lambda: ops.weight_scale(t("f32 2 4"), bits=3, group=4)),
    ("weight_scale", lambda: ops.weight_scale(t("f32 2 4"), bits=4, group=4)),
    ("weight_scale", lambda: ops.weight_scale(t("i32 2 4"), bits=8, group=4)),
    ("weight_zero", lambda: ops.weight_zero(t("f32 2 7"), t("f32 2 1"), bits=8, group=4)),
    ("quantize_weight", lambda: ops.quantize_weight(t("f32 2 7"), t("f64 2 2"), bits=8, group=4)),
    ("quantize_weight", lambda: ops.quantize_weight(t("f32 2 7"), t("f32 2 2"), t("i8 2 2"), bits=8, group=4)),
    ("dequantize", lambda: ops.dequantize(t("i8 2 7"), t("f32 2 1"), bits=4, group=8, features=7)),
    ("dequantize", lambda: ops.dequantize(t("u8 2 7"), t("f32 2 2"), bits=8, group=4, features=7)),
    ("dequantize", lambda: ops.dequantize(t("i32 2 1"), t("f32 2 2"), bits=4, group=8, features=7)),
    ("dequantize", lambda: ops.dequantize(t("i32 2 2"), t("f32 2 2"), t("u8 2 1"), bits=4, group=8, features=11)),
    ("float8_value", lambda: ops.float8_value(t("i8 2 7"))),
    ("weight_scale", lambda: ops.weight_scale(t("f32 2 8"), bits=4, group=8, float8=True)),
    ("weight_scale", lambda: ops.weight_scale(t("f32 2 8"), bits=8, group=8, zeros=True, float8=True)),
    ("dequantize", lambda: ops.dequantize(t("i8 2 7"), t("f32 2 1"), bits=8, group=8, features=7, float8=True)),
    ("quantized_linear", lambda: ops.quantized_linear(t("f32 3 6"), t("i8 2 7"), t("f32 2 1"), bits=8, group=7)),
    ("quantized_linear", lambda: ops.quantized_linear(t("bf16 3 7"), t("i8 2 7"), t("f32 2 1"), bits=8, group=7)),
    (
        "quantized_linear",
        lambda: ops.quantized_linear(t("f32 7"), t("i8 2 7"), t("f32 2 1"), t("f32 3"), bits=8, group=7),
    ),
    (
        "quantized_linear",
        lambda: ops.quantized_linear(t("f32 7"), t("u8 2 7"), t("f32 2 1"), bits=8, group=7, zeros=True),
    ),
    ("row_scale", lambda: ops.row_scale(t("f32"))),
    ("row_scale", lambda: ops.row_scale(t("i64 3"))),
    ("quantize_rows", lambda: ops.quantize_rows(t("f32 3 7"), t("f32 7"))),
    ("quantize_rows", lambda: ops.quantize_rows(t("bf16 3 7"), t("bf16 3 1"))),
    ("float8_of", lambda: ops.float8_of(t("f64 3 7"))),
    ("float8_linear", lambda: ops.float8_linear(t("f32 3 7"), t("f32 3 1"), t("u8 2 7"), t("f32 2 1"))),
    ("float8_linear", lambda: ops.float8_linear(t("u8 3 7"), t("f32 3 1"), t("i8 2 7"), t("f32 2 1"))),
    ("float8_linear", lambda: ops.float8_linear(t("u8 3 7"), t("f32 3"), t("u8 2 7"), t("f32 2 1"))),
    ("float8_linear", lambda: ops.float8_linear(t("u8 3 7"), t("f32 3 1"), t("u8 2 7"), t("f32 2 2"))),
    ("float8_linear", lambda: ops.float8_linear(t("u8 3 7"), t("f32 3 1"), t("u8 2 7"), t("f32 2 1"), t("f32 3"))),
    ("int8_linear", lambda: ops.int8_linear(t("f32 3 7"), t("f32 3 1"), t("i8 2 7"), t("f32 2 1"))),
    ("int8_linear", lambda: ops.int8_linear(t("i8 3 7"), t("f32 3"), t("i8 2 7"), t("f32 2 1"))),
    ("int8_linear", lambda: ops.int8_linear(t("i8 3 7"), t("f32 3 1"), t("i8 2 6"), t("f32 2 1"))),
    ("int8_linear", lambda: ops.int8_linear(t("i8 3 140000"), t("f32 3 1"), t("i8 2 140000"), t("f32 2 1"))),
    ("reshape", lambda: ops.reshape(t("f32 2 3"), shape=(5,))),
    ("reshape", lambda: ops.reshape(t("f32 2 3"), shape=(-1,))),
    ("reshape", lambda: ops.reshape(t("f32 s 3"), shape=(S, 4))),
    ("reshape", lambda: ops.reshape(t("f32 s"), shape=(T,))),
    ("permute", lambda: ops.permute(t("f32 2 3"), dims=(0, 0))),
    ("permute", lambda: ops.permute(t("f32 2 3"), dims=(0,))),
    ("expand", lambda: ops.expand(t("f32 2 3"), shape=(2, 4))),
    ("expand", lambda: ops.expand(t("f32 2 3"), shape=(3,))),
    ("slice", lambda: ops.slice_(t("f32 4"), dim=0, stop=5)),
    ("slice", lambda: ops.slice_(t("f32 4"), dim=0, start=3, stop=2)),
    ("slice", lambda: ops.slice_(t("f32 4"), dim=0, start=3, stop=2, step=2)),
    ("slice", lambda: ops.slice_(t("f32 4"), dim=0, start=-1, stop=2)),
    ("slice", lambda: ops.slice_(t("f32 4"), dim=0, stop=2, step=0)),
    ("slice", lambda: ops.slice_(t("f32 s"), dim=0, stop=S + 1)),
    ("slice", lambda: ops.slice_(t("f32"), dim=0, stop=0)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=0, size=3, step=2, count=5)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=0, size=3, apart=4, count=2)),
    ("windows", lambda: ops.windows(t("f32 s"), dim=0, size=2, count=S)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=0, size=0, count=1)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=0, size=1, step=0, count=1)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=0, size=2, apart=0, count=1)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=0, size=1, count=-1)),
    ("windows", lambda: ops.windows(t("f32 9"), dim=1, size=1, count=1)),
    ("windows", lambda: ops.windows(t("f32"), dim=0, size=1, count=1)),
    ("flip", lambda: ops.flip(t("f32 2"), dims=(1,))),
    ("concat", lambda: ops.concat(t("f32 2 3"), t("f32 2 4"), dim=0)),
    ("concat", lambda: ops.concat(t("f32"), dim=0)),
    ("concat", lambda: ops.concat(t("f32 2"), t("f32 2 2"), dim=0)),
    ("pad", lambda: ops.pad(t("f32 2 3"), low=(1,), high=(1,))),
    ("pad", lambda: ops.pad(t("f32 2"), low=(-1,), high=(-2,))),
    ("pad", lambda: ops.pad(t("i64 2"), low=(1,), high=(1,), value=float("inf"))),
    ("index", lambda: ops.index(t("f32 2"), t("f32 2"))),
    ("index", lambda: ops.index(t("f32 2"), t("bool 2"))),
    ("index", lambda: ops.index(t("f32 2 3"), t("i64 2"), t("i64 2"), dim=1)),
    ("index", lambda: ops.index(t("f32 2 3"), t("i64 2"), t("i64 3"))),
    ("gather", lambda: ops.gather(t("f32 2 3"), t("i64 3"), dim=0)),
    ("gather", lambda: ops.gather(t("f32 2 3"), t("i64 3 3"), dim=1)),
    ("index_put", lambda: ops.index_put(t("f32 2 3"), t("f32 2 3"), t("i64 3"))),
    ("index_put", lambda: ops.index_put(t("f32 2 3"), t("i64 3"), t("i64 1"))),
    ("scatter", lambda: ops.scatter(t("f32 2 3"), t("i64 2 3"), t("f32 2 2"), dim=1)),
    ("scatter", lambda: ops.scatter(t("f32 2 3"), t("i64 4 1"), t("f32 4 1"), dim=1)),
    ("scatter", lambda: ops.scatter(t("f32 2"), t("i64 2"), t("f32 2"), dim=0, reduce="mul")),
    ("slice_put", lambda: ops.slice_put(t("f32 2 3"), t("f32 3 3"), dim=1)),
    ("slice_put", lambda: ops.slice_put(t("f32 4"), t("f32 2"), dim=0, start=3)),
    ("slice_put", lambda: ops.slice_put(t("f32 4"), t("f32 3"), dim=0, step=2)),
    ("slice_put", lambda: ops.slice_put(t("f32"), t("f32"), dim=0)),
    ("embedding", lambda: ops.embedding(t("f32 4 3"), t("f32 2"))),
    ("embedding", lambda: ops.embedding(t("f32 4"), t("i64 2"))),
    ("rope", lambda: ops.rope(t("f32 2 3"), t("f32 2 3"), t("f32 2 3"))),
    ("rope", lambda: ops.rope(t("f32 2 4"), t("f32 2 4"), t("f32 4"))),
    ("rope", lambda: ops.rope(t("f32 4"), t("f32 2 4"), t("f32 2 4"))),
    ("attention", lambda: ops.attention(t("f32 2 3 4"), t("f32 2 3 4"), t("f32 2 3 4"), scale=1.0)),
    ("attention", lambda: ops.attention(t("f32 1 3 4 8"), t("f32 1 2 4 8"), t("f32 1 2 4 8"), scale=1.0)),
    ("attention", lambda: ops.attention(t("f32 1 2 4 8"), t("f32 1 2 4 6"), t("f32 1 2 4 8"), scale=1.0)),
    ("attention", lambda: ops.attention(*[t("f32 1 2 4 8")] * 3, t("f32 3 5"), scale=1.0)),
    ("attention", lambda: ops.attention(*[t("f32 1 2 4 8")] * 3, t("f64 4 4"), scale=1.0)),
    ("attention", lambda: ops.attention(*[t("i64 1 2 4 8")] * 3, scale=1.0)),
    ("attention", lambda: ops.attention(*[t("f32 1 2 4 8")] * 3, t("i64"), scale=1.0)),
    ("attention", lambda: ops.attention(*[t("f32 1 2 4 8")] * 3, t("i64 4"), scale=1.0, causal=True)),
    ("attention", lambda: ops.attention(*[t("f32 1 2 4 8")] * 3, t("i64"), t("bool 4 4"), scale=1.0, causal=True)),
    ("attention", lambda: ops.attention(*[t("f32 1 2 4 8")] * 3, t("bool 4 4"), t("bool 4 4"), scale=1.0)),
    ("recurrence", lambda: ops.recurrence(t("f32 5 2 4"), t("f32 4 4"), t("f32 4"), t("f32 2 4"), kind="rnn")),
    ("recurrence", lambda: ops.recurrence(t("f32 5 2 4"), t("f32 4 4"), t("f32 4"), t("f32 2 4"), kind="lstm")),
    ("recurrence", lambda: ops.recurrence(t("f32 5 2 4"), t("f32 4 4"), t("f32"), t("f32 2 4"), kind="tanh")),
    ("recurrence", lambda: ops.recurrence(t("i64 5 2 4"), t("i64 4 4"), t("i64 4"), t("i64 2 4"), kind="tanh")),
    ("input", lambda: ops.input(name="x", shape=(-1,), dtype=torch.float32)),
    ("input", lambda: ops.input(name=3, shape=(1,), dtype=torch.float32)),
    ("weight", lambda: ops.weight(name="w", shape=(0.5,), dtype=torch.float32)),
    ("full", lambda: ops.full(shape=(2,), value=0.5, dtype=torch.int64)),
    ("full", lambda: ops.full(shape=(2,), value=float("nan"), dtype=torch.int64)),
    ("full", lambda: ops.full(shape=(2,), value=300, dtype=torch.uint8)),
    ("arange", lambda: ops.arange(size=-1)),
    ("arange", lambda: ops.arange(size=2, step=0.5)),
    ("arange", lambda: ops.arange(size=2, dtype=torch.bool)),
    ("fused", lambda: ops.fused(t("f32 2"), region=_region(), layouts=((0,),))),
    ("fused", lambda: ops.fused(t("f32 3"), region=_region(), layouts=())),
    ("fused", lambda: ops.fused(t("f32 3"), region=_region(), layouts=((1,),))),
    ("fused", lambda: ops.fused(t("f32 3"), region="text", layouts=())),
    ("item", lambda: ops.item(t("f32 3"), index=0)),
    ("item", lambda: ops.item(_call(2), index=2)),
    ("add", lambda: ops.add(_call(2), t("f32 2"))),
    ("aten.call", lambda: ops.aten_call(target="aten.rand", args=(), types=())),
    ("aten.call", lambda: ops.aten_call(_call(2), target="aten.neg.default", args=(), types=(t("f32 2").type,))),
]


def _region() -> Graph:
    x = ops.input(name="0", shape=(3,), dtype=torch.float32)
    return Graph([x], [ops.exp(x)])


def _call(results: int) -> Node:
    types = (TensorType((2,), torch.float32),) * results
    return ops.aten_call(t("f32 2"), target="aten.f", args=(("operand", 0),), types=types)


def test_every_operator_refuses_something() -> None:
    assert set(BAD_DTYPES) | {op for op, _ in CASES} == set(OPS)


@pytest.mark.parametrize(("op", "dtype"), BAD_DTYPES.items())
def test_dtype_is_refused(op: str, dtype: str) -> None:
    with pytest.raises(TypeRuleError, match=f"^{op}: needs a"):
        OPS[op](*[t(f"{dtype} 2")] * OPS[op].arity[0])


@pytest.mark.parametrize("op", [op for op in BAD_DTYPES if OPS[op].arity[0] == 2])
def test_shapes_that_do_not_broadcast_are_refused(op: str) -> None:
    dtype = "i64" if op in BITS_ONLY else "f32"
    for left, right in (("2 3", "2"), ("s", "t"), ("s", "2"), ("2 s", "2 t")):
        with pytest.raises(TypeRuleError, match="cannot broadcast"):
            OPS[op](t(f"{dtype} {left}"), t(f"{dtype} {right}"))


@pytest.mark.parametrize(("op", "build"), CASES, ids=[f"{op}-{i}" for i, (op, _) in enumerate(CASES)])
def test_operands_and_attributes_are_refused(op: str, build: Callable[[], Node]) -> None:
    with pytest.raises(TypeRuleError):
        build()


def test_attributes_must_be_known_and_complete() -> None:
    with pytest.raises(TypeRuleError, match="softmax needs the attribute dim"):
        ops.softmax(t("f32 2"))
    with pytest.raises(TypeRuleError, match="exp has no attribute base"):
        ops.exp(t("f32 2"), base=2)
    with pytest.raises(TypeRuleError, match="not a node"):
        ops.exp(torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(TypeRuleError, match="cannot hold"):
        ops.aten_call(target="aten.f", args=(("value", {1: 2}),), types=(t("f32 2").type,))


def test_a_reshape_that_a_division_decides_is_taken_at_its_word() -> None:
    assert ops.reshape(t("f32 s"), shape=(S // 2, 2)).shape == (S // 2, 2)
    with pytest.raises(TypeRuleError):
        ops.reshape(t("f32 s"), shape=(S, 2))


@pytest.mark.parametrize(
    "target", ["aten", "aten.add", "aten.nothing.default", "aten.add.__class__", "load_library.x", ""]
)
def test_only_operators_of_pytorch_are_called(target: str) -> None:
    with pytest.raises(TypeRuleError):
        ops.resolve(target)
