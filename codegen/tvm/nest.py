"""Writing loop nests: names, variables, local buffers and vector loops of one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .source import Source

# What generated kernels are built with. Storage rewriting would merge local buffers and drop their annotations.
PASS_CONFIG = {"tirx.disable_storage_rewrite": True}

LINE = 64  # bytes of a cache line

_ON_STACK = 'scope="local", annotations={"disable_lower_builtin": True}'

Text = str


class Nest:
    """A kernel's source with its names. A name is asked for by a short prefix and is unique in the module."""

    def __init__(self, src: Source, vector: int) -> None:
        self.src = src
        self.vector = vector
        self.texts: dict[str, Text] = {}

    def __getitem__(self, name: str) -> Text:
        """How the thing declared under a name is spelled."""
        return self.texts[name]

    def line(self, text: str) -> None:
        self.src.line(text)

    def let(self, name: str, value: Text) -> Text:
        """A name for a value."""
        self.texts[name] = self.src.fresh(name)
        self.line(f"{self[name]}: T.let = {value}")
        return self[name]

    def var(self, name: str, value: Text, dtype: str = "int64") -> Text:
        """A variable, in a register; TVM does not look through it.

        It takes TVM long to reason about indices with divisions: name their results so, and what is assigned to twice.
        """
        self.texts[name] = f"{self.registers(name, 1, dtype)}[0]"
        self.line(f"{self[name]} = {value}")
        return self[name]

    def registers(self, name: str, count: int, dtype: str) -> Text:
        """A buffer that is indexed by constants only: on the stack for TVM, in registers for LLVM.

        What TVM allocates by itself, even one element, is a call of its workspace allocator and memory to LLVM.
        """
        self.texts[name] = self.src.fresh(name)
        self.line(f'{self[name]} = T.alloc_buffer(({count},), "{dtype}", {_ON_STACK})')
        return self[name]

    def buffer(self, name: str, count: int, dtype: str) -> Text:
        """A buffer on the stack, aligned to a cache line: TVM aligns to 16 bytes, but vectors to their size."""
        lanes = LINE * 8 // int(dtype.lstrip("uintfloa"))
        memory = self.src.fresh("memory")
        self.line(f'{memory} = T.alloc_buffer(({-(-count // lanes)},), "{dtype}x{lanes}", {_ON_STACK})')
        self.texts[name] = self.src.fresh(name)
        self.line(f'{self[name]} = T.decl_buffer(({count},), "{dtype}", data={memory}.data)')
        return self[name]

    @contextmanager
    def loop(self, name: str, extent: Text | int, kind: str = "range") -> Iterator[Text]:
        """A loop; gives the text of its index, an int64: a lane of another type would make its loads gathers."""
        self.texts[name] = self.src.fresh(name)
        if kind == "T.vectorized":
            with self.src.vector_block(self[name], int(extent)):
                yield self[name]
            return
        count = f"T.int64({extent})" if str(extent).isdigit() else extent
        with self.src.block(f"for {self[name]} in {kind}({count})"):
            yield self[name]

    @contextmanager
    def lanes(self) -> Iterator[Text]:
        """One vector: gives the text of the lane."""
        with self.loop("v", self.vector, "T.vectorized") as v:
            yield v

    @contextmanager
    def vectors(self, count: Text | int, kind: str = "T.unroll") -> Iterator[Text]:
        """``count`` vectors side by side: gives the text of the element's index. ``i`` is the index of the vector."""
        with self.loop("i", count, kind) as i, self.lanes() as v:
            yield f"({i} * {self.vector} + {v})"

    def along(self, count: int) -> Iterator[Text]:
        """Loops over ``count`` elements: gives the text of an index in vectors, then of one in what is left."""
        full = count // self.vector
        if full:
            with self.vectors(full, "range") as e:
                yield e
        if count % self.vector:
            with self.loop("j", count % self.vector) as j:
                yield f"({full * self.vector} + {j})"

    def fill(self, name: str, count: int, value: Text, kind: str = "range") -> None:
        """Set ``count`` elements of a buffer, whole vectors."""
        with self.vectors(count // self.vector, kind) as e:
            self.line(f"{self.texts.get(name, name)}[{e}] = {value}")
