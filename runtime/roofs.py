"""What this machine reaches, measured once and kept: the roofs that times are estimated from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..ir import ops
from ..ir.cost import Roofs
from ..ir.errors import CacheError
from ..ir.graph import Graph
from ..ir.types import SymbolRange, concrete, symbol
from ..rewrites.fusion import fuse
from ..rewrites.log import Fuel
from .cache import KernelCache
from .kernels import KernelTable
from .plan import KernelStep, make_plan
from .target import Target, pool_threads

if TYPE_CHECKING:
    from ..codegen.tvm.meter import Meter

FORMAT = 4  # those of 3 may have been measured on fewer threads than they were kept for
MATMUL = 1536
READ_BYTES = 256 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE = 32 << 20


def roofs_of(target: Target, cache: KernelCache | None = None) -> Roofs:
    """The roofs of a target on this machine: those kept in the user's cache folder, or measured and kept there.

    Measuring takes some five seconds. Roofs are kept for each number of threads, of those that ``TVM_NUM_THREADS``
    leaves, but not where others keep the machine so busy meanwhile that the caches seemed slower than memory.
    """
    target = target.with_threads(pool_threads(target.threads))
    cache = cache or KernelCache()
    path = cache.folder / f"{_name(target)}.roofs"
    kept = kept_roofs(path)
    if kept is not None:
        return kept
    found = measure(target)
    if found.cache_bytes_per_second > found.bytes_per_second:
        with suppress(CacheError, OSError):
            cache.check()
            keep_roofs(path, found)
    return found


def measure(target: Target) -> Roofs:
    """The roofs of a target, measured now. PyTorch's number of threads is another one meanwhile.

    What each core has to itself is measured on one and multiplied: waiting for threads is no part of a roof.
    """
    before, threads = torch.get_num_threads(), target.threads
    peaks, alone = peak_rates(target), target.with_threads(1)
    try:
        torch.set_num_threads(1)
        scalar = scalar_rate(target)
        cache, single = read_rate(alone, max(last_cache_bytes() // 8, 1 << 20)), read_rate(alone)
        torch.set_num_threads(threads)
        together = read_rate(target)
        launch = launch_seconds(target)
    finally:
        torch.set_num_threads(before)
    return Roofs(
        matmul_flops=peaks["float32"],
        scalar_flops=threads * scalar,
        bytes_per_second=max(single, together),
        launch_seconds=launch,
        cache_bytes_per_second=threads * cache,
        peaks=peaks,
    )


# --- one by one -------------------------------------------------------------------------------------------------------


def peak_rates(target: Target) -> dict[str, float]:
    """Multiplications and additions a second between registers, with all threads, by dtype."""
    # imported here: only a target that runs on TVM needs it
    from ..codegen.tvm.loading import load_tvm

    load_tvm()
    from ..codegen.tvm import peak

    kinds = peak.kinds(target.machine, target.features)
    return {kind.name: rate(peak.meter(kind, target.threads, target.cpu)) for kind in kinds}


def read_rate(target: Target, nbytes: int = READ_BYTES) -> float:
    """The best rate at which so many bytes of memory are read with the target's threads, in bytes a second."""
    from ..codegen.tvm import stream

    return rate(stream.meter(nbytes, target.threads, target.cpu))


def meters(target: Target, dtype: str) -> dict[str, Meter]:
    """What this machine's roofs are measured with, to be run beside what is compared with them.

    Returns:
        ``flops``, multiply-adds in a dtype (``"float32"``, ``"bfloat16"`` or ``"int8"``), and ``bytes``, reads of
        memory; each run takes some milliseconds. Empty where the processor has no such multiply-adds.
    """
    from ..codegen.tvm import peak, stream

    kinds = {kind.name: kind for kind in peak.kinds(target.machine, target.features)}
    if dtype not in kinds:
        return {}
    threads, cpu = target.threads, target.cpu
    return {
        "flops": peak.meter(kinds[dtype], threads, cpu),
        "bytes": stream.meter(READ_BYTES, threads, cpu),
    }


def matmul_rate(dtype: torch.dtype, size: int = MATMUL) -> float:
    """The best rate of PyTorch's square matrix product, in floating-point operations a second."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b))


def scalar_rate(target: Target) -> float:
    """The best rate of softmax and gelu on rows that lie in the cache, in operations a second as the IR counts them."""
    x = torch.randn(max(target.machine.l2_bytes // 8 // 1024, 1), 1024)
    node = ops.input(name="x", shape=tuple(x.shape), dtype=x.dtype)
    pairs: list[tuple[Any, Callable[[], object]]] = [
        (ops.softmax(node, dim=-1), lambda: F.softmax(x, -1)),
        (ops.gelu(node), lambda: F.gelu(x)),
    ]
    return max(concrete(made.op.flops(made), {}) / best_seconds(run, 0.1) for made, run in pairs)


def launch_seconds(target: Target, kernels: int = 64) -> float:
    """What one more kernel costs: a chain of kernels in parallel, a row of 16 for each thread, by their number."""
    # imported here: only a target that runs on TVM needs it
    from ..codegen.tvm.loading import load_tvm

    load_tvm()
    from ..codegen.tvm import module

    # a symbolic size: kernels that are known to be small run in one thread
    rows = symbol("rows")
    x = ops.input(name="x", shape=(rows, 16), dtype=torch.float32)
    value = x
    for _ in range(kernels):
        value = ops.softmax(value, dim=-1)
    graph = fuse(Graph([x], [value], symbols=[SymbolRange(rows, 1)]), Fuel(limit=0))
    table = KernelTable(target.machine)
    plan = make_plan(graph, table)
    steps = [s for s in plan.steps if isinstance(s, KernelStep)]
    sources = {s.kernel.name: s.kernel.source for s in steps}
    calls = tuple(module.Call(s.kernel.name, s.buffers) for s in steps)
    host = module.Host("chain", calls, len(plan.buffers), (rows,))
    run = module.build(list(sources.values()), [host], target.cpu)["chain"]
    at = {rows: target.threads}
    tensors = [torch.zeros([concrete(d, at) for d in b.type.shape], dtype=b.type.dtype) for b in plan.buffers]
    addresses, sizes = torch.tensor([t.data_ptr() for t in tensors]), torch.tensor([target.threads])
    module.set_threads(target.threads)
    return best_seconds(lambda: run(addresses, sizes), 0.1) / len(steps)


def rate(meter: Meter) -> float:
    """The best rate of a meter, in operations or bytes a second."""
    return meter.amount / best_seconds(meter.run)


def best_seconds(run: Callable[[], object], budget: float = 0.4) -> float:
    """The shortest of as many runs as fit the budget, at least three.

    Where PyTorch uses one thread, only the time counts that this one is running: others may want the core too.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best, end, runs = float("inf"), time.perf_counter() + budget, 0
    while runs < 3 or time.perf_counter() < end:
        start = clock()
        run()
        best = min(best, clock() - start)
        runs += 1
    return best


@lru_cache(maxsize=1)
def last_cache_bytes(folder: Path = _CACHES) -> int:
    """The size of the last-level cache in bytes; 32 MiB where the system does not tell."""
    sizes = []
    for path in folder.glob("index*/size"):
        with suppress(OSError):
            match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
            sizes.append(int(match[1]) << (10 * " KMG".index(match[2] or " ")) if match else 0)
    return max(sizes, default=0) or _DEFAULT_CACHE


# --- kept -------------------------------------------------------------------------------------------------------------


def _name(target: Target) -> str:
    facts = json.dumps([FORMAT, target.fingerprint, target.threads, torch.__version__])
    return f"roofs-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def kept_roofs(path: Path) -> Roofs | None:
    """Kept roofs; None where there are none, or what is kept is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rates = {field.name: float(data[field.name]) for field in fields(Roofs) if field.name != "peaks"}
        peaks = {str(name): float(rate) for name, rate in data["peaks"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    known = all(0 < rate < float("inf") for rate in (*rates.values(), *peaks.values()))
    return Roofs(**rates, peaks=peaks) if known else None


def keep_roofs(path: Path, roofs: Roofs) -> None:
    """Write roofs by renaming, so that a reader finds all or nothing."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(roofs), indent=1) + "\n")
    os.replace(name, path)
