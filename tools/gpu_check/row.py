"""What is checked and measured, as data: a row of a part, the peers that it names, and what is aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SMELT, EAGER, GRAPHS, COMPILED, TUNED = "smelt", "eager", "graphs", "compiled", "max-autotune"
FLASH, CUDNN = "sdpa flash", "sdpa cudnn"
STREAMS = "4 streams"
OURS = (SMELT, STREAMS)
SLOW = (COMPILED, TUNED)  # they compile for so long that everyone else is measured first
PEERS = {
    SMELT: 'smelt.compile(model, target="cuda")',
    STREAMS: "the same with streams=4",
    EAGER: "PyTorch",
    GRAPHS: "PyTorch's launches captured in a CUDA graph",
    COMPILED: "torch.compile(model, dynamic=False)",
    TUNED: 'the same with mode="max-autotune", which captures CUDA graphs',
    FLASH: "scaled_dot_product_attention by its flash kernel",
    CUDNN: "scaled_dot_product_attention by cuDNN",
}


@dataclass(frozen=True)
class Target:
    """A figure that is aimed at: ``figure`` is a name in ``figures.FIGURES``."""

    figure: str
    sign: str  # "<=" or ">="
    limit: float

    def met(self, value: float) -> bool:
        """Whether a measured figure is what was aimed at."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit


@dataclass(frozen=True)
class Row:
    """One row of a table, and one request to the process that measures.

    Attributes:
        name: within its part.
        kind: what computes it, a name in ``worker.KINDS``.
        options: for that.
        peers: who is measured, in this order.
        limit: seconds that it may take.
        alone: whether it needs a process of its own, with empty caches.
    """

    part: str
    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = (SMELT,)
    targets: tuple[Target, ...] = ()
    limit: float = 60.0
    alone: bool = False

    @property
    def quick(self) -> tuple[str, ...]:
        """The peers that are measured before there may be no time left for the others."""
        return tuple(name for name in self.peers if name not in SLOW) or self.peers


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        weight: its share of the time, among the parts that are still to come.
        unit: of its times: ``ms``, ``rate`` (TFLOP/s or GB/s) or ``s``; empty where nothing is timed.
        parallel: whether its rows may be computed side by side.
        aims_first: rows with targets are measured with everyone before other rows are begun.
    """

    name: str
    title: str
    weight: float
    unit: str = ""
    parallel: bool = False
    aims_first: bool = False


PARTS = {
    part.name: part
    for part in (
        Part("tests", "Correctness", 90, parallel=True),
        Part("kernels", "Single kernels", 55, "rate"),
        Part("start", "Cold compile", 100, "s"),
        Part("decode", "Decoding, one token", 200, "ms", aims_first=True),
        Part("prefill", "Prefill", 35, "ms"),
        Part("encoders", "Encoders", 50, "ms"),
    )
}
