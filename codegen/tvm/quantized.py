"""Matrix products with packed weights of few bits: numbers become floats in registers, each time they are read.

A panel row of ``tile_n`` columns has so many bytes of one term each, or words of eight neighbouring terms. Scales of
groups of terms lie in panels of their own, one row for each group; a block of terms is one group, so that the sum of a
block is scaled when it leaves the registers.
"""

from __future__ import annotations

from ..program import Apply, Expr, Load, Program, Ref, dot_stage
from ..quantized import FewBits, at_place, few_bits
from ..schedule import MatmulSchedule
from .expression import from_storage, index_text, scalar
from .matmul import Matmul
from .nest import LINE
from .prefetch import AHEAD, prefetch_text
from .source import Source

ONE_ROW_TERMS = 16  # terms of one row in a step of the loop: whole cache lines of any panel
FEW_TERMS = 4  # the same of more rows


class QuantizedMatmul(Matmul):
    """The loops of a product whose weight is packed in few bits."""

    reads_runs = False

    def __init__(self, program: Program, schedule: MatmulSchedule, src: Source) -> None:
        super().__init__(program, schedule, src)
        weight = few_bits(program, dot_stage(program))
        assert weight is not None
        assert weight.group in (None, schedule.block_k)
        self.weight: FewBits = weight

    # --- the register tile --------------------------------------------------------------------------------------------

    def holds_sums(self, rows: int) -> bool:
        """One row: making floats takes registers, too."""
        return rows == 1

    def _microkernel(self, rows: int, to: str, first: str) -> None:
        s = self.schedule
        sums = 2 if rows == 1 else 1  # side by side, so that a sum need not wait for the one before
        acc = self.registers("acc", sums * rows * s.tile_n, self.acc)
        if self.left is not None:
            self.row_bases(rows)
        self.let("group", "T.int64(0)" if self.weight.group is None else f"{self['start']} // {self.weight.group}")
        self.fill(acc, sums * rows * s.tile_n, f"T.{self.acc}(0)", "T.unroll")
        self._prefetch_scales()
        step = ONE_ROW_TERMS if rows == 1 else max(self.weight.word, FEW_TERMS)
        with self.loop("k", f"{self['terms']} // {step}") as k:
            self._prefetch(f"({self['start']} + {k} * {step})", step)
            some = max(self.weight.word, sums)
            with self.loop("word", step // some) as word:
                self._add_word(rows, acc, f"({k} * {step} + {word} * {some})", some, sums)
        self._rest(rows, acc, step, sums)
        with self.loop("r", rows, "T.unroll") as r, self.vectors(s.tile_n // s.vector) as e:
            total = " + ".join(f"{acc}[{n * rows * s.tile_n} + {r} * {s.tile_n} + {e}]" for n in range(sums))
            if self.weight.scale is not None:
                total = f"({total}) * {self._element(self.weight.scale, self['group'], e)}"
            sum_ = f"{to}[{first} + {r} * {s.tile_n} + {e}]"
            self.line(f"{sum_} = {sum_} + {total}")

    def _add_word(self, rows: int, acc: str, base: str, some: int, sums: int) -> None:
        """Add the terms of a word, written out for the tiles that most work is done in: others compile faster so."""
        if rows not in (1, self.schedule.tile_m) and self.in_bits:
            with self.loop("place", some) as place:
                self._add(rows, acc, base, place, sums)
            return
        for i in range(some):
            self._add(rows, acc, base, i, sums)

    def _rest(self, rows: int, acc: str, step: int, sums: int) -> None:
        """The terms that are no whole step: words of them, then those of the last word."""
        terms, word = self["terms"], self.weight.word
        known = isinstance(self.terms, int) and self.schedule.block_k % step == 0
        left = int(self.terms) % step if known else step - 1
        if left >= word and step > word:
            with self.loop("k", f"{terms} % {step} // {word}") as k:
                self._add_word(rows, acc, f"({terms} // {step} * {step} + {k} * {word})", word, sums)
        if left % word:
            with self.src.block(f"if {terms} % {word} > 0"):
                for i in range(left % word):
                    self._add(rows, acc, f"({terms} // {word} * {word})", i, sums)

    def _prefetch(self, term: str, count: int) -> None:
        """Ask for what is read a little later.

        So little is read in so many instructions that those which wait in the processor reach less far than memory is
        away, and its own prefetching was measured not to: without this, products of few rows take twice as long.
        """
        s, q = self.schedule, self.weight.q
        size = self._itemsize(q)
        first = f"({self['panel']} * {self._rows_of(q)} + {term} // {self.weight.word}) * {s.tile_n}"
        for line in range(0, count // self.weight.word * s.tile_n * size, LINE):
            self.line(prefetch_text(f"{q.param}[{first} + {(AHEAD + line) // size}]"))

    def _prefetch_scales(self) -> None:
        """The same for the scales of the group that is then read."""
        scale, tile = self.weight.scale, self.schedule.tile_n
        if scale is None or self.weight.group is None:
            return
        q_bytes = self.weight.group // self.weight.word * tile * self._itemsize(self.weight.q)
        first = f"({self['panel']} * {self._rows_of(scale)} + {self['group']} + {-(-AHEAD // q_bytes)}) * {tile}"
        size = self._itemsize(scale)
        for line in range(0, tile * size, LINE):
            self.line(prefetch_text(f"{scale.param}[{first} + {line // size}]"))

    def _itemsize(self, load: Load) -> int:
        return self.program.param(load.param).type.dtype.itemsize

    def _add(self, rows: int, acc: str, base: str, i: int | str, sums: int) -> None:
        """Add term ``base + i`` of the block to all sums; ``base`` is the first of a word, or an even one."""
        s, word = self.schedule, self.weight.word
        row = f"({self['start']} + {base} + {i})" if word == 1 else f"(({self['start']} + {base}) // {word})"
        first = i % sums * rows * s.tile_n if isinstance(i, int) else 0
        with self.loop("r", rows, "T.unroll") as r, self.vectors(s.tile_n // s.vector) as e:
            to = f"{acc}[{first} + {r} * {s.tile_n} + {e}]"
            self.line(f"{to} = {to} + {self.left_text(r, f'({base} + {i})')} * {self._number(row, i, e)}")

    # --- elements -----------------------------------------------------------------------------------------------------

    @property
    def in_bits(self) -> bool:
        """Whether numbers are made of the bits of words, without zeros."""
        return self.weight.word > 1 and self.weight.zero is None and self.acc == "float32"

    def _number(self, row: str, place: int | str, e: str) -> str:
        """The number at a row and column of the panel, its group's scale left out."""
        weight = self.weight
        if self.in_bits or isinstance(place, str):
            return f"nibbles.from_four_bits({self._element(weight.q, row, e)}, {place})"
        texts: dict[str, str] = {}

        def named(expr: Expr) -> Expr:
            if isinstance(expr, Load):
                texts[expr.param] = self._element(expr, row if expr is weight.q else self["group"], e)
                return Ref(expr.param, (), expr.dtype)
            return Apply(expr.op, tuple(map(named, expr.args)), expr.dtype) if isinstance(expr, Apply) else expr

        return scalar(named(at_place(weight.value, place)), self.scope.knowing(texts))

    def _element(self, load: Load, row: str, e: str) -> str:
        param = self.program.param(load.param)
        first = f"({self['panel']} * {self._rows_of(load)} + {row})"
        return from_storage(f"{param.name}[{first} * {self.schedule.tile_n} + {e}]", param.type.dtype)

    def _rows_of(self, load: Load) -> str:
        return index_text(self.program.param(load.param).type.shape[0], self.scope)
