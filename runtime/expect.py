"""The contract of ``smelt.compile(model, expect={...})``: what was recognised, how many kernels, what they move.

Patterns that stop matching, after an upgrade of a library say, change no result and cost time: a contract makes that
loud.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ir import ops
from ..ir.errors import ExpectationError
from ..ir.node import OPS, Trait
from ..rewrites.explain import nearest
from ..rewrites.registry import all_rules
from .entry import Entry
from .layers import kernels_of_layers
from .plan import Plan
from .traffic import Sizes, traffic_of, unfused
from .whynot import Miss, suggestion

Expected = int | float | range | Callable[[Any], bool]
Expectations = Mapping[str, Expected]

KERNELS = "kernels"
PER_LAYER = "kernels_per_layer"
FALLBACKS = "fallbacks"
BYTES = "bytes_over_minimum"
BOUNDS = (KERNELS, PER_LAYER, FALLBACKS, BYTES)
_NOT_COUNTED = (Trait.SOURCE, Trait.VIEW, Trait.CREATION, Trait.REGION, Trait.PROJECTION)


def check_expectations(expect: Expectations) -> None:
    """See that expectations are ones that can be checked.

    Raises:
        ValueError: a key or a value is none.
    """
    if not isinstance(expect, Mapping):
        raise ValueError(f'expect is {expect!r}: give numbers by name, such as {{"attention": 12, "kernels": 80}}')
    known = [*BOUNDS, *(name for name, op in OPS.items() if not op.traits.intersection(_NOT_COUNTED))]
    for key, value in expect.items():
        if key not in known:
            raise ValueError(f"expect has no entry {key!r}{suggestion(str(key), known)}")
        if not _is_expected(key, value):
            kind = "a number" if key == BYTES else "a whole number"
            raise ValueError(
                f"expect[{key!r}] is {value!r}: give {kind} from 0, a range, or a function of what is found"
            )


def _is_expected(key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return value >= 0 and (isinstance(value, int) or key == BYTES)
    return callable(value) or (isinstance(value, range) and key != BYTES)


def hold_to(expect: Expectations, entry: Entry, sizes: Sizes, name: str) -> None:
    """Hold a capture to what was expected of it.

    Args:
        expect: counts of operators, exact; and upper bounds: ``kernels`` is the number of kernel calls in one run,
            ``kernels_per_layer`` that of the layer with the most, ``fallbacks`` what PyTorch runs, and
            ``bytes_over_minimum`` a ratio. A range or a function says otherwise.
        entry: the capture.
        sizes: of the call that it was made for.
        name: what the model is called.

    Raises:
        ExpectationError: it is something else; the message says what was found, and for an operator that was not
            recognised which rule came nearest and what stopped it.
    """
    if not expect:
        return
    failed = [text for key, value in expect.items() for text in _fault(key, value, entry, sizes)]
    if failed:
        raise ExpectationError(f"{name} is not what was expected of it:\n" + "\n".join(f"- {text}" for text in failed))


@dataclass(frozen=True)
class Found:
    """What was found of one entry, and more about it."""

    value: int | float
    detail: str = ""


def _fault(key: str, expected: Expected, entry: Entry, sizes: Sizes) -> list[str]:
    found = _find(key, entry, sizes)
    if _meets(key, expected, found.value):
        return []
    shown = f"{found.value:.3f}" if isinstance(found.value, float) else str(found.value)
    text = f"{key}: {shown} found, {_wanted(key, expected)} expected"
    text += f"; {found.detail}" if found.detail else ""
    return [text + (_nearest_text(key, entry) if key not in BOUNDS and _is_short(expected, found.value) else "")]


def _meets(key: str, expected: Expected, found: int | float) -> bool:
    if isinstance(expected, range):
        return found in expected
    if isinstance(expected, int | float):
        return found <= expected if key in BOUNDS else found == expected
    return bool(expected(found))


def _wanted(key: str, expected: Expected) -> str:
    if isinstance(expected, range):
        return f"one of {expected}"
    if isinstance(expected, int | float):
        return f"at most {expected}" if key in BOUNDS else str(expected)
    return f"what {getattr(expected, '__name__', 'the function')} accepts was"


def _is_short(expected: Expected, found: int | float) -> bool:
    """Whether there are fewer than expected, as far as that can be told."""
    return found < expected if isinstance(expected, int | float) else True


# --- what is found ----------------------------------------------------------------------------------------------------


def _find(key: str, entry: Entry, sizes: Sizes) -> Found:
    plan = entry.executable.plan
    if key == KERNELS:
        return Found(len(plan.steps))
    if key == PER_LAYER:
        return _worst_layer(plan)
    if key == FALLBACKS:
        fallbacks = entry.executable.fallbacks
        return Found(len(fallbacks), "; ".join(map(str, fallbacks[:3])))
    if key == BYTES:
        return Found(traffic_of(entry.executable, sizes).ratio or 0.0)
    return Found(Counter(n.op.name for n in unfused(entry.executable.graphs).nodes)[key])


def _worst_layer(plan: Plan) -> Found:
    """The layer with the most kernels; the first of equals."""
    layers = kernels_of_layers(plan)
    if not layers:
        return Found(len(plan.steps), "the model has no numbered layers, so all of it counts as one")
    worst = max(layers, key=lambda layer: len(layers[layer]))
    kernels = [_kernel_text(plan, i) for i in layers[worst]]
    return Found(len(kernels), f"in {worst}: {', '.join(kernels)}")


def _kernel_text(plan: Plan, step: int) -> str:
    node = plan.steps[step].node
    if not node.is_a(ops.fused):
        return node.op.name
    region: Any = node.attrs["region"]
    return "+".join(n.op.name for n in region.nodes if not n.has(*_NOT_COUNTED)) or "copy"


def _nearest_text(operator: str, entry: Entry) -> str:
    """The near miss of all rules that make an operator which came furthest."""
    executable = entry.executable
    miss = nearest(operator, all_rules(), executable.graphs, executable.applications)
    if miss is None:
        return f"; no rule that makes {operator} nearly fits anything that is left in the graph"
    lines = [f"the nearest miss is rule {miss.rule.name} at", *Miss.of(miss).lines()]
    return "\n  " + "\n    ".join(lines)
