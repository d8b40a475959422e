"""Host functions as data: which kernels one native call runs, on which buffers and sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .source import size_name
from .team import FEWEST

# What compiled host functions are called with, which libraries that are kept in files rely on: a table of addresses,
# where the error's comes in it, sizes in the order of their symbols. To be raised with any change of that.
ABI = 1
_DEFINED = re.compile(r"^def (\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """One kernel call of a host function: the kernel's name and the table positions of its buffers, in order."""

    kernel: str
    buffers: tuple[int, ...]


@dataclass(frozen=True)
class Host:
    """A host function: its name, the calls in order, the size of the address table and the size symbols by position."""

    name: str
    calls: tuple[Call, ...]
    addresses: int
    symbols: tuple[Any, ...]

    def sizes(self) -> dict[str, int]:
        """The position of each size, by the name that kernels have for it."""
        return {size_name(symbol): position for position, symbol in enumerate(self.symbols)}


def wants_team(texts: Sequence[str], hosts: Sequence[Host]) -> bool:
    """Whether a host function may start several parallel loops."""
    parallel = {name for text in texts if "T.parallel(" in text for name in _DEFINED.findall(text)}
    return any(sum(call.kernel in parallel for call in host.calls) >= FEWEST for host in hosts)
