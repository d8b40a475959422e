"""Kernels ask for the memory that they read later: their text is run as Python, which notes both."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import candidates
from smelt.ir import ops

from .harness import Case, operand, tvm_module
from .matmul_cases import linear_case
from .quantized_cases import few_bits

LINE = 64  # bytes
MACHINE = Machine(has_bf16_dot=True)
BF16 = torch.bfloat16


class Reads:
    """The cache lines of a parameter, in the order in which they are first read, and which were asked for before."""

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self.read: dict[int, bool] = {}

    def ask(self, line: int) -> None:
        self.asked.add(line)

    def load(self, line: int) -> None:
        self.read.setdefault(line, line in self.asked)


class Buffer:
    """Memory that holds zeros; what shares a handle shares the reads."""

    def __init__(self, reads: Reads, itemsize: int, count: int) -> None:
        self.reads, self.itemsize, self.shape, self.asking = reads, itemsize, (count,), False
        self.values: dict[int, Any] = {}
        self.data = self

    def __getitem__(self, index: int) -> Any:
        line = index * self.itemsize // LINE
        (self.reads.ask if self.asking else self.reads.load)(line)
        return self.values.get(index, 0)

    def __setitem__(self, index: int, value: Any) -> None:
        self.values[index] = value


class Vocabulary(SimpleNamespace):
    """What kernels call: whatever is not given gives 1."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: 1


def run_text(text: str, params: list[str]) -> dict[str, Reads]:
    """What a kernel without size symbols reads of its parameters."""
    reads = {name: Reads() for name in params}
    buffers: list[Buffer] = []

    def declared(shape: tuple[int], dtype: str, *, data: Any = None, **_: Any) -> Buffer:
        bits = int("".join(c for c in dtype.split("x")[0] if c.isdigit()))
        made = Buffer(data.reads if data is not None else Reads(), bits // 8, shape[0])
        if data is None or isinstance(data, Buffer):
            made.values = data.values if data is not None else {}
        buffers.append(made)
        return made

    def prefetch(read: Callable[[], Any]) -> None:
        for buffer in buffers:
            buffer.asking = True
        read()
        for buffer in buffers:
            buffer.asking = False

    script = Vocabulary(
        prim_func=lambda **_: lambda function: function,
        handle=lambda _: None,
        alloc_buffer=declared,
        decl_buffer=declared,
        int64=int,
        int32=int,
        float32=float,
        Cast=lambda _, value: value,
        Select=lambda condition, then, other: then if condition else other,
        floordiv=operator.floordiv,
        floormod=operator.mod,
        min=min,
        max=max,
        And=lambda a, b: a and b,
        **dict.fromkeys(("parallel", "vectorized", "unroll"), range),
    )
    helpers = SimpleNamespace(prefetch=prefetch, from_bf16=float, to_bf16=int, rolled=lambda: None)
    names = {"T": script, "helpers": helpers}
    names |= dict.fromkeys(("nibbles", "dots", "floats", "integers", "vmath"), Vocabulary())
    exec(text.replace("helpers.prefetch(", "helpers.prefetch(lambda: "), names)
    handles = [SimpleNamespace(reads=reads.get(name, Reads()), values={}) for name in [*params, "err"]]
    names["k"](*handles)  # type: ignore[operator]
    return reads


def kernel_reads(case: Case) -> dict[str, Reads]:
    program = case.program()
    text = tvm_module.kernel_text("k", program, candidates(program, MACHINE)[0])
    return run_text(text, [p.name for p in program.params])


@pytest.mark.parametrize(
    ("case", "streams"),
    [
        (linear_case((1,), 128, 200), ["in1"]),
        (linear_case((1,), 250, 200, BF16), ["in1"]),
        (linear_case((16,), 64, 144), ["in1"]),
        (linear_case((9,), 100, 144, BF16), ["in1"]),
        (linear_case((17,), 64, 96), ["in1"]),
        (few_bits(256, 200, 8, rows=(1,)), ["in1"]),
        (few_bits(256, 200, 4, 32, rows=(1,)), ["in1", "in2"]),
    ],
    ids=["float32", "bfloat16", "float32 16 rows", "bfloat16 9 rows", "float32 17 rows", "int8", "int4 and its scales"],
)
def test_a_weight_is_asked_for_before_it_is_read(
    case: Case, streams: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smelt.codegen.tvm.operands.CACHED", 0)
    for module in ("operands", "quantized"):
        monkeypatch.setattr(f"smelt.codegen.tvm.{module}.AHEAD", 1024)
    reads = kernel_reads(case)
    for name in streams:
        lines = reads[name].read
        first = list(lines)[: len(lines) // 3]  # of the first panel, and what is read before 1024 bytes were asked for
        missed = [line for line, asked in lines.items() if not asked]
        assert set(missed) <= set(first), f"{len(missed)} of {len(lines)} lines of {name} are not asked for"
        assert reads[name].asked


@pytest.mark.parametrize("terms", [64, 2048], ids=["in one go", "in blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_residual_is_asked_for_before_it_is_read(terms: int, dtype: torch.dtype) -> None:
    residual = operand(3, (21, 64), dtype)
    case = linear_case((21,), terms, 64, dtype)
    case = Case([*case.inputs, residual], [ops.add(case.outputs[0], residual)], weights=case.weights)
    read = kernel_reads(case)["in3"].read
    assert len(read) == 21 * 64 * dtype.itemsize // LINE
    assert all(read.values())


def test_a_bias_is_not_asked_for() -> None:
    assert not kernel_reads(linear_case((21,), 64, 64))["in2"].asked


def test_a_weight_that_a_cache_holds_is_not_asked_for() -> None:
    assert not kernel_reads(linear_case((1,), 64, 48))["in1"].asked


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("heads", [2, 6])
def test_attention_asks_for_keys_and_values(dtype: torch.dtype, heads: int) -> None:
    q, k, v = (operand(i, (1, h, n, 32), dtype) for i, (h, n) in enumerate(((heads, 1), (2, 256), (2, 256))))
    case = Case([q, k, v], [ops.attention(q, k, v, causal=False, scale=0.2, softcap=0.0)])
    reads = kernel_reads(case)
    for name in ("in1", "in2"):
        lines = reads[name].read
        assert len(lines) == 2 * 256 * 32 * dtype.itemsize // LINE
        missed = sum(not asked for asked in lines.values())
        assert missed <= len(lines) // 4  # the first block of each head


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_attention_of_many_queries_asks_for_the_next_head(dtype: torch.dtype) -> None:
    heads, n = 3, 77  # the last block is one of many queries, too
    q, k, v = (operand(i, (1, heads, n, 32), dtype) for i in range(3))
    reads = kernel_reads(Case([q, k, v], [ops.attention(q, k, v, causal=False, scale=0.2, softcap=0.0)]))
    for name, first in (("in0", 32), ("in1", n), ("in2", n)):  # rows of the first task, of the first head
        lines = reads[name].read
        assert len(lines) == -(-heads * n * 32 * dtype.itemsize // LINE)
        missed = [line for line, asked in lines.items() if not asked]
        assert all(line * LINE < first * 32 * dtype.itemsize for line in missed)
        asked = reads[name].asked
        assert len(asked) <= 2 * len(lines)


def test_heads_that_no_cache_holds_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.codegen.tvm.prefill_ahead.HEAD_BYTES", 1 << 10)
    q, k, v = (operand(i, (1, 2, 45, 32), torch.float32) for i in range(3))
    reads = kernel_reads(Case([q, k, v], [ops.attention(q, k, v, causal=False, scale=0.2, softcap=0.0)]))
    assert not reads["in1"].asked
    assert not reads["in2"].asked
    assert reads["in0"].asked
