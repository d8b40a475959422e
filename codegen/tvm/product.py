"""Which loops a product gets: of numbers as they are, of groups for dot instructions, of few bits, of few columns."""

from __future__ import annotations

from ..program import Program, dot_stage
from ..quantized import few_bits
from ..schedule import MatmulSchedule
from .groups import DotMatmul
from .matmul import Matmul, emit_with
from .narrow import NarrowMatmul
from .quantized import QuantizedMatmul
from .source import Source


def emit_product(program: Program, schedule: MatmulSchedule, src: Source) -> None:
    """Write the loops of a MATMUL kernel."""
    if few_bits(program, dot_stage(program)) is not None:
        loops: type[Matmul] = QuantizedMatmul
    elif schedule.tile_n < schedule.vector:
        loops = NarrowMatmul
    else:
        loops = Matmul if schedule.group == 1 else DotMatmul
    emit_with(loops, program, schedule, src)
