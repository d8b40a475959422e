"""Writes indented source text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def size_name(symbol: Any) -> str:
    """The TIR name of a size symbol. A model's author names symbols: ``T`` or ``while`` must not reach the text."""
    name = str(symbol)
    return f"n_{name}" if re.fullmatch("[A-Za-z0-9_]+", name) else f"nx_{name.encode().hex()}"


@dataclass(frozen=True)
class _VectorLoop:
    """A vector loop being written: the line and depth at which it starts, its index and extent."""

    line: int
    depth: int
    lane: str
    lanes: int


def _declaration(name: str, count: int, dtype: str) -> str:
    marks = 'scope="local", align=64, annotations={"disable_lower_builtin": True}'
    return f'{name} = T.alloc_buffer(({count},), "{dtype}", {marks})'


class Source:
    """Lines of source with nested blocks, and names that do not repeat."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._counts: dict[str, int] = {}
        self._vectors: list[_VectorLoop] = []

    def line(self, text: str = "") -> None:
        """One line at the current depth."""
        self._lines.append("    " * self._depth + text if text else "")

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """``header`` followed by an indented body; the header has no colon."""
        self.line(f"{header}:")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def vector_block(self, lane: str, lanes: int) -> Iterator[None]:
        """A loop whose iterations are the lanes of vectors."""
        self._vectors.append(_VectorLoop(len(self._lines), self._depth, lane, lanes))
        try:
            with self.block(f"for {lane} in T.vectorized(T.int64({lanes}))"):
                yield
        finally:
            self._vectors.pop()

    @contextmanager
    def lane_block(self, lane: str, lanes: int) -> Iterator[None]:
        """A vector block, or a loop of one iteration for a single lane."""
        if lanes > 1:
            with self.vector_block(lane, lanes):
                yield
            return
        with self.block(f"for {lane} in T.serial(T.int64(1))"):
            yield

    def cell(self, prefix: str, dtype: str) -> str:
        """Declare a place for one value, for each lane inside a vector loop; returns how it is spelled there.

        It is memory to TVM, which puts named values in place wherever they are used and so takes time exponential in
        the depth of an expression with conditions; LLVM turns it into a register.
        """
        if not self._vectors:
            return f"{self.stack_buffer(prefix, 1, dtype)}[0]"
        loop, name = self._vectors[-1], self.fresh(prefix)
        self._lines.insert(loop.line, "    " * loop.depth + _declaration(name, loop.lanes, dtype))
        return f"{name}[{loop.lane}]"

    def fresh(self, prefix: str) -> str:
        """A name that this source has not used: ``prefix0``, ``prefix1`` and so on."""
        count = self._counts.get(prefix, 0)
        self._counts[prefix] = count + 1
        return f"{prefix}{count}"

    def stack_buffer(self, prefix: str, count: int, dtype: str) -> str:
        """Declare a buffer on the stack and return its name. One that is only indexed by constants becomes registers.

        What TVM allocates by itself, even one element, is a call of its workspace allocator and memory to LLVM.
        """
        name = self.fresh(prefix)
        self.line(_declaration(name, count, dtype))
        return name

    @property
    def text(self) -> str:
        """Everything written so far."""
        return "\n".join(self._lines) + "\n"
