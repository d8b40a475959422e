"""Which of several schedules wins: the default one, unless another is faster by more than the noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

BAND = 0.03  # what two runs of one kernel may differ by


def ratios(seconds: Sequence[Sequence[float]]) -> list[float]:
    """How long each takes relative to the first: the median of the ratios within rounds."""
    return [statistics.median(_within(mine, seconds[0])) for mine in seconds]


def chosen(seconds: Sequence[Sequence[float]], band: float = BAND) -> int:
    """The number of the schedule that wins, from the seconds of each in rounds in which everyone had a turn.

    Whatever is slower than the fastest by less than the band, or than the noise of its own rounds, ties with it. Of
    those that tie the first one wins, so schedules come in an order that is always the same, the default first.
    """
    found = ratios(seconds)
    best = min(range(len(found)), key=found.__getitem__)
    for number, ratio in enumerate(found):
        noise = max(band, _noise(_within(seconds[best], seconds[number])))
        if ratio <= found[best] * (1 + noise):
            return number
    return best


def _within(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def _noise(values: Sequence[float]) -> float:
    """Two standard errors of a median, from the median deviation, which a few slow rounds do not move."""
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return float(2 * 1.4826 * 1.2533 * deviation / middle / len(values) ** 0.5)
