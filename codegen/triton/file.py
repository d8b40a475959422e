"""The file of a kernel: its functions, and how they are launched one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy

from ...ir.types import Dim, SymbolRange, concrete
from ..program import Checked, Expr, Load, Param, Program, postorder
from ..text import print_program
from .expression import ERROR
from .scope import Scope, root_scope
from .source import Source, size_name
from .width import NARROW_LIMIT, SPARE, fits, index_bits

HEADER = """\
import triton
import triton.language as tl

from smelt.codegen.triton import library as lib
"""


@dataclass(frozen=True)
class Launch:
    """One launch of a function.

    Attributes:
        function: its name in the file.
        buffers: the names of the parameters and scratch buffers that it takes, in order; the error cell last, if any.
        symbols: the size symbols that it takes after them.
        programs: how many programs run; none where that is 0.
        warps, stages: threads of a program by 32, loads in flight.
    """

    function: str
    buffers: tuple[str, ...]
    symbols: tuple[sympy.Symbol, ...]
    programs: Dim
    warps: int
    stages: int


@dataclass(frozen=True)
class KernelFile:
    """A kernel as source.

    Attributes:
        name: of the kernel; its functions' names start with it.
        text: the Python source, with Triton functions.
        launches: what runs it, in order.
        params: the tensors of its program.
        scratch: memory that it is lent while it runs.
        bits: of its index arithmetic.
        narrow: the same with 32 bits, for sizes at which they suffice; None where ``bits`` is 32, or sizes are numbers.
        bounds: what must fit 32 bits for that one.
        alone: the same with 32 bits and fewer launches, for sizes at which they suffice and there are programs enough
            without the others; None where there is one way.
        points, enough: the programs that one of its launches has, and how many of them are enough.
    """

    name: str
    text: str
    launches: tuple[Launch, ...]
    params: tuple[Param, ...]
    scratch: tuple[Param, ...]
    bits: int
    narrow: KernelFile | None = None
    bounds: tuple[sympy.Expr, ...] = ()
    alone: KernelFile | None = None
    points: Dim = 0
    enough: int = 0
    _chosen: dict[tuple[tuple[str, int], ...], KernelFile] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def at(self, sizes: Mapping[sympy.Symbol, int]) -> KernelFile:
        """The file whose functions are launched at some sizes: this one, the one of fewer launches, or either narrow.

        Decided once for each sizes, from them alone.
        """
        if self.narrow is None and self.alone is None:
            return self
        key = tuple(sorted((str(s), n) for s, n in sizes.items()))
        if key not in self._chosen:
            self._chosen[key] = self._choose(sizes)
        return self._chosen[key]

    def _choose(self, sizes: Mapping[sympy.Symbol, int]) -> KernelFile:
        most = max((concrete(bound, sizes) for bound in self.bounds), default=0)
        if self.bits == 64 and most + SPARE > NARROW_LIMIT:
            return self
        if self.alone is not None and concrete(self.points, sizes) >= self.enough:
            return self.alone
        return self.narrow or self

    @property
    def all(self) -> tuple[KernelFile, ...]:
        """Every file that may be launched, of two widths of offsets the narrower first."""
        return tuple(file for file in (self.narrow, self, self.alone) if file is not None)


@dataclass
class FileWriter:
    """A file being written; ``bits`` of 0 are those that its offsets need."""

    name: str
    program: Program
    ranges: tuple[SymbolRange, ...]
    bits: int = 0
    scratch: list[Param] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    _functions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._is_given = bool(self.bits)
        self.bits = self.bits or index_bits(self.program, self.ranges)

    def lend(self, param: Param) -> Param:
        """Ask for memory while the kernel runs. To be called before any function is written."""
        if not self._is_given and not fits(param.type.shape, self.ranges):
            self.bits = 64
        self.scratch.append(param)
        return param

    @contextmanager
    def function(
        self,
        suffix: str,
        program: Program,
        roots: Sequence[Expr],
        written: Sequence[str],
        programs: Dim,
        *,
        warps: int,
        stages: int = 1,
    ) -> Iterator[Scope]:
        """A function that evaluates ``roots`` and writes the parameters ``written``; yields its outermost scope.

        ``program`` has all parameters that are named, scratch memory too.
        """
        loads = {e.param for e in postorder(roots) if isinstance(e, Load)} | set(written)
        buffers = [p.name for p in program.params if p.name in loads]
        if any(isinstance(e, Checked) for e in postorder(roots)):
            buffers.append(ERROR)
        sizes = [size_name(s) for s in program.symbols]
        name = f"{self.name}_{suffix}" if suffix else self.name
        src = Source(frozenset((*buffers, *sizes, "tl", "lib", "triton", name)))
        if self.bits == 64:
            for size in sizes:
                src.line(f"{size} = {size}.to(tl.int64)")
        yield root_scope(program, src, self.bits, self.ranges)
        fixed = f"(do_not_specialize=[{', '.join(map(repr, sizes))}])".replace("'", '"') if sizes else ""
        head = f"@triton.jit{fixed}\ndef {name}({', '.join((*buffers, *sizes))}):\n"
        self._functions.append(head + src.text)
        self.launches.append(Launch(name, tuple(buffers), program.symbols, programs, warps, stages))

    def file(self) -> KernelFile:
        """The file as it is now."""
        about = "".join(f"# {line}\n" for line in print_program(self.program).splitlines())
        text = "\n\n".join([f"{HEADER}\n{about}", *self._functions])
        return KernelFile(self.name, text, tuple(self.launches), self.program.params, tuple(self.scratch), self.bits)


def program_id(scope: Scope) -> str:
    """Which program runs: a number of the index type, as a text that can stand in any place."""
    return "tl.program_id(0)" if scope.bits == 32 else "tl.program_id(0).to(tl.int64)"


def ceil_div(size: Dim, block: int) -> Dim:
    """How many blocks cover a size."""
    return -(-size // block) if isinstance(size, int) else sympy.floor((size + block - 1) / block)
