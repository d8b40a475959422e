"""What is read beside the sums of a product once they are done: asked for while they are computed.

A residual of 2 kB rows lies in the last cache when a tile of rows comes to it, in pieces of three or four lines a row,
which the processor does not foresee: without asking, a product of 512 terms takes 6 to 8 % longer.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..contraction import Contraction
from ..program import Expr, Load, Program, postorder, store_roots
from ..prologue import HELD_ROW
from ..runs import runs_along
from .expression import element_text
from .nest import LINE
from .operands import Operands
from .prefetch import prefetch_text


class Behind:
    """The operands behind a product that differ from row to row, as panels of it read them."""

    def __init__(self, kernel: Operands) -> None:
        self.kernel = kernel
        self.loads = row_loads(kernel.program, kernel.c) if kernel.vectorisable() else ()

    def ask(self, row: str) -> None:
        """Ask for a row's part of each, as wide as the panel; past the last column what lies there is asked for."""
        kernel, width = self.kernel, self.kernel.schedule.tile_n
        axes = {s: text for s, text in kernel.row_axes(kernel.var("behind", row)).items() if s != HELD_ROW}
        scope = kernel.scope.at({s: kernel.var(f"n{i}_", text) for i, (s, text) in enumerate(axes.items())})
        for load in self.loads:
            param = kernel.program.param(load.param)
            for column in range(0, width, max(LINE // param.type.dtype.itemsize, 1)):
                at = scope.at(kernel.column_axes(f"({kernel['column']} + {column})", "T.int64(0)", scalar_columns=True))
                kernel.line(prefetch_text(f"{param.name}[{element_text(param, load.index, at)}]"))


def row_loads(program: Program, c: Contraction) -> tuple[Load, ...]:
    """The loads after a sum of products that are other memory for each row, one element after the other in it."""
    found = dict.fromkeys(e for e in postorder(_behind(program)) if isinstance(e, Load) and _is_row(program, c, e))
    return tuple(found)


def _behind(program: Program) -> Iterator[Expr]:
    yield from (stage.value for stage in program.stages if stage.combine is None)
    yield from (x for store in program.stores for x in store_roots(store))


def _is_row(program: Program, c: Contraction, load: Load) -> bool:
    if not c.columns or any(isinstance(i, Expr) for i in load.index):
        return False
    found = runs_along(program.param(load.param), load.index, c.columns[-1])
    if found is None or found.length or found.step != 1:
        return False
    return any(a.symbol in found.base.free_symbols for a in c.rows)
