"""Products of few columns: lanes run along the terms, and a task is a vector of rows.

As many sums as a vector has lanes run side by side, one for each row, each in the lanes of a vector of its own.
"""

from __future__ import annotations

from ...ir.types import product
from .contraction import flat_size
from .expression import index_text
from .matmul import Matmul


class NarrowMatmul(Matmul):
    """The loops of a product whose panels are single columns."""

    def emit(self, base: str = "", some: str = "") -> None:
        """Write the kernel's loops."""
        assert not base
        assert self.left is not None
        n, count = self.vector, flat_size(self.c.rows)
        rows = self.let("rows", index_text(count, self.scope))
        work = product((self.terms, self.columns))
        tasks = f"({rows} + {n - 1}) // {n}"
        if isinstance(count, int) and count * int(work) <= self.schedule.alone:
            self._narrow_tasks(tasks, "range")
            return
        with self.src.block(f"if {rows} * {work} <= {self.schedule.alone}"):
            self._narrow_tasks(tasks, "range")
        with self.src.block("else"):
            self._narrow_tasks(tasks, "T.parallel")

    def _narrow_tasks(self, tasks: str, kind: str) -> None:
        n, columns = self.vector, int(self.columns)
        with self.loop("task", tasks, kind) as task:
            first = self.var("first", f"{task} * {n}")
            self.let("row", first)
            self.var("last", f"T.min({first} + {n}, {self['rows']})")
            self.let("column", "T.int64(0)")
            self.let("start", "T.int64(0)")
            self.buffer("part", n * columns, self.acc)
            self.row_bases(n)
            with self.loop("n", columns) as column:
                self._sum(column)
            with self.loop("r", f"{self['last']} - {first}") as r:
                scope = self._row_scope(f"({first} + {r})")
                with self.loop("e", columns) as e:
                    self._store("T.int64(0)", e, f"{r} * {columns}", scope, scalar_columns=True)

    def _sum(self, column: str) -> None:
        """``part[row, column]`` for all rows of the task; rows past the last repeat it."""
        n, columns, whole = self.vector, int(self.columns), int(self.terms) // self.vector
        sums = self.registers("sums", n, f"{self.acc}x{n}")
        flat = self.flat(sums, self.acc)
        self.fill(flat, n * n, f"T.{self.acc}(0)", "T.unroll")
        with self.loop("k", whole) as k, self.loop("r", n, "T.unroll") as r, self.lanes() as v:
            to, term = f"{flat}[{r} * {n} + {v}]", f"({k} * {n} + {v})"
            self.line(f"{to} = {to} + {self.left_text(r, term)} * {self._weight(column, term)}")
        total = self.flat(self.add_lanes(sums, self.acc), self.acc)
        with self.loop("r", n, "T.unroll") as r:
            to = f"{self['part']}[{r} * {columns} + {column}]"
            self.line(f"{to} = {total}[{r}]")
            if int(self.terms) % n:
                with self.loop("t", int(self.terms) % n) as t:
                    term = f"({whole * n} + {t})"
                    self.line(f"{to} = {to} + {self.left_text(r, term)} * {self._weight(column, term)}")

    def _weight(self, column: str, term: str) -> str:
        assert self.panel is not None
        return f"{self.panel.param}[{column} * {self.terms} + {term}]"
