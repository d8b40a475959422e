"""Kernels compiled for a GPU that need not be there, and what their machine code takes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...ir.errors import BackendError
from ..gpu import GpuMachine
from .expression import ERROR
from .file import KernelFile, Launch
from .fitted import fitted
from .loaded import function_of
from .machine_code import frame_of, registers_of, spills_of
from .source import size_name
from .storage import TYPES

ALLOCATION = 256  # registers that a warp is given at a time
RESERVED = 1 << 10  # bytes of shared memory that the system keeps of each block


@dataclass(frozen=True)
class Resources:
    """What a function takes.

    Attributes:
        function: its name.
        registers: of a thread.
        spills: bytes of a thread's registers that do not fit and lie in memory.
        stack: bytes of a thread's memory: spilled registers, and arrays (libdevice's sine has one).
        shared_bytes: of shared memory of a program.
        warps: of a program.
        occupancy: the share of a processor's threads that can be there at a time, by all of these.
        bytes: of machine code, with what describes it.
        bits: of its index arithmetic.
    """

    function: str
    registers: int
    spills: int
    stack: int
    shared_bytes: int
    warps: int
    occupancy: float
    bytes: int
    bits: int


def versions() -> dict[str, str]:
    """The versions that machine code depends on."""
    import triton

    return {"triton": triton.__version__, "torch": torch.__version__}


def compile_file(kernel: KernelFile, machine: GpuMachine) -> list[Resources]:
    """Compile every function of a kernel; both of each where sizes decide how many bits offsets need.

    Raises:
        BackendError: Triton is interpreting in this process, or refuses a function.
    """
    files = kernel.all
    return [compile_function(file, launch, machine) for file in files for launch in file.launches]


def compile_function(kernel: KernelFile, launch: Launch, machine: GpuMachine) -> Resources:
    """Compile one function of a kernel, as :func:`compile_file`."""
    return resources_of(machine_code(kernel, launch, machine), machine)


@dataclass(frozen=True)
class MachineCode:
    """A function as machine code, with what a launch of it takes beside its arguments.

    Attributes:
        function: its name.
        code: the cubin.
        arch: what it was made for, as ``sm_90a``: code with a letter runs on no other GPU than that one.
        warps: of a program.
        shared: bytes of a program's shared memory that are asked for when it is launched.
        scratch: bytes of the GPU's memory that each program is lent, which start at a multiple of ``alignment``.
        bits: of its index arithmetic.
        ptx: what the cubin was assembled from.
    """

    function: str
    code: bytes
    arch: str
    warps: int
    shared: int
    scratch: int
    alignment: int
    bits: int
    ptx: str


def machine_code(kernel: KernelFile, launch: Launch, machine: GpuMachine) -> MachineCode:
    """One function of a kernel as machine code. After its arguments it takes the addresses of two scratch buffers.

    Raises:
        BackendError: Triton is interpreting in this process, refuses the function, or makes one that is launched in
            another way.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise BackendError(
            "TRITON_INTERPRET is set: this process interprets Triton kernels and compiles none; unset it"
        )
    function = function_of(kernel.text, launch)
    signature = signature_of(kernel, launch)
    # torch's memory starts at multiples of 16 bytes
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs={}, attrs=aligned)
    target = GPUTarget("cuda", machine.capability, 32)
    try:
        compiled = fitted(launch, lambda options: triton.compile(source, target=target, options=dict(options)))
    except Exception as error:  # whatever Triton, LLVM or the assembler raises
        raise BackendError(f"Triton cannot compile {launch.function}: {error}") from error
    about = compiled.metadata
    if about.name != launch.function or about.num_ctas != 1 or _is_special(about):
        raise BackendError(f"Triton made code of {launch.function} that is launched in a way that is not known")
    shared = int(about.shared)
    if shared > machine.block_shared_bytes:
        raise BackendError(f"{launch.function} needs {shared} bytes of shared memory of {machine.block_shared_bytes}")
    ptx = compiled.asm["ptx"]
    return MachineCode(
        launch.function,
        compiled.asm["cubin"],
        _arch_of(ptx),
        int(about.num_warps),
        shared,
        int(about.global_scratch_size),
        int(about.global_scratch_align),
        kernel.bits,
        ptx,
    )


def _is_special(about: Any) -> bool:
    """Whether a launch needs more than a grid and arguments: all programs at once, an early start, a profiler."""
    return bool(about.launch_cooperative_grid or about.launch_pdl or about.profile_scratch_size)


def resources_of(made: MachineCode, machine: GpuMachine) -> Resources:
    """What a function takes of a GPU."""
    registers, stack, spills = registers_of(made.code), frame_of(made.code), spills_of(made.code, made.ptx)
    occupancy = occupancy_of(registers, made.shared, made.warps, machine)
    size = len(made.code)
    return Resources(made.function, registers, spills, stack, made.shared, made.warps, occupancy, size, made.bits)


@contextmanager
def without_lines() -> Iterator[None]:
    """Within it, machine code says nothing of the files that it was made from, in all threads."""
    from triton import knobs

    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True
        yield


def signature_of(kernel: KernelFile, launch: Launch) -> dict[str, str]:
    """The types of a function's arguments, as Triton spells them."""
    dtypes = {p.name: p.type.dtype for p in (*kernel.params, *kernel.scratch)} | {ERROR: torch.int64}
    pointers = {name: f"*{TYPES[dtypes[name]][1]}" for name in launch.buffers}
    return pointers | {size_name(s): f"i{kernel.bits}" for s in launch.symbols}


def occupancy_of(registers: int, shared: int, warps: int, machine: GpuMachine) -> float:
    """The share of a processor's threads that programs of a function can fill, at most 1."""
    per_warp = -(-max(registers, 1) * 32 // ALLOCATION) * ALLOCATION
    blocks = min(
        machine.registers // (per_warp * warps),
        machine.shared_bytes // (shared + RESERVED),
        machine.threads // (32 * warps),
        machine.blocks,
    )
    return min(blocks * warps * 32 / machine.threads, 1.0)


def _arch_of(ptx: str) -> str:
    """What the assembler is told to make code for."""
    found = re.search(r"^\.target (sm_\d+[af]?)", ptx, re.MULTILINE)
    if found is None:
        raise BackendError("Triton does not say which GPU its code is for")
    return found[1]
