"""What a GPU reaches, measured by its own events once and kept. Nothing here has run on a GPU yet.

Bytes read and bytes written both count. Products are those of PyTorch's library on random numbers, for zeros take less
power and run faster; those of float32 are as PyTorch is set to compute them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ir import ops
from ...ir.cost import Roofs
from ...ir.errors import CacheError
from ...ir.types import concrete
from ..cache import KernelCache
from ..roofs import keep_roofs, kept_roofs
from ..target import Target

FORMAT = 1
COPY_BYTES = 1 << 30  # at most: many times any second-level cache
SIZES = {"float32": 4096, "bfloat16": 8192, "float16": 8192}  # of square matrices
DEFAULT_CACHE = 32 << 20  # bytes, where PyTorch does not tell
LAUNCHES = 200
ROUNDS, CALLS = 5, 5  # the best round counts, of the mean of its calls


def gpu_roofs_of(target: Target, cache: KernelCache | None = None) -> Roofs | None:
    """The roofs of a GPU: those kept in the user's cache folder, or measured and kept there. None without a GPU.

    Measuring takes about a second and 3 GiB of the GPU's memory, or a fourth of what is free.
    """
    if target.device.type != "cuda":
        return None
    cache = cache or KernelCache()
    path = Path(cache.folder) / f"{_name(target)}.roofs"
    kept = kept_roofs(path)
    if kept is not None:
        return kept
    found = measure(target.device)
    with suppress(CacheError, OSError):
        cache.check()
        keep_roofs(path, found)
    return found


def _name(target: Target) -> str:
    properties = torch.cuda.get_device_properties(target.device)
    facts = json.dumps([FORMAT, properties.name, properties.total_memory, target.cpu, torch.__version__])
    return f"roofs-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def measure(device: torch.device) -> Roofs:
    """The roofs of a GPU, measured now on its current stream."""
    with torch.no_grad(), torch.cuda.device(device):
        free, _ = torch.cuda.mem_get_info(device)
        cached = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or DEFAULT_CACHE
        large = max(min(COPY_BYTES, free // 8), 1 << 20)
        peaks = {name: product_rate(getattr(torch, name), size, device) for name, size in SIZES.items()}
        return Roofs(
            matmul_flops=peaks["float32"],
            scalar_flops=scalar_rate(cached // 8, device),
            bytes_per_second=copy_rate(large, device),
            launch_seconds=launch_seconds(device),
            cache_bytes_per_second=copy_rate(cached // 8, device),
            peaks=peaks,
        )


def product_rate(dtype: torch.dtype, size: int, device: torch.device) -> float:
    """The rate of PyTorch's square matrix product, in operations a second."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / best_seconds(lambda: torch.mm(left, right, out=out))


def copy_rate(nbytes: int, device: torch.device) -> float:
    """The rate of a copy within the GPU's memory, or its cache where both sides fit there; bytes a second."""
    source = torch.empty(nbytes // 4, device=device, dtype=torch.int32).random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source))


def scalar_rate(nbytes: int, device: torch.device) -> float:
    """The rate of softmax and gelu on rows that lie in the cache, in operations a second as the IR counts them."""
    x = torch.randn(max(nbytes // 4 // 1024, 1), 1024, device=device)
    node = ops.input(name="x", shape=tuple(x.shape), dtype=x.dtype)
    pairs: list[tuple[Any, Callable[[], Tensor]]] = [
        (ops.softmax(node, dim=-1), lambda: F.softmax(x, -1)),
        (ops.gelu(node), lambda: F.gelu(x)),
    ]
    return max(concrete(made.op.flops(made), {}) / best_seconds(run) for made, run in pairs)


def launch_seconds(device: torch.device) -> float:
    """What one more kernel costs: a chain of kernels on one number in a CUDA graph, by their number."""
    x = torch.zeros(1, device=device)

    def chain() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)

    chain()  # what is launched first is loaded then, which no capture may do
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    return best_seconds(graph.replay) / LAUNCHES


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest mean time of a call, of several rounds of calls one after another, by the GPU's events."""
    run()
    best = float("inf")
    for _ in range(ROUNDS):
        start, stop = _event(), _event()
        start.record()
        for _ in range(CALLS):
            run()
        stop.record()
        stop.synchronize()
        best = min(best, float(start.elapsed_time(stop)) / 1e3 / CALLS)
    return best


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
