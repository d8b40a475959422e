"""Calls with a cache recorded as the steps that were run, for ``smelt.verify`` to evaluate again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..calls import Call
from ..entry import Entry, Sizes

if TYPE_CHECKING:
    from .caches import DecoderMemory, SourceMemory


@dataclass(frozen=True)
class RecordedStep:
    """A step that was run.

    Attributes:
        entry, sizes: the capture that it was, and the sizes of its symbols.
        call: the step's arguments; tensors are copies, as they were before the run.
        given: the arguments of the model's call by name.
        inputs: how many of the leaves come before those of the cache.
        memory, source: where keys and values lie.
    """

    entry: Entry
    sizes: Sizes
    call: Call
    given: Mapping[str, Any]
    inputs: int
    memory: DecoderMemory
    source: SourceMemory | None


@dataclass
class Recording:
    """What became of calls.

    Attributes:
        steps: those that were run, in their order.
        passed: why PyTorch ran a call; "" where it ran none.
    """

    steps: list[RecordedStep] = field(default_factory=list)
    passed: str = ""
