"""GPUs as schedules see them, and schedules for them: how a kernel program becomes blocks of threads.

A schedule never changes what is computed. ``gpu_schedule.default_gpu_schedule`` chooses one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class GpuMachine:
    """What schedules need to know of a GPU.

    Attributes:
        capability: NVIDIA's compute capability, 90 for sm_90.
        processors: streaming multiprocessors.
        registers: 32-bit registers of one.
        threads: that one can hold.
        blocks: that one can hold.
        shared_bytes: shared memory of one.
        block_shared_bytes: the most of it that a block of threads may have.
        memory: bytes a second that its memory gives.
        half, tf32, single, int8: operations a second on half types and TensorFloat-32 (tensor cores), on float32, and
            on int8 and float8 (tensor cores).
        launch: seconds from a kernel's end to the start of the next.
    """

    capability: int = 90
    processors: int = 132
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    shared_bytes: int = 228 << 10
    block_shared_bytes: int = 227 << 10
    memory: float = 4.3e12
    half: float = 790e12
    tf32: float = 395e12
    single: float = 67e12
    int8: float = 1580e12
    launch: float = 2e-6


# Registers, threads and shared memory are those of NVIDIA's CUDA programming guide; processors and rates those of an
# A100 (80 GB, SXM), an H200 (SXM) and a B200 by their data sheets, dense. Of the H200 two rates were measured: a copy
# gave 4.3 TB/s (4.8 by the data sheet), a bfloat16 product of random numbers 790 TFLOP/s (989); its tensor cores' other
# rates are in the data sheet's ratio to that one. The time between launches is a guess.
GPU_MACHINES = {
    "sm_80": GpuMachine(
        80,
        108,
        shared_bytes=164 << 10,
        block_shared_bytes=163 << 10,
        memory=2.04e12,
        half=312e12,
        tf32=156e12,
        single=19.5e12,
        int8=624e12,
    ),
    "sm_90": GpuMachine(90, 132),
    "sm_100": GpuMachine(100, 148, memory=8e12, half=2250e12, tf32=1125e12, single=75e12, int8=4500e12),
}


@dataclass(frozen=True)
class GpuMapSchedule:
    """``block`` points in one program."""

    block: int = 1024
    warps: int = 4


@dataclass(frozen=True)
class GpuRowsSchedule:
    """``rows`` rows in one program, ``columns`` of their elements at a time: all of them where ``at_once``."""

    rows: int = 1
    columns: int = 1024
    at_once: bool = True
    warps: int = 4


LEAST_FLOAT8_ROWS = 64  # of a tile that tensor cores of sm_90 and sm_100 multiply in float8


@dataclass(frozen=True)
class GpuMatmulSchedule:
    """A tile of ``block_m`` rows by ``block_n`` columns in one program, ``block_k`` terms at a time.

    Attributes:
        group: rows of tiles that are computed together, so that what they read stays in cache.
        dot: multiply tiles on tensor cores or in FMAs by ``tl.dot``; otherwise products are summed one by one, which
            any dtype can, and which a few rows need.
        float8: multiply numbers of float8 as they are (sm_90), where sums of so many terms at the most leave the tensor
            cores to be added in float32; 0 multiplies them in float16, which has all of them.
        tf32: round float32 operands to TensorFloat-32, which is less exact.
        stages: loads in flight.
        splits: parts of the terms that programs of their own sum; a second kernel adds them up.
        streams: programs that share the blocks of terms of all tiles evenly (stream-K), whatever tiles they are of, and
            a second kernel that adds up; 0 for none. Not together with ``splits``.
        persistent: programs that take tiles in turns; 0 for a program for each tile.
        statistics: compute the statistics of rows that are computed first (a norm) in every program, without a launch
            of their own, where a tile by ``tl.dot`` has all rows.
        tma: read blocks of matrices by tensor descriptors, where they are in order for it (sm_90 and later).
        specialize: warps of their own for loads and for products, as Triton sees fit (sm_100).
    """

    block_m: int = 64
    block_n: int = 64
    block_k: int = 32
    group: int = 8
    dot: bool = True
    tf32: bool = False
    float8: int = 0
    warps: int = 4
    stages: int = 3
    splits: int = 1
    streams: int = 0
    persistent: int = 0
    statistics: bool = False
    tma: bool = False
    specialize: bool = False

    @property
    def keeps_float8(self) -> bool:
        """Whether tensor cores take float8 itself: Triton widens it to float16 in tiles that do not fill them."""
        return self.dot and bool(self.float8) and self.block_m >= LEAST_FLOAT8_ROWS


@dataclass(frozen=True)
class GpuAttentionSchedule:
    """``queries`` in one program, ``keys`` in a block between two updates of the softmax statistics.

    Attributes:
        few: one query in a program, by sums of products; otherwise many by ``tl.dot``.
        splits: parts of the keys that programs of their own take, for few queries; a second kernel puts them together.
        alone: how many queries of all heads together are enough programs, so that each takes all keys of one, without
            a second kernel; 0 where parts are always taken.
    """

    queries: int = 64
    keys: int = 64
    few: bool = False
    splits: int = 1
    alone: int = 0
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class GpuRecurrenceSchedule:
    """``rows`` of the batch in one program, ``units`` of the hidden state and ``terms`` of the product at a time.

    Without ``dot`` products are summed one by one.
    """

    rows: int = 16
    units: int = 32
    terms: int = 32
    dot: bool = True
    warps: int = 4


GpuSchedule = GpuMapSchedule | GpuRowsSchedule | GpuMatmulSchedule | GpuAttentionSchedule | GpuRecurrenceSchedule


def gpu_schedule_text(schedule: Any) -> str:
    """Short text: the kind and what it chooses, as ``gpu_map(block=1024, warps=4)``.

    What is off in most schedules is said only where it is on.
    """
    kind = type(schedule).__name__.removeprefix("Gpu").removesuffix("Schedule").lower()
    values = {f.name: getattr(schedule, f.name) for f in fields(schedule)}
    shown = (f"{n}={v}" for n, v in values.items() if v != _RARE.get(n))
    return f"gpu_{kind}({', '.join(shown)})"


_RARE: Mapping[str, int] = {
    "float8": 0,
    "splits": 1,
    "alone": 0,
    "streams": 0,
    "persistent": 0,
    "statistics": False,
    "tma": False,
    "specialize": False,
}
