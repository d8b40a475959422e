"""Kernel programs with schedules as files of Triton source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ...ir.types import SymbolRange
from ..gpu import GpuSchedule
from ..program import Program, Skeleton
from .attention import emit_attention
from .file import FileWriter, KernelFile
from .map import emit_map
from .matmul import emit_matmul
from .recurrence import emit_recurrence
from .rows import emit_rows
from .scatter import emit_scatter

_EMITTERS: dict[Skeleton, Callable[[FileWriter, Any], None]] = {
    Skeleton.MAP: emit_map,
    Skeleton.ROWS: emit_rows,
    Skeleton.MATMUL: emit_matmul,
    Skeleton.ATTENTION: emit_attention,
    Skeleton.RECURRENCE: emit_recurrence,
    Skeleton.SCATTER: emit_scatter,
}


def emit(name: str, program: Program, schedule: GpuSchedule, ranges: Iterable[SymbolRange] = ()) -> KernelFile:
    """The source of a kernel, and how it is launched.

    Args:
        name: what its functions are called.
        program: what it computes.
        schedule: how, of the kind that the program's skeleton has.
        ranges: the sizes that its symbols may have: where they are bounded, offsets may fit 32 bits.

    Raises:
        UnsupportedError: the program has something that this backend cannot write.
    """
    file = FileWriter(name, program, tuple(ranges))
    _EMITTERS[program.skeleton](file, schedule)
    return file.file()
