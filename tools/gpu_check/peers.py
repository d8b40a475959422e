"""Who is measured: each peer made ready for one call, with the sizes of the call as constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .row import COMPILED, CUDNN, EAGER, FLASH, GRAPHS, OURS, SMELT, STREAMS, TUNED
from .smelt_side import compiled
from .workload import Workload

Call = Callable[..., Any]
MOST_GRAPHS = 64  # that Dynamo may make of one function before it gives up


def ready(name: str, work: Workload) -> Call:
    """A peer of a workload; its first call may still compile."""
    return MAKERS[name](work)


def needs_gpu(name: str) -> bool:
    """Whether a peer has no meaning on a CPU, or takes a compiler for it."""
    return name not in (*OURS, EAGER)


def _smelt(work: Workload) -> Call:
    return compiled(work.model, work.quantize)


def _eager(work: Workload) -> Call:
    return work.eager


class Captured:
    """PyTorch's launches for one call in a CUDA graph, with memory of its own for arguments and results."""

    def __init__(self, work: Workload) -> None:
        self.args = tuple(x.clone() for x in work.args)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):
                work.eager(*self.args)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.results = work.eager(*self.args)

    def __call__(self, *args: Tensor) -> Any:
        """The results, which the next call overwrites; arguments are copied where they are not those of before."""
        for mine, given in zip(self.args, args, strict=True):
            mine.copy_(given)
        return self.replay()

    def replay(self) -> Any:
        """The same for the arguments that are there."""
        self.graph.replay()
        return self.results


def _compile(mode: str | None) -> Callable[[Workload], Call]:
    def make(work: Workload) -> Call:
        import torch._dynamo.config as config

        config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
        made: Call = torch.compile(work.eager, dynamic=False, mode=mode)
        return made

    return make


def _attention_by(backend: str) -> Callable[[Workload], Call]:
    def make(work: Workload) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = getattr(SDPBackend, backend)

        def run(*args: Tensor) -> Any:
            with sdpa_kernel(chosen):
                return work.eager(*args)

        return run

    return make


MAKERS: dict[str, Callable[[Workload], Call]] = {
    SMELT: _smelt,
    STREAMS: lambda work: compiled(work.model, work.quantize, streams=4),
    EAGER: _eager,
    GRAPHS: Captured,
    COMPILED: _compile(None),
    TUNED: _compile("max-autotune"),
    FLASH: _attention_by("FLASH_ATTENTION"),
    CUDNN: _attention_by("CUDNN_ATTENTION"),
}


def timed(call: Call, work: Workload) -> Callable[[], object]:
    """The call that is timed, without gradients; a captured graph is replayed on the arguments that it holds."""
    if isinstance(call, Captured):
        return call.replay
    return lambda: call(*work.args)
