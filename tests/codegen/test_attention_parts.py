"""Attention of few queries and fewer heads than threads: the keys of a head in parts, put together in order."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from smelt.codegen.attention import attention_problem
from smelt.codegen.machine import Machine
from smelt.codegen.program import Program
from smelt.codegen.schedule import AttentionSchedule, default_schedule
from smelt.codegen.tvm.decode_parts import cuts_keys
from smelt.ir import ops
from smelt.ir.node import Node

from .attention_cases import B, K, S, case
from .cached_cases import from_offset, stored
from .harness import Case, Kernel, build, operand, tvm_module

THREADS = (2, 3, 8)
LENGTHS = (0, 1, 63, 65, 255, 256, 257, 513, 1000)
SIZES = [{"b": b, "s": s, "k": k} for b, s, k in [(1, 1, 513), (1, 5, 300), (2, 8, 290), (5, 3, 270), (1, 40, 130)]]


def one_head(queries: Any = 1, **rest: Any) -> Case:
    """Four heads of queries on one of keys and values."""
    return case(heads=4, groups=4, sizes=SIZES, **rest)


def window() -> Case:
    """The last 70 keys before a position, which is what a layer that slides makes of its mask."""
    q, k, v = operand(0, (B, 4, 1, 32)), operand(1, (B, 1, K, 32)), operand(2, (B, 1, K, 32))
    position = operand(3, (), torch.int64)
    at = ops.arange(size=K)
    seen = ops.bit_and(ops.le(at, position), ops.gt(at, ops.sub(position, ops.scalar(70, torch.int64))))
    out = ops.attention(q, k, v, ops.reshape(seen, shape=(1, 1, 1, K)), scale=0.2)
    return Case([q, k, v, position], [out], [{"b": 1, "k": k} for k in LENGTHS[1:]], high=60, low=-3, rtol=2e-5)


def followed() -> Case:
    """With more after it, at the same point."""
    q, k, v = operand(0, (B, 2, 1, 16)), operand(1, (B, 1, K, 16)), operand(2, (B, 1, K, 16))
    more = operand(3, (B, 2, 1, 16))
    out: Node = ops.add(ops.tanh(ops.attention(q, k, v, scale=0.25)), more)
    return Case([q, k, v, more], [out], [{"b": b, "k": k} for b, k in ((1, 400), (3, 129))], rtol=2e-5)


STEPS = [{"b": b, "k": k} for b in (1, 3) for k in LENGTHS[1:]]


def cases() -> dict[str, Case]:
    return {
        "any number of queries": one_head(),
        "bool mask": one_head(mask=(B, 1, S, K)),
        "capped": one_head(softcap=3.0, causal=True),
        "odd head": one_head(head=17, width=40),
        "bfloat16": one_head(dtype=torch.bfloat16),
        "window": window(),
        "from an offset": from_offset(1, STEPS, 900, mask=True),
        "half the bytes": stored(1, STEPS),
        "more after it": followed(),
    }


FOR_ALL = ("any number of queries", "bool mask", "window")  # with each number of threads


@pytest.fixture(scope="module", params=THREADS)
def kernels(request: pytest.FixtureRequest) -> Any:
    machine = Machine(threads=request.param)
    chosen = {n: c for n, c in cases().items() if request.param == 3 or n in FOR_ALL}
    made = build({n: replace(c, schedule=default_schedule(c.program(), machine)) for n, c in chosen.items()})
    tvm_module.set_threads(request.param)
    yield made
    tvm_module.set_threads(2)


def test_attention(kernels: dict[str, Kernel]) -> None:
    torch.manual_seed(0)
    for kernel in kernels.values():
        for sizes in kernel.case.sizes:
            kernel.check(sizes)


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(kernels: dict[str, Kernel], length: int) -> None:
    for batch in (0, 1, 2):
        kernels["any number of queries"].check({"b": batch, "s": 1, "k": length})


def test_rows_and_parts_that_see_nothing(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["bool mask"], {"b": 2, "s": 2, "k": 600}
    tensors = kernel.case.tensors(sizes)
    tensors[3][0] = False
    tensors[3][1, :, :, 70:] = False  # whole parts, but not all of them
    kernel.check(sizes, tensors)
    assert (kernel.run(tensors, sizes)[0][0] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values_go_through(kernels: dict[str, Kernel], value: float) -> None:
    kernel, sizes = kernels["any number of queries"], {"b": 1, "s": 1, "k": 500}
    for place in (3, 490):
        for at in range(3):
            tensors = kernel.case.tensors(sizes)
            tensors[at][0, 0, 0 if at == 0 else place, 3] = value
            exact = kernel.case.meaning(tensors, sizes, torch.float64)[0]
            found = kernel.run(tensors, sizes)[0]
            torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5, equal_nan=True)


def test_large_scores_in_different_parts(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["any number of queries"], {"b": 1, "s": 2, "k": 700}
    tensors = kernel.case.tensors(sizes)
    tensors[1][:, :, :100] *= 40
    tensors[1][:, :, 600:] *= -40
    kernel.check(sizes, tensors)


def test_runs_do_not_differ(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["any number of queries"], {"b": 1, "s": 1, "k": 1000}
    tensors = kernel.case.tensors(sizes)
    first = kernel.run(tensors, sizes)[0].clone()
    assert all(torch.equal(kernel.run(tensors, sizes)[0], first) for _ in range(20))


def test_keys_are_cut_only_where_heads_are_too_few() -> None:
    def is_cut(heads: int, keys: Any, threads: int) -> bool:
        q, k, v = (operand(i, (B, heads, n, 16)) for i, n in enumerate((1, keys, keys)))
        program = Case([q, k, v], [ops.attention(q, k, v, scale=0.25)]).program()
        text = tvm_module.kernel_text("k", program, default_schedule(program, Machine(threads=threads)))
        return "part_sums" in text

    assert is_cut(1, K, 2)
    assert is_cut(7, K, 8)
    assert not is_cut(2, K, 2)
    assert not is_cut(8, K, 8)
    assert not is_cut(1, K, 1)
    assert not is_cut(1, 256, 2)  # one part has them all
    assert is_cut(1, 257, 2)


def shared(heads: int, head: int, keys: Any, queries: Any = 1) -> Program:
    """Heads of queries on one of keys."""
    q, k, v = (operand(i, (B, *shape, head)) for i, shape in enumerate(((heads, queries), (1, keys), (1, keys))))
    return Case([q, k, v], [ops.attention(q, k, v, scale=0.25)]).program()


@pytest.mark.parametrize(("heads", "head", "most"), [(1, 64, 256), (4, 64, 256), (8, 64, 128), (32, 128, 64)])
def test_more_heads_on_one_take_fewer_keys_for_a_part(heads: int, head: int, most: int) -> None:
    """``most`` keys are one part."""
    for keys in (most, most + 1):
        program = shared(heads, head, keys)
        assert cuts_keys(attention_problem(program), attention_schedule(program, 2)) == (keys > most)


@pytest.mark.parametrize(("heads", "head"), [(1, 64), (8, 64), (32, 128)])
def test_memory_of_parts_takes_no_allocator(heads: int, head: int) -> None:
    """TVM's takes longer than all the rest of a short context."""
    program = shared(heads, head, K)
    text = tvm_module.kernel_text("k", program, attention_schedule(program, 2))
    assert "part_sums" in text
    assert all('scope="local"' in line for line in text.splitlines() if "alloc_buffer" in line)


def test_memory_of_many_parts_is_not_on_the_stack() -> None:
    program = shared(4, 128, K, queries=S)
    text = tvm_module.kernel_text("k", program, attention_schedule(program, 64))
    assert any('scope="local"' not in line for line in text.splitlines() if "alloc_buffer" in line)


def attention_schedule(program: Program, threads: int) -> AttentionSchedule:
    found = default_schedule(program, Machine(threads=threads))
    assert isinstance(found, AttentionSchedule)
    return found


@pytest.mark.parametrize(("heads", "keys", "group"), [(8, 1, 8), (8, 2, 4), (8, 8, 1), (64, 1, 64), (71, 1, 1)])
def test_heads_that_share_what_is_read(heads: int, keys: int, group: int) -> None:
    """One head of keys for all of them too, but for so many that a task could not hold their rows."""
    q, k, v = (operand(i, (B, n, size, 16)) for i, (n, size) in enumerate(((heads, 1), (keys, K), (keys, K))))
    program = Case([q, k, v], [ops.attention(q, k, v, scale=0.25)]).program()
    assert attention_problem(program).group == group
