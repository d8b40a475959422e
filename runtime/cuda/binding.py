"""A plan bound to one set of sizes, as a GPU runs it: launches that are prepared, and the tensors of every call."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..placement import Placed, Sizes
from ..plan import TorchStep
from .device import Launch


@dataclass(frozen=True)
class Prepared:
    """A kernel step whose launches are prepared.

    Attributes:
        launches: how many there are.
        buffers: the table positions of their tensors.
        reads: how many of these are only read; they come first.
        programs: of the launch that has most.
    """

    launch: Launch
    launches: int
    buffers: tuple[int, ...]
    reads: int = 0
    programs: int = 0


@dataclass(kw_only=True)
class Binding(Placed):
    """A plan for one set of sizes.

    Attributes:
        key: the sizes, in the order of the plan's symbols.
        slots: the tensors that are there for every call, by table position; none while there is no arena.
        steps: the plan's steps, launches prepared.
        empty: whether some tensor has no elements.
    """

    key: tuple[int, ...]
    sizes: Sizes
    steps: list[Prepared | TorchStep]
    slots: list[Tensor | None] = field(default_factory=list)
    empty: bool = False
