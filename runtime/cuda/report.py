"""What the report says of CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class GraphCounts:
    """What became of the calls of one capture.

    Attributes:
        replays, launched: calls that replayed graphs, and those whose kernels were launched one by one.
        captured, evicted: how often a plan was captured; how often one was dropped because there were too many.
        dropped: how often graphs were dropped because addresses changed: of the arena, weights or an argument.
    """

    replays: int = 0
    launched: int = 0
    captured: int = 0
    evicted: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class GraphReport:
    """CUDA graphs of one capture.

    Attributes:
        held, most: how many kinds of calls have one, and may have one.
        nbytes: of the GPU's memory that they take: copies of arguments and results, and what the driver took.
        arena_bytes: of the memory for intermediates, which all of them share; it has the size of the largest call.
        graphs, kernels, beside: of the call that was replayed last: the graphs that it launches, how many kernel
            launches are in them, and how many launches and steps of PyTorch are beside them. None before a replay.
        streams: on how many streams the launches of one of these graphs are at most.
        copied: the arguments that such a call copies, by name.
        refused: why calls of some sizes are not captured, with these sizes.
    """

    held: int
    most: int
    nbytes: int
    arena_bytes: int
    replays: int
    launched: int
    captured: int
    evicted: int
    dropped: int
    graphs: int | None = None
    kernels: int | None = None
    beside: int | None = None
    streams: int | None = None
    copied: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The text of the report."""
        text = f"{self.held} held of at most {self.most}, {self.nbytes:,} bytes, arena {self.arena_bytes:,} bytes"
        text += f"; {self.replays:,} calls replayed, {self.launched:,} launched kernel by kernel"
        text += f"; captured {'once' if self.captured == 1 else f'{self.captured} times'}"
        text += f", {self.evicted} evicted" if self.evicted else ""
        text += f", {self.dropped} dropped for new addresses" if self.dropped else ""
        yield text
        if self.graphs is not None:
            how = f"a call replays {_count(self.graphs, 'graph')} of {_count(self.kernels or 0, 'launch', 'launches')}"
            how += f" on {self.streams} streams" if self.streams is not None and self.streams > 1 else ""
            how += f", and {_count(self.beside, 'step')} beside" if self.beside else ""
            yield how + f"; copied first: {', '.join(self.copied) or 'nothing'}"
        for sizes, reason in self.refused.items():
            yield f"not captured for {sizes}: {reason}"


def _count(number: int, name: str, several: str = "") -> str:
    return f"{number} {name if number == 1 else several or name + 's'}"
