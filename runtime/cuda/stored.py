"""Kernels as machine code and records of their launches: data, of which nothing is Python. As JSON and back.

A record says everything that a launch needs: the function, the grid as an expression of sizes, threads, shared memory,
and where each argument comes from, in order. What is read is held to the code: its GPU, its functions, and the bytes of
each parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch

from ...codegen.gpu import GpuMachine
from ...codegen.triton.elf import ElfError, read_cubin
from ...codegen.triton.width import NARROW_LIMIT, SPARE
from ...ir.dims import normal_form
from ...ir.errors import ArtifactError
from ...ir.types import DTYPE_NAMES, DTYPES, Dim, concrete
from ..saved.values import dim_data, dim_of

Sizes = Mapping[sympy.Symbol, int]

RECORDS = 1  # the number of what is below, and of how it is launched: code with another one is made anew
MOST_WARPS = 32
MOST_SCRATCH = 1 << 20  # bytes of one program
MOST_ALIGNMENT = 256  # that PyTorch's memory has
MOST_FUNCTIONS, MOST_ARGUMENTS = 64, 4096
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")


@dataclass(frozen=True)
class TensorArgument:
    """The address of one of the tensors of a kernel's step, by number."""

    place: int


@dataclass(frozen=True)
class SizeArgument:
    """A size as an integer of 32 or 64 bits."""

    symbol: sympy.Symbol
    bits: int


@dataclass(frozen=True)
class ScratchArgument:
    """The address of memory that is lent for one launch, so many bytes for each program; 0 where that is none."""

    nbytes: int
    alignment: int


Argument = TensorArgument | SizeArgument | ScratchArgument


@dataclass(frozen=True)
class StoredLaunch:
    """One launch of a function.

    Attributes:
        function: its name in the code.
        code: the cubin.
        programs: how many run; none where that is 0.
        warps: threads of a program by 32.
        shared: bytes of shared memory of a program.
        arguments: in order.
        registers, spills, stack: of a thread, for people: a number, and bytes.
    """

    function: str
    code: bytes
    programs: Dim
    warps: int
    shared: int
    arguments: tuple[Argument, ...]
    registers: int = 0
    spills: int = 0
    stack: int = 0


@dataclass(frozen=True)
class StoredKernel:
    """A kernel.

    Attributes:
        name: what it is called.
        dtypes: of the tensors of its step: operands, results, scratch memory, the error cell.
        checks_indices: whether it may report an index out of range.
        wide: its launches, in order, for any sizes.
        narrow: the same with offsets of 32 bits, for sizes at which no bound is above ``most``; None where there is one
            kind only.
        bounds, most: which sizes these are.
        alone: fewer launches with offsets of 32 bits, for those of these sizes at which ``points`` is ``enough`` at
            least; None where there is one way.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    checks_indices: bool
    wide: tuple[StoredLaunch, ...]
    narrow: tuple[StoredLaunch, ...] | None = None
    bounds: tuple[Dim, ...] = ()
    most: int = NARROW_LIMIT - SPARE
    alone: tuple[StoredLaunch, ...] | None = None
    points: Dim = 0
    enough: int = 0

    def at(self, sizes: Sizes) -> tuple[StoredLaunch, ...]:
        """The launches at some sizes: those of the file that ``KernelFile.at`` gives."""
        if self.narrow is not None and max((concrete(b, sizes) for b in self.bounds), default=0) > self.most:
            return self.wide
        if self.alone is not None and concrete(self.points, sizes) >= self.enough:
            return self.alone
        return self.wide if self.narrow is None else self.narrow

    @property
    def reads(self) -> int:
        """How many tensors of its step are only read: that is not recorded, so all count as written."""
        return 0

    def programs(self, sizes: Sizes) -> int:
        """How many programs its largest launch has at some sizes."""
        return max((concrete(launch.programs, sizes) for launch in self.at(sizes)), default=0)

    @property
    def launches(self) -> tuple[StoredLaunch, ...]:
        """All launches, those of the narrow kind first."""
        return (*(self.narrow or ()), *self.wide, *(self.alone or ()))


# --- as JSON ----------------------------------------------------------------------------------------------------------


class CodeWriter:
    """Cubins one after another, each once and at a multiple of 64 bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known: dict[bytes, list[int]] = {}

    def add(self, code: bytes) -> list[int]:
        """Where a cubin begins and ends."""
        if code not in self._known:
            self.data += bytes(-len(self.data) % 64)
            begin = len(self.data)
            self.data += code
            self._known[code] = [begin, len(self.data)]
        return self._known[code]


def kernel_data(kernel: StoredKernel, code: CodeWriter) -> dict[str, Any]:
    """A kernel as JSON, its machine code added to ``code``."""
    narrow = None if kernel.narrow is None else [_launch_data(x, code) for x in kernel.narrow]
    alone = None if kernel.alone is None else [_launch_data(x, code) for x in kernel.alone]
    return {
        "name": kernel.name,
        "tensors": [DTYPE_NAMES[dtype] for dtype in kernel.dtypes],
        "checks": kernel.checks_indices,
        "bounds": [_dim_data(bound) for bound in kernel.bounds],
        "most": kernel.most,
        "narrow": narrow,
        "wide": [_launch_data(x, code) for x in kernel.wide],
        "alone": alone,
        "points": _dim_data(kernel.points),
        "enough": kernel.enough,
    }


def _launch_data(launch: StoredLaunch, code: CodeWriter) -> dict[str, Any]:
    return {
        "function": launch.function,
        "code": code.add(launch.code),
        "programs": _dim_data(launch.programs),
        "warps": launch.warps,
        "shared": launch.shared,
        "arguments": [_argument_data(x) for x in launch.arguments],
        "resources": [launch.registers, launch.spills, launch.stack],
    }


def _argument_data(argument: Argument) -> list[Any]:
    match argument:
        case TensorArgument(place):
            return ["tensor", place]
        case SizeArgument(symbol, bits):
            return ["size", str(symbol), bits]
        case ScratchArgument(nbytes, alignment):
            return ["scratch", nbytes, alignment]


def _dim_data(dim: Dim) -> Any:
    return dim_data(normal_form(sympy.sympify(dim)))


# --- and back ---------------------------------------------------------------------------------------------------------


def kernel_of(data: Any, code: bytes, symbols: Iterable[sympy.Symbol], machine: GpuMachine) -> StoredKernel:
    """The kernel that :func:`kernel_data` wrote.

    Args:
        data: JSON.
        code: the cubins.
        symbols: the sizes that there are.
        machine: the GPU that the code was made for.

    Raises:
        ArtifactError: the data is damaged, or does not fit the code.
        ParseError, KeyError, TypeError, ValueError: the data is damaged.
    """
    reader = _Reader(code, {str(s): s for s in symbols}, machine, [DTYPES[name] for name in data["tensors"]])
    narrow = None if data["narrow"] is None else reader.launches(data["narrow"])
    bounds = tuple(reader.dim(bound) for bound in data["bounds"])
    wide, checks = reader.launches(data["wide"]), data["checks"]
    if type(checks) is not bool:
        raise ArtifactError("a kernel does not say whether it checks indices")
    most = number(data["most"], 0, NARROW_LIMIT)
    made = StoredKernel(name_of(data["name"]), tuple(reader.dtypes), checks, wide, narrow, bounds, most)
    if data.get("alone") is None:  # files that were made before there was such a way say nothing of it
        return made
    points, enough = reader.dim(data["points"]), number(data["enough"], 0, NARROW_LIMIT)
    return replace(made, alone=reader.launches(data["alone"]), points=points, enough=enough)


@dataclass
class _Reader:
    code: bytes
    symbols: Mapping[str, sympy.Symbol]
    machine: GpuMachine
    dtypes: Sequence[torch.dtype]

    def launches(self, data: Any) -> tuple[StoredLaunch, ...]:
        if not isinstance(data, list) or len(data) > MOST_FUNCTIONS:
            raise ArtifactError("a kernel has no launches, or too many")
        return tuple(map(self.launch, data))

    def launch(self, data: Any) -> StoredLaunch:
        begin, end = (number(at, 0, len(self.code)) for at in data["code"])
        warps, shared = number(data["warps"], 1, MOST_WARPS), number(data["shared"], 0, self.machine.block_shared_bytes)
        arguments = data["arguments"]
        if not isinstance(arguments, list) or len(arguments) > MOST_ARGUMENTS:
            raise ArtifactError("a launch has no arguments, or too many")
        registers, spills, stack = (number(n, 0, 1 << 30) for n in data["resources"])
        made = StoredLaunch(
            name_of(data["function"]),
            self.code[begin:end],
            self.dim(data["programs"]),
            warps,
            shared,
            tuple(map(self.argument, arguments)),
            registers,
            spills,
            stack,
        )
        self.check(made)
        return made

    def argument(self, data: Any) -> Argument:
        match data:
            case ["tensor", place]:
                return TensorArgument(number(place, 0, len(self.dtypes) - 1))
            case ["size", str(name), 32 | 64 as bits] if name in self.symbols:
                return SizeArgument(self.symbols[name], int(bits))
            case ["scratch", nbytes, alignment]:
                return ScratchArgument(number(nbytes, 0, MOST_SCRATCH), number(alignment, 1, MOST_ALIGNMENT))
        raise ArtifactError("a launch has an argument of no kind that there is")

    def dim(self, data: Any) -> Dim:
        if isinstance(data, bool) or not isinstance(data, int | str):
            raise ArtifactError("a launch has a size that is none")
        found: Dim = dim_of(data, self.symbols.values())
        return found

    def check(self, launch: StoredLaunch) -> None:
        """That the code is for this GPU, and has such a function with such parameters."""
        try:
            cubin = read_cubin(launch.code)
        except ElfError as error:
            raise ArtifactError(f"the machine code of {launch.function} cannot be read: {error}") from None
        if cubin.capability != self.machine.capability:
            raise ArtifactError(f"the machine code of {launch.function} is for sm_{cubin.capability}")
        function = cubin.functions.get(launch.function)
        given = tuple(x.bits // 8 if isinstance(x, SizeArgument) else 8 for x in launch.arguments)
        if function is None or function.parameters != given:
            raise ArtifactError(f"the machine code has no function {launch.function} of such parameters")
        if function.threads not in (None, 32 * launch.warps):
            raise ArtifactError(f"the machine code of {launch.function} is for another number of threads")


def number(value: Any, least: int, most: int) -> int:
    """A whole number within bounds.

    Raises:
        ArtifactError: it is none.
    """
    if type(value) is not int or not least <= value <= most:
        raise ArtifactError("a launch has a number that it cannot have")
    return value


def name_of(text: Any) -> str:
    """The name of a kernel or of a function.

    Raises:
        ArtifactError: it is none.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise ArtifactError("a kernel has a name that is none")
    return text
