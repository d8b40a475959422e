"""Which calls get a graph: those of sizes seen before, whose written arguments lie where they lay.

A graph holds the sizes and addresses that it was captured with. So calls run kernel by kernel until calls of the same
kind came ``CALLS_BEFORE`` times: the first compiles and loads kernels, which nothing may do during a capture. An
argument that is only read may be copied to memory of the graph's own; it is where it was seen at other addresses. One
that is written, as a KV cache, is never copied: other addresses make another graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_GRAPHS = 16  # of one model that are held at a time, unless its user says otherwise
CALLS_BEFORE = 2  # calls that run kernel by kernel before one is captured
MOST_SIZES, MOST_KINDS = 256, 64  # what is counted: calls of so many sizes, and of each so many kinds


@dataclass
class _Seen:
    """What is known of calls of some sizes: how often each kind came, and the arguments that moved."""

    addresses: tuple[int, ...] | None = None
    moving: set[int] = field(default_factory=set)
    calls: OrderedDict[Any, int] = field(default_factory=OrderedDict)


class History:
    """The calls that were made, as far as graphs are concerned.

    Args:
        count: how many arguments there are.
        written: the numbers of those that calls write to.
    """

    def __init__(self, count: int, written: frozenset[int]) -> None:
        self._written = [i for i in range(count) if i in written]
        self._read = [i for i in range(count) if i not in written]
        self._seen: OrderedDict[Any, _Seen] = OrderedDict()

    def kind(self, sizes: Any, addresses: Sequence[int]) -> Any:
        """What calls of one graph have in common: sizes, and the addresses of what is written."""
        return sizes, tuple(addresses[i] for i in self._written)

    def note(self, sizes: Any, addresses: Sequence[int]) -> int:
        """Enter a call, its arguments at these addresses (0 for the CPU's memory): how many of its kind came before."""
        seen = self._seen.setdefault(sizes, _Seen())
        self._seen.move_to_end(sizes)
        if len(self._seen) > MOST_SIZES:
            self._seen.popitem(last=False)
        before = seen.addresses
        for i in self._read:
            if not addresses[i] or (before is not None and addresses[i] != before[i]):
                seen.moving.add(i)
        seen.addresses = tuple(addresses)
        kind = self.kind(sizes, addresses)
        count = seen.calls.get(kind, 0)
        seen.calls[kind] = count + 1
        seen.calls.move_to_end(kind)
        if len(seen.calls) > MOST_KINDS:
            seen.calls.popitem(last=False)
        return count

    def moving(self, sizes: Any) -> frozenset[int]:
        """The arguments that a graph for these sizes has copies of."""
        return frozenset(self._seen[sizes].moving)
