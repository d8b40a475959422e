"""Writing loop nests: names, variables, local buffers and vector loops of one kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        """Write one statement."""
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

    def workspace(self, name: str, count: Text, dtype: str) -> Text:
        """Memory of TVM's workspace allocator, for what is too much for the stack or of no known size."""
        self.texts[name] = self.src.fresh(name)
        self.line(f'{self[name]} = T.alloc_buffer(({count},), "{dtype}")')
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

    # --- squares of vectors -------------------------------------------------------------------------------------------

    def transpose(
        self, dtype: str, element: Callable[[Text, Text], Text], store: Callable[[Text, Text, Text], None]
    ) -> None:
        """Transpose a square of vectors in registers: ``store(i, v, x)`` is given x = ``element(v, i)``.

        Each pass exchanges half of what two vectors hold, so that it takes log2 n shuffles of each of the n vectors.
        """
        n = self.vector
        rows = self.registers("square", n, f"{dtype}x{n}")
        flat = self.flat(rows, dtype)
        with self.loop("i", n, "T.unroll") as i, self.lanes() as v:
            self.line(f"{flat}[{i} * {n} + {v}] = {element(i, v)}")
        width = n // 2
        while width:
            old, rows = rows, self.registers("square", n, f"{dtype}x{n}")
            with self.loop("h", n // width // 2, "T.unroll") as h, self.loop("i", width, "T.unroll") as i:
                a, b = (f"{h} * {2 * width} + {i} + {offset}" for offset in (0, width))
                for at, shuffled in zip((a, b), self._exchanged(f"{old}[{a}]", f"{old}[{b}]", width), strict=True):
                    self.line(f"{rows}[{at}] = {shuffled}")
            width //= 2
        flat = self.flat(rows, dtype)
        with self.loop("i", n, "T.unroll") as i, self.lanes() as v:
            store(i, v, f"{flat}[{i} * {n} + {v}]")

    def add_lanes(self, rows: Text, dtype: str) -> Text:
        """A buffer of one vector: the sum of the lanes of each of as many vectors as there are lanes."""
        n = self.vector
        width = n // 2
        while width:
            old, rows = rows, self.registers("sums", width, f"{dtype}x{n}")
            with self.loop("i", width, "T.unroll") as i:
                self.line(f"{rows}[{i}] = {' + '.join(self._exchanged(f'{old}[{i}]', f'{old}[{i} + {width}]', width))}")
            width //= 2
        return rows

    def _exchanged(self, a: Text, b: Text, width: int) -> tuple[Text, Text]:
        """Two vectors after exchanging the odd runs of ``width`` lanes of ``a`` for the even ones of ``b``."""
        n = self.vector
        first = [c if not c & width else n + c - width for c in range(n)]
        second = [c + width if not c & width else n + c for c in range(n)]
        return f"T.Shuffle([{a}, {b}], {first})", f"T.Shuffle([{a}, {b}], {second})"

    def flat(self, vectors: Text, dtype: str) -> Text:
        """The elements of a buffer of vectors."""
        name = self.src.fresh("flat")
        self.line(f'{name} = T.decl_buffer(({self.vector**2},), "{dtype}", data={vectors}.data)')
        return name
