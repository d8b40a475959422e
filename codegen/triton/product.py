"""A tile of a product: which one, its rows and columns, what its operands are read from, and its stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import sympy

from ...ir.ops.quantize import WORD
from ...ir.types import Dim, canonical_dim, product
from ..contraction import Contraction
from ..gpu import GpuMatmulSchedule
from ..program import Expr, Load, as_fraction, axis_symbol, is_guard, postorder
from ..prologue import HELD_ROW, Phases
from .expression import element, value_of
from .few_bits import Nibble, nibble, nibbles_of
from .file import ceil_div
from .indexing import decode, dim_text
from .map import emit_stores
from .scope import Scope, Value, counted

_WORD = axis_symbol("word of eight numbers")


class Product(ABC):
    """One tile of a product in each program.

    Args:
        c: the product.
        schedule: how it is computed.
        computed: what computes its rows first; None where they are read from memory.
        scope: the outermost scope of the function.
    """

    def __init__(self, c: Contraction, schedule: GpuMatmulSchedule, computed: Phases | None, scope: Scope) -> None:
        self.c, self.schedule, self.src, self.computed = c, schedule, scope.src, computed
        self.rows, self.columns = (product(a.size for a in axes) for axes in (c.rows, c.columns))
        self.terms = product(a.size for a in c.reduced)
        constants = (("BLOCK_M", schedule.block_m), ("BLOCK_N", schedule.block_n), ("BLOCK_K", schedule.block_k))
        self.m, self.n, self.k = (self.src.constant(*constant) for constant in constants)
        self._extents = {self.m: schedule.block_m, self.n: schedule.block_n, self.k: schedule.block_k}
        self.many = product(a.size for a in c.batch) if c.batch else 1
        self.tiles_m, self.tiles_n = ceil_div(self.rows, schedule.block_m), ceil_div(self.columns, schedule.block_n)
        self.outer, self.tile_m, self.tile_n = scope, "0", "0"

    # --- which tile ---------------------------------------------------------------------------------------------------

    @property
    def tiles(self) -> Dim:
        """How many tiles there are."""
        return canonical_dim(self.many * self.tiles_m * self.tiles_n)

    def take(self, number: str, scope: Scope) -> None:
        """Make this the tile of a number of 32 bits.

        The tiles of ``group`` rows of tiles follow one another, column by column.
        """
        src = self.src
        high, wide = self._count(self.tiles_m, scope), self._count(self.tiles_n, scope)
        if self.c.batch:
            tiles = self._count(canonical_dim(self.tiles_m * self.tiles_n), scope)
            batch = src.let("batch", self._wide(f"{number} // {tiles}"))
            number = src.let("tile", f"{number} % {tiles}")
            scope = scope.at(decode(Value(batch), self.c.batch, scope))
        self.outer = scope
        if self.tiles_m == 1 or self.tiles_n == 1:
            self.tile_m, self.tile_n = (number, "0") if self.tiles_n == 1 else ("0", number)
            return
        group = self.group
        many = src.let("many", f"{group} * {wide}")
        first = src.let("first", f"{number} // {many} * {group}")
        height = src.let("height", f"tl.minimum({high} - {first}, {group})")
        self.tile_m = src.let("tile_m", f"{first} + {number} % {many} % {height}")
        self.tile_n = src.let("tile_n", f"{number} % {many} // {height}")

    @cached_property
    def group(self) -> str:
        """The rows of tiles that follow one another."""
        return self.src.constant("GROUP", self.schedule.group)

    def _count(self, size: Dim, scope: Scope) -> str:
        """A number of tiles. The grid has no more than fit 32 bits, in which they are divided."""
        text = dim_text(size, scope)
        return f"{text}.to(tl.int32)" if self.outer.bits == 64 and not isinstance(size, int) else text

    def _wide(self, number: str) -> str:
        """A number of a tile as one that offsets are computed with."""
        if self.outer.bits == 32:
            return number
        return f"{number}.to(tl.int64)" if number.isidentifier() else f"({number}).to(tl.int64)"

    @property
    def starts(self) -> tuple[str, str]:
        """The first row and the first column of the tile."""
        return (
            "0" if self.tile_m == "0" else f"{self._wide(self.tile_m)} * {self.m}",
            "0" if self.tile_n == "0" else f"{self._wide(self.tile_n)} * {self.n}",
        )

    def line(
        self, name: str, start: str, block: str, rank: int, dim: int, size: Dim, scope: Scope
    ) -> tuple[Value, str]:
        """A row of indices along one dim of a block, and the name of its mask or an empty text."""
        row = counted(block, rank, dim, scope.bits)
        text = row if start == "0" else f"{start} + {row}"
        at = self.src.let(name, text)
        extent = self._extents[block]
        exact = isinstance(size, int) and size % extent == 0 and size > 0
        mask = "" if exact else self.src.let(f"in_{name}", f"{at} < {dim_text(size, scope)}")
        return Value(at, frozenset({dim})), mask

    def row_axes(self, m: Value, scope: Scope) -> Scope:
        """The scope with the axes of the rows, and the row that the kernel holds."""
        scope = scope.at(decode(m, self.c.rows, scope))
        if self.computed is None:
            return scope
        flat: Dim = 0
        for axis in self.computed.axes:
            flat = flat * axis.size + axis.symbol
        text = dim_text(canonical_dim(flat), scope)
        dims = frozenset[int]().union(*(scope.axes[a.symbol].dims for a in self.computed.axes))
        return scope.at({HELD_ROW: Value(text, dims)})

    def tile_scope(self) -> Scope:
        """The scope of the elements of the tile."""
        m_start, n_start = self.starts
        m, in_m = self.line("m", m_start, self.m, 2, 0, self.rows, self.outer)
        n, in_n = self.line("n", n_start, self.n, 2, 1, self.columns, self.outer)
        tile = self.row_axes(m, self.outer.block((self.m, self.n), (in_m or None, in_n or None)))
        return tile.at(decode(n, self.c.columns, tile))

    # --- what is computed ---------------------------------------------------------------------------------------------

    @abstractmethod
    def sums(self, low: str, high: str) -> str:
        """Write the sums of a tile over the terms from ``low``, a multiple of a block, to ``high``; their name."""

    def store(self, sums: str, scope: Scope | None = None) -> None:
        """Store what follows the product; ``scope`` is that of the tile, where it was made before."""
        scope = scope or self.tile_scope()
        emit_stores(scope.program.stores, scope.knowing({self.c.stage.name: Value(sums, frozenset({0, 1}))}))

    def operand(self, expr: Expr, inside: str, scope: Scope) -> Value:
        """A block of an operand, 0 where there are no terms."""
        value = value_of(expr, scope)
        return value if not inside else Value(f"tl.where({inside}, {value.typed}, 0)", value.dims)

    # --- what several terms share -------------------------------------------------------------------------------------

    def read_groups(self, roots: Iterable[Expr], start: str, dim: int, scope: Scope) -> None:
        """Read what all terms of a block share, once, and let the scope know it: factors of groups of terms.

        ``dim`` is that of the terms in the block; ``start`` the first of them.
        """
        if len(self.c.reduced) != 1:
            return
        k = self.c.reduced[0].symbol
        masks = tuple(None if d == dim else m for d, m in enumerate(scope.masks))
        here = replace(scope.inner(), masks=masks).at({k: Value(start)})
        for load in postorder(roots, lambda e: is_guard(e) or nibble(e) is not None):
            if isinstance(load, Load) and self._is_shared(load, k):
                scope.known[load] = value_of(load, here)

    def _is_shared(self, load: Load, k: sympy.Symbol) -> bool:
        """Whether all terms of a block read the same element: k is in its index as floor(k / g) only."""
        found = [i for i in load.index if isinstance(i, sympy.Expr) and k in i.free_symbols]
        if not found or any(isinstance(i, Expr) for i in load.index):
            return False
        groups = {x for i in found for x in i.atoms(sympy.floor) if k in x.free_symbols}
        rest = {x: sympy.Symbol(f"group {n}") for n, x in enumerate(sorted(groups, key=str))}
        if any(k in i.xreplace(rest).free_symbols for i in found):
            return False
        return all(self._covers(*as_fraction(x.args[0]), k) for x in groups)

    def _covers(self, above: sympy.Expr, below: sympy.Expr, k: sympy.Symbol) -> bool:
        return above == k and bool(below.is_Integer) and int(below) % self.schedule.block_k == 0

    # --- words of eight numbers ---------------------------------------------------------------------------------------

    def read_words(self, roots: Iterable[Expr], start: str, dim: int, scope: Scope) -> None:
        """Read words that hold eight terms each, once, and let the scope know the numbers in them.

        ``dim`` is that of the terms in the block; ``start`` the first of them. Words that are not read along the terms
        only are left alone.
        """
        for expr, found in nibbles_of(list(roots)):
            index = self._by_words(found)
            if index is None or self.schedule.block_k % WORD:
                continue
            value = self._words(replace(found.word, index=index), start, dim, scope)
            scope.known[expr] = value

    def _by_words(self, found: Nibble) -> tuple[sympy.Expr, ...] | None:
        """The index of a word, by its number in place of the term's; None where terms are no whole words."""
        if len(self.c.reduced) != 1 or found.place != sympy.Mod(self.c.reduced[0].symbol, WORD):
            return None
        k = self.c.reduced[0].symbol
        index = [i.subs(sympy.floor(k / WORD), _WORD) for i in found.word.index if isinstance(i, sympy.Expr)]
        if len(index) != len(found.word.index) or any(k in i.free_symbols for i in index):
            return None
        return tuple(index)

    def _words(self, load: Load, start: str, dim: int, scope: Scope) -> Value:
        """The numbers of the words of a block, a word's eight along ``dim``."""
        src, rank = self.src, len(scope.shape)
        words = src.constant("WORDS", self.schedule.block_k // WORD)
        first = "" if start == "0" else f"{start} // {WORD} + "
        at = src.let("word", f"{first}{counted(words, rank, dim, scope.bits)}")
        count = ceil_div(self.terms, WORD)
        whole = isinstance(self.terms, int) and self.terms % self.schedule.block_k == 0
        mask = None if whole else src.let("in_word", f"{at} < {dim_text(count, scope)}")
        shape = tuple(words if d == dim else name for d, name in enumerate(scope.shape))
        masks = tuple(mask if d == dim else m for d, m in enumerate(scope.masks))
        here = replace(scope.block(shape, masks), fill=True).at({_WORD: Value(at, frozenset({dim}))})
        loaded = element(load, here)
        name = src.let("words", loaded.text)
        dims = sorted(loaded.dims)
        extents = [scope.shape[d] if d in dims else "1" for d in range(rank)]
        wide = [":"] * (dim + 1) + ["None"] + [":"] * (rank - dim - 1)
        thin = ["None"] * (dim + 1) + [":"] + ["None"] * (rank - dim - 1)
        places = f"(tl.arange(0, {WORD}) * 4)[{', '.join(thin)}]"
        taken = src.let("numbers", f"({name}[{', '.join(wide)}] >> {places}) & 15")
        return Value(src.let("numbers", f"tl.reshape({taken}, ({', '.join(extents)}))"), loaded.dims | {dim})
