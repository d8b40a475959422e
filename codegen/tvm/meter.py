"""What a roof is measured with: a run that does one thing only, as fast as the machine can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Meter:
    """A run, and how much it does.

    Attributes:
        run: does it once, on all threads.
        amount: operations, or bytes read.
    """

    run: Callable[[], None]
    amount: int
