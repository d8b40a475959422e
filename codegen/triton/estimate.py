"""How long a product takes on a GPU, roughly: what a tuner looks at first. Only the order of schedules means anything.

A program keeps a processor's arithmetic busy, or waits for its blocks; programs that fit a processor at a time hide one
another's waits. Memory gives its bandwidth only where enough bytes are asked for at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..gpu import GpuMachine, GpuMatmulSchedule

LATENCY = 8e-7  # seconds until a byte from memory is there
START = 1.5e-6  # of a program that begins and ends: its indices, its first loads, its stores
L2_SHARE = 3.0  # the bandwidth of the second-level cache over that of memory
PIPE = 64  # rows and columns of a block that keep tensor cores busy


@dataclass(frozen=True)
class GpuProduct:
    """A product as numbers.

    Attributes:
        batch, rows, columns, terms: its sizes.
        left, right, out: bytes of an element in memory; of few bits, less than one.
        kind: what multiplies: ``half``, ``int8`` or ``single``; ``tf32`` where the schedule asks for it.
    """

    batch: int
    rows: int
    columns: int
    terms: int
    left: float = 2.0
    right: float = 2.0
    out: float = 2.0
    kind: str = "half"

    @property
    def nbytes(self) -> float:
        """The bytes that have to be moved."""
        each = self.rows * self.terms * self.left + self.terms * self.columns * self.right
        return self.batch * (each + self.rows * self.columns * self.out)


def shared_bytes(p: GpuProduct, s: GpuMatmulSchedule) -> int:
    """The shared memory of a program whose blocks wait there for tensor cores."""
    item = 4.0 if p.kind == "single" else 1.0 if p.kind == "int8" else 2.0
    return int(s.stages * s.block_k * (s.block_m + s.block_n) * item) if s.dot else 0


def sums_of_a_thread(s: GpuMatmulSchedule) -> float:
    """The registers that hold the sums of a program, for each of its threads."""
    depth = 1 if s.dot else s.block_k
    return s.block_m * s.block_n * depth / (32 * s.warps)


def fits(p: GpuProduct, s: GpuMatmulSchedule, machine: GpuMachine) -> bool:
    """Whether registers and shared memory hold a program, by these figures; the compiler's are the ones that count."""
    most = (32 if p.kind == "single" and not s.tf32 else 128) if s.dot else 64
    return sums_of_a_thread(s) <= most and shared_bytes(p, s) <= machine.block_shared_bytes


def product_seconds(p: GpuProduct, s: GpuMatmulSchedule, machine: GpuMachine) -> float:
    """The seconds until the last program is done."""
    tiles = p.batch * -(-p.rows // s.block_m) * -(-p.columns // s.block_n)
    blocks = max(-(-p.terms // s.block_k), 1)
    programs = s.streams or s.persistent or tiles * s.splits
    each = tiles * blocks / max(programs, 1)  # blocks of terms that a program sums
    if not s.streams:
        each = -(-tiles // s.persistent) * blocks if s.persistent else -(-blocks // s.splits)
    together = _together(p, s, machine)
    waves = -(-programs // (machine.processors * together))
    block = s.block_k * (s.block_m * p.left + s.block_n * p.right)
    busy = min(programs / waves, machine.processors * together)
    computing = (
        2.0
        * s.block_m
        * s.block_n
        * s.block_k
        * min(together, max(programs / machine.processors, 1))
        / _rate(p, s, machine)
    )
    reading = block * busy / (L2_SHARE * machine.memory)
    flying = busy * block * max(s.stages - 1, 1)
    waiting = block * busy / min(L2_SHARE * machine.memory, flying / LATENCY)
    inside = waves * (each * max(computing, reading, waiting) + START)
    moved = p.nbytes + (
        2 * 4.0 * (tiles + s.streams if s.streams else tiles * s.splits) * s.block_m * s.block_n if _in_parts(s) else 0
    )
    outside = moved / min(machine.memory, flying / LATENCY)
    return max(inside, outside) + (machine.launch + START if _in_parts(s) else 0.0)


def _in_parts(s: GpuMatmulSchedule) -> bool:
    return s.splits > 1 or s.streams > 0


def _together(p: GpuProduct, s: GpuMatmulSchedule, machine: GpuMachine) -> int:
    """Programs that a processor holds at a time."""
    registers = min(40 + sums_of_a_thread(s) * 1.25, 255) * 32 * s.warps
    by_shared = machine.shared_bytes // (shared_bytes(p, s) + 1024)
    return max(
        min(int(machine.registers // registers), by_shared, machine.threads // (32 * s.warps), machine.blocks), 1
    )


def _rate(p: GpuProduct, s: GpuMatmulSchedule, machine: GpuMachine) -> float:
    """Operations a second of one processor."""
    kind = "single" if not s.dot else "tf32" if p.kind == "single" and s.tf32 else p.kind
    whole = {"half": machine.half, "int8": machine.int8, "tf32": machine.tf32, "single": machine.single}[kind]
    share = min(s.block_m / PIPE, 1.0) * min(s.block_n / PIPE, 1.0) if kind != "single" else 0.5
    faster = 1.05 if s.tma else 1.0
    return whole / machine.processors * share * faster
