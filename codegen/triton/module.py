"""Kernel programs with schedules as files of Triton source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...ir.types import SymbolRange
from ..gpu import GpuAttentionSchedule, GpuSchedule
from ..program import Program, Skeleton
from .attention import emit_attention
from .file import FileWriter, KernelFile
from .map import emit_map
from .matmul import emit_matmul
from .recurrence import emit_recurrence
from .rows import emit_rows
from .scatter import emit_scatter
from .width import bounds_of

_EMITTERS: dict[Skeleton, Callable[[FileWriter, Any], None]] = {
    Skeleton.MAP: emit_map,
    Skeleton.ROWS: emit_rows,
    Skeleton.MATMUL: emit_matmul,
    Skeleton.ATTENTION: emit_attention,
    Skeleton.RECURRENCE: emit_recurrence,
    Skeleton.SCATTER: emit_scatter,
}


def emit(name: str, program: Program, schedule: GpuSchedule, ranges: Iterable[SymbolRange] = ()) -> KernelFile:
    """The source of a kernel, and how it is launched; with offsets of 64 bits where sizes may need them, and of 32.

    Args:
        name: what its functions are called.
        program: what it computes.
        schedule: how, of the kind that the program's skeleton has.
        ranges: the sizes that its symbols may have: where they are bounded, offsets may fit 32 bits.

    Raises:
        UnsupportedError: the program has something that this backend cannot write.
    """
    ranges = tuple(ranges)
    found = _of_both_widths(name, program, schedule, ranges)
    if not isinstance(schedule, GpuAttentionSchedule) or not schedule.alone or schedule.splits == 1:
        return found
    if found.bits == 64 and found.narrow is None:
        return found
    alone = _written(f"{name}_alone", program, replace(schedule, splits=1, alone=0), ranges, 32)
    (launch,) = alone.launches
    return replace(found, alone=alone, points=launch.programs, enough=schedule.alone)


def _of_both_widths(name: str, program: Program, schedule: GpuSchedule, ranges: tuple[SymbolRange, ...]) -> KernelFile:
    found = _written(name, program, schedule, ranges, 0)
    if found.bits == 32 or not program.symbols:
        return found
    narrow = _written(name, program, schedule, ranges, 32)
    return replace(found, narrow=narrow, bounds=bounds_of(program, narrow.scratch))


def _written(
    name: str, program: Program, schedule: GpuSchedule, ranges: tuple[SymbolRange, ...], bits: int
) -> KernelFile:
    file = FileWriter(name, program, ranges, bits)
    _EMITTERS[program.skeleton](file, schedule)
    return file.file()
