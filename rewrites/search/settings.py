"""What a search may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import sympy

from ...ir.cost import Roofs
from ...ir.errors import BackendError

INSTALL = 'pip install "smelt[search]"'


@dataclass(frozen=True)
class SearchSettings:
    """The limits of a search, and what it minimises.

    Attributes:
        sizes: the sizes to compare costs at; symbols without one have their nominal size.
        nodes: how many nodes the e-graph of one region may hold.
        seconds: how long all regions of a graph may take together. A search that this ends may find less on a slower
            machine; all else about it is the same every time.
        gain: what part of a region's time an improvement must save: less is not worth other rounding and weights that
            are kept twice. Terms that take the same time with fewer nodes are always taken.
        region: how many nodes of the graph are searched together at most.
        roofs: of the machine.
    """

    sizes: Mapping[sympy.Symbol, int] = field(default_factory=dict)
    nodes: int = 20_000
    seconds: float = 2.0
    gain: float = 0.03
    region: int = 200
    roofs: Roofs = field(default_factory=Roofs)


def require_egglog() -> None:
    """Raise BackendError, with the command that installs it, where egglog is absent."""
    if find_spec("egglog") is None:
        raise BackendError(f'optimize="search" needs the package egglog, which is not installed; run: {INSTALL}')
