"""Times attention of many queries: ``python -m tests.codegen.measure_attention [BxHxSxD ...]``.

Operands lie by token, as products write them. Float32 and bfloat16 take turns with PyTorch, in one thread or as many as
``THREADS`` says; the least time of each is printed with operations per second, and the roof that multiply-adds between
registers reach. Bfloat16 is held against the roof of its dot instruction.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smelt.codegen.schedule import default_schedule
from smelt.codegen.tvm import module
from smelt.codegen.tvm.packing import aligned_empty
from smelt.codegen.tvm.peak import kinds, meter
from smelt.runtime.roofs import rate
from smelt.runtime.target import Target

from .attention_cases import case

SHAPES = ("1x12x128x64", "8x12x128x64", "1x12x197x64", "32x12x128x32", "1x16x128x64", "1x12x512x64")
BY_TOKEN = (0, 2, 1, 3)
SECONDS = 3.0
Run = Callable[[], object]


def kernel(q: Tensor, k: Tensor, v: Tensor, target: Target) -> Run:
    """The compiled kernel on operands [B, S, H, D]."""
    batch, length, heads, head = q.shape
    made = case(
        heads=heads, head=head, dtype=q.dtype, operands=dict.fromkeys(range(3), BY_TOKEN), layouts=[BY_TOKEN]
    ).program()
    count = len(made.params) + 1
    host = module.Host("main", (module.Call("k", tuple(range(count))),), count, made.symbols)
    text = module.kernel_text("k", made, default_schedule(made, target.machine))
    main = module.build([text], [host], module.host_cpu())["main"]
    tensors = [aligned_empty(tuple(x.shape), x.dtype).copy_(x) for x in (q, k, v)]
    tensors += [aligned_empty(tuple(q.shape), q.dtype), aligned_empty((1,), torch.int64).zero_()]
    known = {"b": batch, "s": length, "k": length}
    table, sizes = torch.tensor([x.data_ptr() for x in tensors]), torch.tensor([known[str(s)] for s in made.symbols])
    return lambda keep=tensors: main(table, sizes)  # type: ignore[misc]


def eager(q: Tensor, k: Tensor, v: Tensor) -> Run:
    """PyTorch's."""
    by_head = [x.transpose(1, 2) for x in (q, k, v)]
    return lambda: F.scaled_dot_product_attention(*by_head)


def least(runs: Sequence[Run]) -> list[float]:
    """The least time of each, in turns, in seconds."""
    best = [float("inf")] * len(runs)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def main(shapes: Sequence[str]) -> None:
    """Print one line for each shape and dtype."""
    threads = int(os.environ.get("THREADS", "1"))
    target = Target.detect("cpu", threads)
    torch.set_num_threads(threads)
    module.set_threads(threads)
    roofs = {k.name: rate(meter(k, threads, target.cpu)) / 1e9 for k in kinds(target.machine, target.features)}
    for shape in shapes or SHAPES:
        batch, heads, length, head = map(int, shape.split("x"))
        for dtype in (torch.float32, torch.bfloat16):
            operands = [torch.randn(batch, length, heads, head).to(dtype) for _ in range(3)]
            own, its = least([kernel(*operands, target), eager(*operands)])
            speed, roof = 4e-9 * batch * heads * length**2 * head / own, roofs.get(str(dtype)[6:], roofs["float32"])
            print(
                f"{shape:14} {str(dtype)[6:]:9} {1e6 * own:9.1f} us {speed:6.1f} Gop/s {100 * speed / roof:5.1f} %"
                f"  PyTorch {1e6 * its:9.1f} us",
                flush=True,
            )


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        main(sys.argv[1:])
