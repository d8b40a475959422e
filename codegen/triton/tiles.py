"""Two ways to sum a tile of a product: by ``tl.dot``; one by one, for any dtype and for a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..program import Expr, Load
from .descriptors import descriptor_of
from .dots import dot, dot_dtype, float8_dot, int_dot
from .expression import element, hoist, value_of
from .few_bits import FewBits, bytes_of, few_bits, float8_bits_of, widened_half
from .indexing import decode
from .product import Product
from .scope import Scope, Value
from .storage import compute_type, storage_type


class DotTile(Product):
    """Blocks multiplied by ``tl.dot``."""

    def sums(self, low: str, high: str) -> str:
        """The sums, in float32 or int32; see :class:`Product`."""
        src, c, s = self.src, self.c, self.schedule
        self._sort_operands()
        tile = self.tile_scope()
        self.scope, (in_m, in_n) = tile, tile.masks
        left = replace(tile.block((self.m, self.k), (in_m, None)), fill=True)
        right = replace(tile.block((self.k, self.n), (None, in_n)), fill=True)
        hoist([self.left], c.reduced, left)
        hoist([self.right], c.reduced, right)
        a_from = descriptor_of(self, self.left, c.rows, self.dtype, tile) if s.tma else None
        b_from = descriptor_of(self, self.right, c.columns, self.dtype, tile) if s.tma else None
        sums = "tl.int32" if self.dtype == torch.int8 else "tl.float32"
        acc = src.let("acc", f"tl.zeros(({self.m}, {self.n}), {sums})")
        start = src.fresh("start")
        with src.block(f"for {start} in {self._range(low, high)}"):
            if a_from is not None:
                a = src.let("a", a_from.block(self.starts[0], start, rows_first=True))
            else:
                k, in_k = self.line("k", start, self.k, 2, 1, self.terms, tile)
                here = replace(left.inner(), masks=(in_m, in_k or None))
                a = self._block("a", self.left, in_k, here.at(decode(k, c.reduced, here)), start, 1)
            if b_from is not None:
                b = src.let("b", b_from.block(self.starts[1], start, rows_first=False))
            else:
                k, in_k = self.line("k", start, self.k, 2, 0, self.terms, tile)
                here = replace(right.inner(), masks=(in_k or None, in_n))
                here = here.at(decode(k, c.reduced, here))
                b = self._block("b", self.right, in_k, here, start, 0)
            self._add(acc, a, b, right, start)
        return acc

    def _sort_operands(self) -> None:
        """What is multiplied in which dtype, and by which factor afterwards."""
        c = self.c
        self.left, self.right, self.dtype = c.left, c.right, dot_dtype(c.left, c.right)
        self.few: FewBits | None = None
        loads = bytes_of(c.left, c.right)
        if loads is not None:
            self.left, self.right, self.dtype = *loads, torch.int8
            return
        bits = float8_bits_of(c.left, c.right)
        if bits is not None:
            if self.schedule.float8:
                self.left, self.right, self.dtype = *bits, torch.uint8
            else:
                self.dtype = torch.float16  # which has all numbers of float8
            return
        few = few_bits(c.right, c.reduced[0]) if len(c.reduced) == 1 else None
        whole = few is not None and (few.scale is None or few.group % self.schedule.block_k == 0)
        if few is None or not whole:
            return
        self.few, self.right = few, few.numbers
        narrow = widened_half(c.left)
        if narrow is not None:
            self.left, self.dtype = narrow, narrow.dtype

    def _range(self, low: str, high: str) -> str:
        """The loop over blocks of terms."""
        if self.schedule.specialize:
            return f"tl.range({low}, {high}, {self.k}, warp_specialize=True)"
        return f"range({low}, {high}, {self.k})"

    def _add(self, acc: str, a: str, b: str, right: Scope, start: str) -> None:
        src = self.src
        if self.dtype == torch.int8:
            src.line(f"{acc} = {int_dot(a, b, acc)}")
        elif self.dtype == torch.uint8:
            src.line(f"{acc} = {float8_dot(a, b, acc, min(self.schedule.float8, self.schedule.block_k))}")
        elif self.few is None or self.few.scale is None:
            src.line(f"{acc} = {dot(a, b, acc, self.dtype, self.schedule.tf32)}")
        else:
            (k,) = self.c.reduced
            here = replace(right.inner(), masks=(None, right.masks[1]))
            factor = value_of(self.few.scale, here.at({k.symbol: Value(start)}))
            zero = f"tl.zeros(({self.m}, {self.n}), tl.float32)"
            part = src.let("part", dot(a, b, zero, self.dtype, self.schedule.tf32))
            src.line(f"{acc} = {acc} + {part} * {factor.typed}")

    def _block(self, name: str, expr: Expr, inside: str, scope: Scope, start: str, dim: int) -> str:
        """An operand of ``tl.dot``, in its dtype; as it is stored where nothing is computed."""
        if isinstance(expr, Load) and scope.program.param(expr.param).type.dtype == self.dtype:
            value = element(expr, scope)
            if value.dims == scope.everywhere:  # masked along the terms by itself
                return self.src.let(name, value.text)
        self.read_groups([expr], start, dim, scope)
        self.read_words([expr], start, dim, scope)
        value = scope.widened(self.operand(expr, inside, scope), scope.everywhere)
        narrow = "" if self.dtype == torch.float32 else f".to({storage_type(self.dtype)})"
        return self.src.let(name, f"({value.typed}){narrow}" if narrow else value.typed)

    def store(self, sums: str, scope: Scope | None = None) -> None:
        """Store what follows the product, in the scope of the tile that was summed."""
        super().store(sums, scope or getattr(self, "scope", None))


class SumTile(Product):
    """Products summed one by one: a block of [rows, columns, terms]."""

    def sums(self, low: str, high: str) -> str:
        """The sums, in the product's own type; see :class:`Product`."""
        src, scope, c = self.src, self.outer, self.c
        m_start, n_start = self.starts
        m, in_m = self.line("m", m_start, self.m, 3, 0, self.rows, scope)
        n, in_n = self.line("n", n_start, self.n, 3, 1, self.columns, scope)
        cube = scope.block((self.m, self.n, self.k), (in_m or None, in_n or None, None))
        cube = self.row_axes(m, cube)
        cube = cube.at(decode(n, c.columns, cube))
        hoist([c.left, c.right], c.reduced, cube)
        acc = src.let("acc", f"tl.zeros(({self.m}, {self.n}, {self.k}), {compute_type(c.stage.dtype)})")
        start = src.fresh("start")
        with src.block(f"for {start} in range({low}, {high}, {self.k})"):
            k, in_k = self.line("k", start, self.k, 3, 2, self.terms, scope)
            here = replace(cube.inner(), masks=(in_m or None, in_n or None, in_k or None))
            here = here.at(decode(k, c.reduced, here))
            self.read_groups((c.left, c.right), start, 2, here)
            self.read_words((c.left, c.right), start, 2, here)
            a, b = self._operands((c.left, c.right), in_k, here)
            src.line(f"{acc} = {acc} + {a} * {b}")
        return src.let("total", f"tl.sum({acc}, axis=2).to({compute_type(c.stage.dtype)})")

    def _operands(self, exprs: Sequence[Expr], inside: str, scope: Scope) -> list[str]:
        return [self.src.let(n, self.operand(e, inside, scope).typed) for n, e in zip("ab", exprs, strict=True)]
