"""Writes indented source text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Source:
    """Lines of source with nested blocks, and names that do not repeat."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._counts: dict[str, int] = {}

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
        marks = 'scope="local", align=64, annotations={"disable_lower_builtin": True}'
        self.line(f'{name} = T.alloc_buffer(({count},), "{dtype}", {marks})')
        return name

    @property
    def text(self) -> str:
        """Everything written so far."""
        return "\n".join(self._lines) + "\n"
