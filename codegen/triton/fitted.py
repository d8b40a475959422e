"""Functions compiled so that their registers fit.

The assembler aims at so many programs on a processor, and spills some registers to get there. It does not know how many
there can be for other reasons: shared memory, or a grid of few programs. Where it spills, it is asked again with limits
at which there are fewer programs, and last of all for twice the warps, each thread of which holds half of a tile. Where
nothing helps, its own choice stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .file import Launch
from .machine_code import registers_of, spills_of

PER_PROCESSOR = 65536  # registers, of every GPU that kernels are written for
LIMITS = (128, 168, 255)  # of a thread: 4, 3 and 2 programs of 4 warps on a processor
MOST_WARPS = 16  # of a program

Options = Mapping[str, Any]


def options_of(launch: Launch) -> dict[str, Any]:
    """What a function is compiled with at first."""
    return {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}


def fitted(launch: Launch, compile: Callable[[Options], Any]) -> Any:
    """A function as Triton compiles it: with the first limit on its registers, or number of warps, that spills none.

    ``compile`` gives a ``triton.compiler.CompiledKernel`` for options. Nothing but the machine code decides, so that
    equal functions are compiled equally.
    """
    best = compile(options_of(launch))
    least = _spills(best)
    if not least:
        return best
    others: list[Options] = [{"maxnreg": n} for n in limits(registers_of(best.asm["cubin"]), launch.warps)]
    if 2 * launch.warps <= MOST_WARPS:
        others.append({"num_warps": 2 * launch.warps})
    for other in others:
        found = compile({**options_of(launch), **other})
        spills = _spills(found)
        if spills < least:
            best, least = found, spills
        if not least:
            break
    return best


def limits(registers: int, warps: int) -> Sequence[int]:
    """The limits on a thread's registers to try where that many were not enough."""
    return [n for n in LIMITS if n > registers and n * 32 * warps <= PER_PROCESSOR]


def _spills(compiled: Any) -> int:
    """What a compiled function spills; nothing where its machine code does not say so in a way that is known."""
    try:
        return spills_of(compiled.asm["cubin"], compiled.asm["ptx"])
    except (KeyError, ValueError):
        return 0
