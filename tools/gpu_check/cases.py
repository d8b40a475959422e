"""The regions that the emitter's tests are made of, launched on a GPU at awkward sizes and held against float64.

They are data in ``tests/codegen``, which a checkout has and an installed package has not. As in the tests, results are
poisoned before a launch, and every buffer stands between zones that must not change.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...codegen.gpu import GPU_MACHINES, GpuAttentionSchedule, GpuRowsSchedule, GpuSchedule
from ...codegen.gpu_schedule import default_gpu_schedule
from ...codegen.lower import strides_of
from ...codegen.program import Format, Program, Skeleton
from ...codegen.triton.expression import ERROR
from ...codegen.triton.file import KernelFile
from ...codegen.triton.launch import run
from ...codegen.triton.module import emit
from ...ir.errors import SmeltError, UnsupportedError
from .measure import Progress, is_lost, said
from .row import SMELT

FOLDER = "smelt.tests.codegen"
POISON = 0xFF  # in every byte: NaN as a float, -1 as an integer
ZONE = 512  # bytes on each side of a buffer
MOST_SIZES = 2  # of a case: each may be compiled anew
DRY_CASES = 2
TOO_LARGE = "OutOfResources"  # what Triton calls a kernel that needs more than this GPU has
Told = dict[str, dict[str, str]]
PARTS = GpuAttentionSchedule(1, 16, few=True, splits=3)
PASSES = GpuRowsSchedule(rows=2, columns=8, at_once=False)
MAPS, ROWS, SCATTERS = "map", "rows", "scatter"


@cache
def _tables(name: str) -> Any:
    try:
        return import_module(f"{FOLDER}.{name}")
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"{error}: the cases are in tests/codegen of a checkout") from error


def faster_interpreter() -> None:
    """Let Triton's interpreter take the language's place once, not at every call, where this is a checkout."""
    with suppress(UnsupportedError):
        _tables("interpreter").patch_once()


@cache
def cases_of(group: str) -> dict[str, Any]:
    """The cases of a class of kernels, by name.

    Raises:
        UnsupportedError: this is no checkout.
    """
    if group in (MAPS, ROWS, SCATTERS):
        skeleton = {MAPS: Skeleton.MAP, ROWS: Skeleton.ROWS, SCATTERS: Skeleton.SCATTER}[group]
        return {n: c for n, c in _tables("rows_cases").CASES.items() if c.program().skeleton is skeleton}
    if group == "matmul":
        module = _tables("matmul_cases")
        return {**module.linears(), **module.activations()}
    if group == "cached":
        return dict(_tables("cached_cases").CASES)
    found = _tables(f"{group}_cases").cases()
    # a schedule that is given is one for a CPU
    return {name: case for name, case in found.items() if group != "recurrence" or case.schedule is None}


def check_cases(
    device: torch.device, dry: bool, progress: Progress, until: float, *, group: str, batch: int, batches: int
) -> dict[str, Any]:
    """The record of a row: how many cases agreed, which were wrong, failed or were refused, and why.

    No case is begun after ``until``, on the clock of ``time.monotonic``.
    """
    named = sorted(cases_of(group).items())
    random.Random(0).shuffle(named)  # alike cases go to different batches
    named = named[batch::batches][: DRY_CASES if dry else None]
    told: Told = {"wrong": {}, "failed": {}, "refused": {}}
    tried = 0
    for name, case in named:
        if time.monotonic() > until:
            break
        tried += 1
        progress(SMELT, name)
        kind, why = outcome(case, _schedules(case), group, device, 1 if dry else MOST_SIZES)
        if kind:
            told[kind][name] = why
    return record_of(told, tried, dry, len(named) - tried)


def record_of(told: Told, count: int, dry: bool, left: int) -> dict[str, Any]:
    """The record of so many kernels, of which some were not well, and for some no time was left."""
    bad = told["wrong"] or told["failed"]
    status = "wrong" if told["wrong"] else "failed" if bad else "dry" if dry else "ok"
    agreed = count - sum(map(len, told.values()))
    unreached = {"left": left} if left else {}
    return {"status": status, "agreed": agreed, **unreached, **{kind: found for kind, found in told.items() if found}}


def outcome(
    case: Any, schedules: Sequence[GpuSchedule | None], group: str, device: torch.device, most: int
) -> tuple[str, str]:
    """What became of a case with some schedules at ``most`` sizes: a kind of fault, empty for none, and why."""
    try:
        kernels = [kernel_of(case, schedule) for schedule in schedules]
    except SmeltError as error:
        return "refused", said(error)
    try:
        for kernel in kernels:
            for sizes in telling(case.sizes, most):
                check(kernel, sizes, device, scaled=group == "recurrence")
    except AssertionError as error:
        return "wrong", said(error)
    except Exception as error:  # whatever Triton's compiler or the GPU raises
        if is_lost():
            raise  # nothing can be done in this process any more
        return "refused" if type(error).__name__ == TOO_LARGE else "failed", said(error)
    return "", ""


def telling(sizes: Sequence[Mapping[str, int]], most: int) -> list[Mapping[str, int]]:
    """The last of some sizes, and one of nothing where there is one."""
    empty = [s for s in sizes if 0 in s.values()]
    full = [s for s in sizes if 0 not in s.values()]
    return [*full[::-1][: max(most - len(empty[:1]), 1)], *empty[:1]][:most]


@dataclass(frozen=True)
class Kernel:
    """A case's program and its source."""

    case: Any
    program: Program
    file: KernelFile


def kernel_of(case: Any, schedule: GpuSchedule | None) -> Kernel:
    """The kernel of a case, by default with its default schedule."""
    program = case.program()
    chosen = schedule or default_gpu_schedule(program, GPU_MACHINES["sm_90"])
    return Kernel(case, program, emit("kernel", program, chosen, case.region.symbols))


def _schedules(case: Any) -> list[GpuSchedule | None]:
    """The default, and another way to compute the same where there is one."""
    program = case.program()
    if program.skeleton is Skeleton.ATTENTION:
        return [None, PARTS]
    default = default_gpu_schedule(program, GPU_MACHINES["sm_90"])
    small = all(p.type.rank < 3 for p in program.inputs)
    return [None, PASSES] if isinstance(default, GpuRowsSchedule) and default.at_once and small else [None]


# --- one launch -------------------------------------------------------------------------------------------------------


class Memory:
    """A tensor of any strides in memory of its own on the device, poisoned at first."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = 0 if 0 in shape else span * dtype.itemsize
        self.bytes = torch.full((2 * ZONE + size,), POISON, dtype=torch.uint8, device=device)
        self.flat = self.bytes[ZONE : ZONE + size + ZONE // 2].view(dtype)  # never empty: a launch takes its address
        empty = torch.empty(shape, dtype=dtype, device=device)
        self.tensor = torch.as_strided(self.flat, shape, strides) if size else empty
        self.size = size

    def intact(self) -> bool:
        """Whether nothing was written outside the tensor."""
        around = torch.cat((self.bytes[:ZONE], self.bytes[ZONE + self.size :]))
        return bool((around == POISON).all())


def check(kernel: Kernel, sizes: Mapping[str, int], device: torch.device, scaled: bool = False) -> None:
    """Launch a kernel and compare.

    Raises:
        AssertionError: a result is wrong, an input changed, something was written outside, or an index was taken for
            out of range.
    """
    case, program = kernel.case, kernel.program
    torch.manual_seed(0)
    tensors = case.tensors(sizes)
    if scaled:  # weights that keep the states of a recurrent layer from growing
        tensors[1] = (tensors[1].double() / tensors[1].shape[1] ** 0.5 / 2).to(tensors[1].dtype)
    known = case.symbols(sizes)
    held = {
        p.name: _operand(kernel, i, x, device) for i, (p, x) in enumerate(zip(program.inputs, tensors, strict=True))
    }
    before = {name: m.bytes.clone() for name, m in held.items()}
    numbers = _tables("cases").numbers
    for param, node, layout in zip(program.outputs, case.outputs, case.output_layouts, strict=True):
        strides = numbers(strides_of(node.shape, layout), known)
        held[param.name] = Memory(numbers(node.shape, known), strides, node.dtype, device)
    for p in kernel.file.scratch:
        held[p.name] = Memory(numbers(p.type.shape, known), numbers(p.strides, known), p.type.dtype, device)
    held[ERROR] = Memory((1,), (1,), torch.int64, device)
    held[ERROR].tensor.zero_()
    run(kernel.file, {name: m.flat for name, m in held.items()}, known)
    at = f"at {dict(sizes)}"
    for name, m in held.items():
        assert m.intact(), f"{at}: written outside of {name}"
        assert name not in before or torch.equal(m.bytes, before[name]), f"{at}: {name} was changed"
    assert not held[ERROR].tensor.item(), f"{at}: an index was taken for out of range"
    found = [held[p.name].tensor.cpu() for p in program.outputs]
    _compare(case, tensors, sizes, found, at)


def _operand(kernel: Kernel, position: int, tensor: Tensor, device: torch.device) -> Memory:
    # a weight that the CPU packs is read as the model holds it
    packed = kernel.program.inputs[position].format is Format.PANELS
    layout = range(tensor.ndim) if packed else kernel.case.layout(position)
    strides = _tables("cases").numbers(strides_of(tuple(tensor.shape), layout), {})
    made = Memory(tensor.shape, strides, tensor.dtype, device)
    made.tensor.copy_(tensor)
    return made


def _compare(case: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int], found: Sequence[Tensor], at: str) -> None:
    module = _tables("cases")
    exact, own = case.meaning(tensors, sizes, torch.float64), case.meaning(tensors, sizes)
    for wide, eager, ours in zip(exact, own, found, strict=True):
        expected = wide.to(eager.dtype) if eager.dtype.is_floating_point else eager
        rtol, atol = case.rtol or module.RTOL.get(eager.dtype, 0), case.rtol or module.ATOL.get(eager.dtype, 0)
        module.same(ours, expected, rtol, atol, at)
