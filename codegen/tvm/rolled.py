"""Loops that LLVM must leave as they are.

It takes several turns of a loop together where it finds them small enough, by a count of instructions that some
simplification elsewhere moves across the limit. The loop over the terms of a register tile has as many sums as there
are registers for: with the operands of two turns they do not fit, and the kernel takes up to 1.9 times as long.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .intrinsic import register


def _define(symbol: str, _: int) -> tuple[str, set[str]]:
    return (
        f"""define i32 @{symbol}() alwaysinline {{
  call void asm sideeffect "", ""()
  ret i32 0
}}""",
        set(),
    )


_ROLLED = register("rolled", "nothing, without an instruction, which LLVM knows nothing of", _define, pure=False)


def rolled() -> Any:
    """A statement for the body of a loop, which keeps LLVM from unrolling it."""
    return tirx.call_intrin("int32", _ROLLED)
