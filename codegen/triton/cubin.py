"""Kernels compiled for a GPU that need not be there, and what their machine code takes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...ir.errors import BackendError
from ..gpu import GpuMachine
from .expression import ERROR
from .file import KernelFile, Launch
from .launch import load
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
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise BackendError(
            "TRITON_INTERPRET is set: this process interprets Triton kernels and compiles none; unset it"
        )
    function = getattr(load(kernel.text), launch.function)
    signature = signature_of(kernel, launch)
    # torch's memory starts at multiples of 16 bytes
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs={}, attrs=aligned)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    try:
        compiled: Any = triton.compile(source, target=GPUTarget("cuda", machine.capability, 32), options=options)
    except Exception as error:  # whatever Triton, LLVM or the assembler raises
        raise BackendError(f"Triton cannot compile {launch.function}: {error}") from error
    code = compiled.asm["cubin"]
    registers, stack = _used(code)
    spills = _spilled(compiled.asm["ptx"]) if stack else 0
    shared = int(compiled.metadata.shared)
    if shared > machine.block_shared_bytes:
        raise BackendError(f"{launch.function} needs {shared} bytes of shared memory of {machine.block_shared_bytes}")
    occupancy = occupancy_of(registers, shared, launch.warps, machine)
    return Resources(launch.function, registers, spills, stack, shared, launch.warps, occupancy, len(code), kernel.bits)


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


def _spilled(ptx: str) -> int:
    """The bytes of a thread's registers that the assembler stores to memory; arrays are not among them."""
    import re
    import subprocess
    import tempfile

    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (sm_(\d+)\w*)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(int(target[2])).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", text))


def _used(code: bytes) -> tuple[int, int]:
    """The registers of a thread, and its bytes in memory, from the machine code."""
    import subprocess
    import tempfile

    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return _number(text, "REG:"), _number(text, "LOCAL:") + _number(text, "STACK:")


def _number(text: str, label: str) -> int:
    return int(text.split(label, 1)[1].split()[0].split(":")[0])
