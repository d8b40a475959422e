"""Writes the text of Triton kernels: lines, blocks, names, and the functions of a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import sympy


class Source:
    """Lines of one function, with nested blocks and names that do not repeat."""

    def __init__(self, taken: frozenset[str] = frozenset()) -> None:
        self._lines: list[str] = []
        self._depth = 1
        self._taken = set(taken)

    def line(self, text: str) -> None:
        """One line at the current depth."""
        self._lines.append("    " * self._depth + text)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """``header`` followed by an indented body; the header has no colon."""
        self.line(f"{header}:")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def fresh(self, name: str) -> str:
        """A name that this function has not used: ``name`` itself, else with the first free number."""
        number, found = 0, name
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def let(self, name: str, text: str) -> str:
        """Bind a value to a fresh name; returns the name."""
        found = self.fresh(name)
        self.line(f"{found} = {text}")
        return found

    def constant(self, name: str, value: int) -> str:
        """Declare a compile-time number; returns its name."""
        found = self.fresh(name)
        self.line(f"{found}: tl.constexpr = {value}")
        return found

    @property
    def text(self) -> str:
        """Everything written so far."""
        return "\n".join(self._lines) + "\n"


def size_name(symbol: sympy.Symbol) -> str:
    """The name of a size symbol. A model's author names symbols: ``tl`` or ``while`` must not reach the text."""
    name = str(symbol)
    return f"n_{name}" if re.fullmatch("[A-Za-z0-9_]+", name) else f"nx_{name.encode().hex()}"


def block_size(count: int) -> int:
    """The least power of two that is at least ``count``: what extents of blocks must be."""
    return 1 << max(count - 1, 0).bit_length()


def bare(text: str) -> str:
    """An expression without parentheses around all of it."""
    while text.startswith("(") and _closes(text) == len(text) - 1:
        text = text[1:-1]
    return text


def _closes(text: str) -> int:
    """Where the parenthesis closes that a text opens with."""
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return at
    return -1
