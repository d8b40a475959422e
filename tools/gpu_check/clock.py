"""Times on a GPU by its own events, everyone in turns, beside what the machine reaches in the same round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

Call = Callable[[], object]
DEVICE = "cuda"
COPY, PRODUCT = "copy", "product"
COPY_BYTES = 1 << 30  # many times the L2
PRODUCT_SIZE = 8192
FLUSH_BYTES = 1 << 30  # written between calls of a kernel: far more than the L2, and longer than a launch takes
TURN_SECONDS = 0.02
MOST_CALLS = 200


@dataclass
class Rounds:
    """Seconds of one call, by name, one number for each round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self, name: str) -> dict[str, object]:
        """One's times as data for JSON."""
        times = self.seconds[name]
        return {"median": statistics.median(times), "best": min(times), "rounds": times}


class Roofs:
    """What the machine reaches: a copy within its memory, and a product of bfloat16 matrices by PyTorch's library.

    Random numbers, for products of zeros take less power and run faster.
    """

    def __init__(self) -> None:
        shape = (PRODUCT_SIZE, PRODUCT_SIZE)
        self.left, self.right = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        self.out = torch.empty_like(self.left)
        self.source = torch.empty(COPY_BYTES // 4, device=DEVICE, dtype=torch.int32).random_()
        self.target = torch.empty_like(self.source)

    @property
    def calls(self) -> dict[str, Call]:
        """A turn of each."""
        return {
            COPY: lambda: self.target.copy_(self.source),
            PRODUCT: lambda: torch.mm(self.left, self.right, out=self.out),
        }


def rates(rounds: Rounds) -> dict[str, list[float]]:
    """Bytes and operations a second in each round; bytes read and bytes written both count."""
    return {
        "bytes": [2 * COPY_BYTES / s for s in rounds.seconds[COPY]],
        "flops": [2 * PRODUCT_SIZE**3 / s for s in rounds.seconds[PRODUCT]],
    }


def in_turns(calls: Mapping[str, Call], rounds: int, flush: bool) -> Rounds:
    """Time calls in turns, A B C A B C, a turn being one call that does not count and then enough to last.

    With ``flush`` each call is timed alone, after a write of ``FLUSH_BYTES`` that leaves nothing of its operands in
    the L2: the median of those of a turn counts. Otherwise it is the mean of calls one after another.
    """
    found = Rounds({name: [] for name in calls})
    scratch = torch.empty(FLUSH_BYTES // 4, device=DEVICE, dtype=torch.int32) if flush else None
    counts = {name: _calls(call) for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            flushed = scratch if name not in (COPY, PRODUCT) else None
            found.seconds[name].append(_turn(call, counts[name], flushed))
    return found


def _calls(call: Call) -> int:
    """How many calls a turn has."""
    for _ in range(3):
        call()
    once = _turn(call, 3, None)
    return max(3, min(MOST_CALLS, int(TURN_SECONDS / max(once, 1e-7))))


def _turn(call: Call, count: int, scratch: Tensor | None) -> float:
    if scratch is None:
        start, stop = _event(), _event()
        start.record()
        for _ in range(count):
            call()
        stop.record()
        stop.synchronize()
        return _milliseconds(start, stop) / 1e3 / count
    count = min(count, 20)
    pairs = [(_event(), _event()) for _ in range(count)]
    for start, stop in pairs:
        scratch.zero_()
        start.record()
        call()
        stop.record()
    _synchronize()
    return statistics.median(_milliseconds(start, stop) for start, stop in pairs) / 1e3


def _synchronize() -> None:
    torch.cuda.synchronize()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _milliseconds(start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
    return float(start.elapsed_time(stop))


def launches(call: Call) -> dict[str, int]:
    """What one call has the GPU do: ``kernels`` that run, ``graph_launches`` and ``launches`` one by one.

    Empty where PyTorch's profiler cannot tell.
    """
    from torch.profiler import ProfilerActivity, profile

    call()
    _synchronize()
    found: dict[str, int] = {}
    with suppress(RuntimeError):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            _synchronize()
        found = dict.fromkeys(("kernels", "graph_launches", "launches"), 0)
        for event in profiler.events() or ():
            found[_kind(event)] = found.get(_kind(event), 0) + 1
        found.pop("", None)
    return found if found.get("kernels") else {}


def _kind(event: object) -> str:
    name = str(getattr(event, "name", ""))
    if str(getattr(event, "device_type", "")).endswith("CUDA"):
        return "" if name.startswith(("Memcpy", "Memset")) else "kernels"
    if name.startswith(("cudaGraphLaunch", "cuGraphLaunch")):
        return "graph_launches"
    return "launches" if name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) else ""
