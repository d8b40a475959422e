"""Matrix products with packed weights of few bits: numbers become floats in registers, each time they are read.

A panel row of ``tile_n`` columns is so many bytes, each of which holds one term, or two neighbouring ones. Scales of
groups of terms lie in panels of their own, one row for each group; a block of terms is one group, so that the sum of a
block is scaled when it leaves the registers.
"""

from __future__ import annotations

import sympy

from ..program import Apply, Expr, Load, Program, Ref
from ..quantized import FewBits, few_bits, of_half
from ..schedule import MatmulSchedule
from .contraction import dot_stage
from .expression import from_storage, scalar
from .matmul import Matmul, emit_with
from .source import Source


def emit_product(program: Program, schedule: MatmulSchedule, src: Source) -> None:
    """Write the loops of a MATMUL kernel."""
    weight = few_bits(program, dot_stage(program))
    emit_with(Matmul if weight is None else QuantizedMatmul, program, schedule, src)


class QuantizedMatmul(Matmul):
    """The loops of a product whose weight is packed in few bits."""

    def __init__(self, program: Program, schedule: MatmulSchedule, src: Source) -> None:
        super().__init__(program, schedule, src)
        weight = few_bits(program, dot_stage(program))
        assert weight is not None
        assert weight.group in (None, schedule.block_k)
        self.weight: FewBits = weight

    # --- the register tile --------------------------------------------------------------------------------------------

    def _microkernel(self, rows: int, part: str) -> None:
        s = self.schedule
        width = s.tile_n // s.vector
        acc = self.registers("acc", rows * s.tile_n, self.acc)
        if self.left is not None:
            self.row_bases(rows)
        self.let("group", "T.int64(0)" if self.weight.group is None else f"{self['start']} // {self.weight.group}")
        self.fill(acc, rows * s.tile_n, f"T.{self.acc}(0)", "T.unroll")
        if self.weight.pairs:
            self._pairs(rows, acc)
        else:
            with self.loop("k", self["terms"]) as k:
                self._add(rows, acc, k, f"({self['start']} + {k})", self.weight.value)
        with self.loop("r", rows, "T.unroll") as r, self.vectors(width) as e:
            total = f"{acc}[{r} * {s.tile_n} + {e}]"
            if self.weight.scale is not None:
                total += f" * {self._element(self.weight.scale, self['group'], e)}"
            to = f"{self['part']}[{part} + {r} * {s.tile_n} + {e}]"
            self.line(f"{to} = {to} + {total}")

    def _pairs(self, rows: int, acc: str) -> None:
        """Two terms from each byte, in a loop over the bytes; the low half of the last one alone where they are odd."""
        even, odd = (of_half(self.weight.value, half) for half in (0, 1))
        with self.loop("k", f"{self['terms']} // 2") as k:
            byte = f"({self['start']} // 2 + {k})"
            self._add(rows, acc, f"(2 * {k})", byte, even)
            self._add(rows, acc, f"(2 * {k} + 1)", byte, odd)
        if isinstance(self.terms, int) and self.terms % 2 == 0:
            return
        with self.src.block(f"if {self['terms']} % 2 == 1"):
            last = f"({self['terms']} - 1)"
            self._add(rows, acc, last, f"(({self['start']} + {last}) // 2)", even)

    def _add(self, rows: int, acc: str, k: str, row: str, value: Expr) -> None:
        """Add term ``k`` of the block, which is in ``row`` of the panel, to all sums."""
        s = self.schedule
        with self.loop("r", rows, "T.unroll") as r, self.vectors(s.tile_n // s.vector) as e:
            to = f"{acc}[{r} * {s.tile_n} + {e}]"
            self.line(f"{to} = {to} + {self.left_text(r, k)} * {self._number(value, row, e)}")

    # --- elements -----------------------------------------------------------------------------------------------------

    def _number(self, value: Expr, row: str, e: str) -> str:
        """The number at a row and column of the panel, its group's scale left out."""
        texts: dict[str, str] = {}

        def named(expr: Expr) -> Expr:
            if isinstance(expr, Load):
                at = row if expr is self.weight.q else self["group"]
                texts[expr.param] = self._element(expr, at, e)
                return Ref(expr.param, (), expr.dtype)
            return Apply(expr.op, tuple(map(named, expr.args)), expr.dtype) if isinstance(expr, Apply) else expr

        return scalar(named(value), self.scope.knowing(texts))

    def _element(self, load: Load, row: str, e: str) -> str:
        param = self.program.param(load.param)
        count = param.type.shape[0]
        assert isinstance(count, int | sympy.Integer)
        first = f"({self['panel']} * T.int64({int(count)}) + {row})"
        return from_storage(f"{param.name}[{first} * {self.schedule.tile_n} + {e}]", param.type.dtype)
