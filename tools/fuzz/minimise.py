"""A failing program made smaller, by hypothesis: steps and outputs left out for as long as it fails in the same way.

A step whose value is still needed becomes an input with that value, so that any step can go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

from torch import Tensor

from .builder import pruned, recorded
from .program import Program, names_in

SECONDS = 45.0  # after which no smaller program is looked for
TRIES = 400
_RARE = 60  # of so many choices, one leaves something out: most first tries are nearly the whole program


def minimise(program: Program, fails: Callable[[Program], bool], seconds: float = SECONDS) -> Program:
    """The smallest program found that still fails; the program itself where none was."""
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis import strategies as st
    from hypothesis.errors import NoSuchExample

    values = recorded(program)
    end = time.monotonic() + seconds
    known: dict[str, bool] = {}

    def check(kept: tuple[Sequence[int], Sequence[int], int]) -> bool:
        made = smaller(program, values, *kept)
        if made is None:
            return False
        key = repr((made.steps, made.outputs, made.inputs, len(made.calls)))
        if key not in known and time.monotonic() < end:
            known[key] = fails(made)
        return known.get(key, False)

    choices = st.integers(0, _RARE)
    cuts = st.tuples(
        st.lists(choices, min_size=len(program.steps), max_size=len(program.steps)),
        st.lists(choices, min_size=len(program.outputs), max_size=len(program.outputs)),
        choices.map(lambda keep: len(program.calls) if keep else 1),
    )
    config = settings(
        max_examples=TRIES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        found = smaller(program, values, *find(cuts, check, settings=config, random=Random(0)))
    except NoSuchExample:
        return program
    return found or program


def smaller(
    program: Program, values: Sequence[dict[str, Tensor]], steps: Sequence[int], outputs: Sequence[int], calls: int
) -> Program | None:
    """The program with what stands at a 0 left out, and its first calls only; None where nothing is left."""
    kept = [step for step, keep in zip(program.steps, steps, strict=True) if keep]
    shown = [x for x, keep in zip(program.outputs, outputs, strict=True) if keep]
    if not shown:
        return None
    made = {name for step in kept for name in step.targets}
    wanted = frozenset().union(*(s.reads for s in kept), *map(names_in, shown))
    cut = sorted((n for n in wanted - made if n.startswith("v") and n not in program.inputs), key=lambda n: int(n[1:]))
    given = values[:calls]
    if any(name not in known for known in given for name in cut):
        return None
    arguments = tuple(
        (*call, *(known[name] for name in cut)) for call, known in zip(program.calls[:calls], given, strict=False)
    )
    made_of = (*program.inputs, *cut)
    return pruned(Program(made_of, program.buffers, tuple(kept), tuple(shown), arguments, program.dynamic))
