"""Plans as CUDA graphs: what is captured, and the memory that a graph has of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...ir.node import through_views
from ..placement import Placed, nbytes_of
from ..plan import Buffer, KernelStep, Place, Plan, TorchStep
from .binding import Prepared
from .device import Device, Graph
from .streams import Lane, lanes_of, launch_on

LARGE = 8 << 20  # bytes of a result that is written where the caller gets it: a copy would take longer than a launch
FEWEST = 2  # launches that are worth a graph


Piece = list[Prepared] | Prepared | TorchStep


@dataclass(frozen=True)
class SideBySide:
    """How launches of one graph may run beside others.

    Attributes:
        streams: at most; 1 for one after another.
        processors: of the GPU: kernels of as many programs have it for themselves.
    """

    streams: int
    processors: int

    def lanes(self, steps: Sequence[Prepared], slots: Sequence[Tensor | None]) -> list[Lane]:
        """The stream of each step; none where there is one for all."""
        return [] if self.streams == 1 else lanes_of(steps, slots, self.streams, self.processors)


ALONE = SideBySide(1, 1)


def pieces_of(plan: Plan, placed: Placed, prepared: Sequence[Prepared | TorchStep]) -> list[Piece]:
    """The steps as graphs (lists), launches beside graphs, and PyTorch's steps, which are never captured."""
    beside = beside_graphs(plan, placed)
    found: list[Piece] = []
    for step, made in zip(plan.steps, prepared, strict=True):
        if isinstance(made, TorchStep):
            found.append(made)
        elif not made.launches:
            continue
        elif isinstance(step, KernelStep) and any(i in beside for i in step.buffers):
            found.append(made)
        elif found and isinstance(found[-1], list):
            found[-1].append(made)
        else:
            found.append([made])
    return [part for piece in found for part in _worth_it(piece)]


def _worth_it(piece: Piece) -> Sequence[Piece]:
    if isinstance(piece, list) and sum(p.launches for p in piece) < FEWEST:
        return piece
    return [piece]


def beside_graphs(plan: Plan, placed: Placed) -> frozenset[int]:
    """The large results for the caller that nothing reads: the kernels that write them are launched beside graphs."""
    found = set()
    for position in plan.written:
        buffer = plan.buffers[position]
        users = [step for step in plan.steps if position in touched(plan, step)]
        if len(users) == 1 and nbytes_of(buffer, placed.shapes) >= LARGE:
            found.add(position)
    return frozenset(found)


def touched(plan: Plan, step: KernelStep | TorchStep) -> frozenset[int]:
    """The table positions that a step reads or writes."""
    if isinstance(step, KernelStep):
        return frozenset(step.buffers)
    read = (plan.home.get(through_views(x)) for x in step.node.inputs)
    return frozenset((*step.results, *(b.position for b in read if b is not None)))


@dataclass
class Graphed:
    """A plan captured for some sizes and addresses.

    Attributes:
        pieces: graphs, launches beside them and PyTorch's steps, in order.
        slots: the tensors that the graphs were captured with, by table position; None for the caller's.
        copied: the arguments that are copied to the graph's own memory, by number and table position.
        baked: the addresses of the other arguments, by number.
        own: the graph's own memory.
        launches: how many launches are in graphs.
        streams: on how many streams at most these are.
        graphs, beside: how many graphs a replay launches, and how many launches and steps of PyTorch are beside them.
        nbytes: of the GPU's memory: its own tensors, and what the driver took.
    """

    pieces: list[Graph | Prepared | TorchStep]
    slots: list[Tensor | None]
    copied: dict[int, int]
    baked: dict[int, int]
    own: list[Tensor]
    launches: int
    streams: int = 1

    def __post_init__(self) -> None:
        graphs = [piece for piece in self.pieces if not isinstance(piece, (Prepared, TorchStep))]
        self.graphs, self.beside = len(graphs), len(self.pieces) - len(graphs)
        self.nbytes = sum(t.nbytes for t in self.own) + sum(graph.nbytes for graph in graphs)

    def fits(self, addresses: Sequence[int]) -> bool:
        """Whether arguments that are used in place lie where they lay."""
        return all(addresses[i] == address for i, address in self.baked.items())


def capture(
    device: Device,
    plan: Plan,
    placed: Placed,
    prepared: Sequence[Prepared | TorchStep],
    slots: Sequence[Tensor | None],
    arguments: Sequence[Tensor],
    moving: frozenset[int],
    blank: Callable[[Buffer], Tensor],
    side_by_side: SideBySide = ALONE,
) -> Graphed:
    """Capture a plan.

    Args:
        slots: the tensors that are there for every call, by table position: weights, intermediates, the error cell.
        arguments: of this call; those that are not moving on the device. No tensor of the call is empty.
        moving: the numbers of the arguments that are copied.
        blank: makes memory for a buffer.
        side_by_side: on how many streams launches may be, and when.
    """
    found: list[Tensor | None] = list(slots)
    pieces = pieces_of(plan, placed, prepared)
    inside = frozenset(i for piece in pieces if isinstance(piece, list) for p in piece for i in p.buffers)
    own: list[Tensor] = []

    def made(buffer: Buffer) -> Tensor:
        own.append(blank(buffer))
        found[buffer.position] = own[-1]
        return own[-1]

    copied, baked = {}, {}
    for i, (node, tensor) in enumerate(zip(plan.graph.inputs, arguments, strict=True)):
        buffer = plan.home[node]
        if buffer.position not in inside:
            continue
        if i in moving:
            made(buffer)
            copied[i] = buffer.position
        else:
            found[buffer.position], baked[i] = tensor, tensor.data_ptr()
    beside = beside_graphs(plan, placed)
    for buffer in plan.buffers:
        kept = buffer.place is Place.OUTPUT and buffer.position not in beside
        if kept or (buffer.place is Place.TORCH and buffer.position in inside):
            made(buffer)
    captured: list[Graph | Prepared | TorchStep] = []
    streams = 1
    for piece in pieces:
        if not isinstance(piece, list):
            captured.append(piece)
            continue
        lanes = side_by_side.lanes(piece, found)
        streams = max(streams, 1 + max((lane.number for lane in lanes), default=0))
        work = partial(launch_on, device, piece, found, lanes) if streams > 1 else partial(launch_all, piece, found)
        captured.append(device.capture(work))
    for i in baked:  # the caller's, which are his to free
        found[plan.home[plan.graph.inputs[i]].position] = None
    launches = sum(p.launches for piece in pieces if isinstance(piece, list) for p in piece)
    return Graphed(captured, found, copied, baked, own, launches, streams)


def launch_all(steps: Sequence[Prepared], slots: Sequence[Tensor | None]) -> None:
    """Launch steps on the tensors of a table."""
    for step in steps:
        step.launch([slots[i] for i in step.buffers])  # type: ignore[misc]
