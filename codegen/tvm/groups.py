"""The operands of a product by a dot instruction: as many terms as it takes at once are one element, an int32.

So the loops of every product serve: what they count as a term is a group. A group past the last term, and a term past
the last in a group, is zero on both sides, for zero times what else stands in memory may be NaN.
"""

from __future__ import annotations

from dataclasses import replace

import sympy
import torch

from ...ir.types import canonical_dim
from ..dot import byte_load, group_runs
from ..program import Expr, Load, Program
from ..schedule import MatmulSchedule, panel_layout
from .contraction import Strided, unflatten
from .expression import Scope, bound, element_text, index_text, scalar
from .matmul import Matmul
from .operands import Operands
from .source import Source


class Groups(Operands):
    """What a task reads, in groups of terms."""

    def __init__(self, program: Program, schedule: MatmulSchedule, src: Source) -> None:
        group = schedule.group
        super().__init__(program, replace(schedule, block_k=max(schedule.block_k // group, 1)), src)
        self.group, self.all_terms = group, self.terms
        self.layout = panel_layout(schedule)
        self.terms = canonical_dim(sympy.floor((sympy.sympify(self.terms) + group - 1) / group))
        self.element = "int32"
        self.left, self.right = (
            self._in_place(self.c.left, in_runs=not schedule.pack_left),
            self._in_place(self.c.right),
        )
        self.pack_left = schedule.pack_left or self.left is None
        self.one_panel, self.pack_right = None, schedule.pack_right or self.panel is None
        self.views: dict[str, str] = {}
        self._view_parameters()

    def _in_place(self, expr: Expr, *, in_runs: bool = False) -> Strided | None:
        """An operand whose groups are read where they lie; its offsets are in groups."""
        load = byte_load(expr) or expr
        if not isinstance(load, Load) or len(self.c.reduced) != 1:
            return None
        param, group = self.program.param(load.param), self.group
        found = group_runs(param, load.index, self.c.reduced[0], group)
        if found is None or (found.length and not in_runs):
            return None
        return Strided(**vars(found), param=param)

    def _view_parameters(self) -> None:
        """Declare the groups of parameters that are read in groups."""
        read = {x.param.name for x in (self.left, self.right) if x is not None}
        if self.panel is not None:
            read.add(self.panel.param)
        for name in sorted(read):
            self.views[name] = self.src.fresh(f"{name}_groups")
            self.line(
                f'{self.views[name]} = T.decl_buffer(({name}.shape[0] // {self.group},), "int32", data={name}_ptr)'
            )

    # --- elements -----------------------------------------------------------------------------------------------------

    def left_text(self, r: str, k: str) -> str:
        """The left operand at row ``r`` of the tile and group ``k`` of the block."""
        if self.pack_left:
            first = f"({self['row']} - {self['first']} + {r})"
            return f"{self['left']}[{first} * {self.schedule.block_k} + {k}]"
        assert self.left is not None
        return f"{self.views[self.left.param.name]}[{self['bases']}[{r}] + {self.along_left(k)}]"

    def panel_element(self, k: str, e: str, scope: Scope) -> str:
        """The packed weight at group ``k`` of the block and column ``e`` of the panel."""
        return self.panel_row(f"({self.layout.extra_rows} + {self['start']} + {k})", e)

    def panel_itemsize(self) -> int:
        """A group is an int32."""
        return 4

    def panel_row(self, row: str, e: str) -> str:
        """Element ``e`` of a row of the panel, and past its end of the rows and panels behind it."""
        assert self.panel is not None
        rows = index_text(self.terms + self.layout.extra_rows, self.scope)
        return f"{self.views[self.panel.param]}[({self['panel']} * {rows} + {row}) * {self.schedule.tile_n} + {e}]"

    def _left_is_signed(self) -> bool:
        load = byte_load(self.c.left)
        return load is not None and load.dtype == torch.int8

    def multiply_add(self, total: str, left: str, right: str) -> str:
        """A sum with the products of one more group."""
        if self.group == 2:
            return f"dots.bf16({total}, {left}, {right})"
        return f"dots.{'s8s8' if self._left_is_signed() else 'u8s8'}({total}, {left}, {right})"

    def clear(self, to: str, rows: str, kind: str = "range") -> None:
        """What sums start from: what makes up for the 128 added to each element of a signed left operand, else 0."""
        s = self.schedule
        if not self._left_is_signed():
            super().clear(to, rows, kind)
            return
        with self.loop("r", rows, kind) as r, self.vectors(s.tile_n // s.vector) as e:
            self.line(f"{to}[{r} * {s.tile_n} + {e}] = {self.panel_row('T.int64(0)', e)}")

    # --- copies of the operands ---------------------------------------------------------------------------------------

    def runs_along_terms(self) -> bool:
        """Whether the right operand lies in groups."""
        return self.right is not None

    def right_element(self, k: str, base: str, n: str, *, scalar_columns: bool) -> str:
        """The right operand at group ``k`` of the block and column ``base + n``."""
        columns = self.column_axes(base, n, scalar_columns)
        if self.right is not None:
            offset = index_text(self.right.base, self.scope.at(columns))
            return f"{self.views[self.right.param.name]}[{offset} + ({self['start']} + {k})]"
        return self._grouped(self.c.right, f"({self['start']} + {k})", self.scope.at(columns), guarded=True)

    def copy_left(self) -> None:
        """``left[row, k]`` for the rows of this task: whole groups, then one with terms past the last."""
        n, whole = self.vector, self.let("whole", self._whole_groups())
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            scope = self.scope.at(self.row_axes(f"({self['first']} + {r})"))
            with self.vectors(f"{whole} // {n}", "range") as e:
                self._copy_left_group(r, e, scope, guarded=False)
            with self.loop("v", f"{self['terms']} - {whole} // {n} * {n}") as v:
                self._copy_left_group(r, f"({whole} // {n} * {n} + {v})", scope, guarded=True)

    def _whole_groups(self) -> str:
        """How many groups of the block have all their terms."""
        whole = canonical_dim(sympy.floor(sympy.sympify(self.all_terms) / self.group))
        return f"T.min({index_text(whole, self.scope)} - {self['start']}, {self['terms']})"

    def _copy_left_group(self, r: str, k: str, scope: Scope, *, guarded: bool) -> None:
        if self.left is not None:
            offset = index_text(self.left.base, scope)
            value = f"{self.views[self.left.param.name]}[{offset} + ({self['start']} + {k})]"
        else:
            value = self._grouped(self.c.left, f"({self['start']} + {k})", scope, guarded=guarded)
        self.line(f"{self['left']}[{r} * {self.schedule.block_k} + {k}] = {value}")

    def _grouped(self, expr: Expr, at: str, scope: Scope, *, guarded: bool) -> str:
        """The text of a group of an operand's terms; with ``guarded``, terms past the last are zero."""
        whole = isinstance(self.all_terms, int) and self.all_terms % self.group == 0
        parts = []
        for i in range(self.group):
            term = f"({at} * {self.group} + {i})"
            here = scope.at(unflatten(self.c.reduced, term, scope))
            bits = self._bits_or_zero(expr, term, here) if guarded and i and not whole else self._bits(expr, here)
            parts.append(f"({bits} << T.uint32({i * 32 // self.group}))" if i else bits)
        return f'T.Cast("int32", {" | ".join(parts)})'

    def _bits_or_zero(self, expr: Expr, term: str, scope: Scope) -> str:
        """The same, 0 past the last term."""
        cell = scope.src.cell("bits", "uint32")
        with self.src.block(f"if {term} < {index_text(self.all_terms, scope)}"):
            self.line(f"{cell} = {self._bits(expr, scope)}")
        with self.src.block("else"):
            self.line(f"{cell} = T.uint32(0)")
        return cell

    def _bits(self, expr: Expr, scope: Scope) -> str:
        """An operand at a term as the low bits of a uint32: as they lie in memory, or rounded to bfloat16."""
        load = byte_load(expr) or expr
        if not isinstance(load, Load):
            value = bound(scalar(expr, scope), torch.float32, scope)
            return f'T.Cast("uint32", helpers.to_bf16({value}))'
        param = self.program.param(load.param)
        element = f"{param.name}[{element_text(param, load.index, scope)}]"
        if param.type.dtype == torch.int8:
            element = f'T.reinterpret("uint8", {element})'
        return f'T.Cast("uint32", {element})'


class DotMatmul(Groups, Matmul):
    """The loops of a product over groups of terms, by an instruction that multiplies and adds a whole group."""
