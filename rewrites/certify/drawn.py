"""Cases drawn by hypothesis: sizes, dtypes, symbols or numbers, and the seed of the values; a fault is made small."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from ...ir.types import symbol
from ..sample import DTYPE_CLASSES
from .cases import NUMBERS, SIZES, Fault, Harness


@dataclass
class Drawn:
    """What a search came to: how many cases were tried, in how many there were values to compare, the first fault."""

    cases: int = 0
    compared: int = 0
    fault: Fault | None = None


class _FoundError(Exception):
    """A case has a fault."""


def search(harness: Harness, cases: int, at: int) -> Drawn:
    """Try a rule in so many cases, the same ones for the same seed ``at``."""
    drawn = Drawn()

    @seed(at)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(_cases(harness))
    def one(case: tuple[dict[str, Any], bool, int]) -> None:
        bindings, stepwise, values = case
        harness.random = random.Random(values)
        found = harness.case(bindings, stepwise)
        if isinstance(found, Fault):
            drawn.fault = found
            raise _FoundError
        drawn.cases += 1
        drawn.compared += found

    try:
        one()
    except _FoundError:
        return drawn
    if not drawn.compared:
        drawn.fault = harness.fault("samples", "no sample has a value in any case")
    return drawn


@st.composite
def _cases(draw: st.DrawFn, harness: Harness) -> tuple[dict[str, Any], bool, int]:
    """The variables of one case, whether half types are rounded after each step, and the seed of its values."""
    rule = harness.rule
    sample = draw(st.sampled_from(list(rule.samples)))
    symbolic = draw(st.booleans())
    sizes = {}
    for name in sample.dims:
        fixed = name[0].isupper()
        sizes[name] = symbol(name) if symbolic and not fixed else draw(st.sampled_from(NUMBERS if fixed else SIZES))
    dtypes = {word: draw(st.sampled_from(DTYPE_CLASSES[word])) for word in sample.dtypes}
    bindings = sample.bindings(rule.variables, sizes, dtypes)
    return bindings, draw(st.booleans()), draw(st.integers(0, 2**31 - 1))
