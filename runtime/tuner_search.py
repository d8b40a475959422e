"""In which order schedules are tried: as the space ranks them, or as Optuna suggests from what was measured."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Protocol

from ..codegen.schedule import Schedule
from ..ir.errors import BackendError

SEARCHES = ("ranked", "optuna")
INSTALL_OPTUNA = "pip install 'smelt[tune]'"
FIRST = 8  # schedules that are tried in the order of the space before Optuna is asked
ATTEMPTS = 40  # suggestions that are no schedule of the space, or are known


class Search(Protocol):
    """Gives schedules to try, and is told what they took."""

    def next(self) -> Schedule | None:
        """A schedule that was not tried; None where none is left."""

    def tell(self, schedule: Schedule, ratio: float | None) -> None:
        """How long a schedule took relative to the default one; None where it has no result."""


class Ranked:
    """The space in its order."""

    def __init__(self, order: Sequence[Schedule]) -> None:
        self._order = list(order)
        self._known: set[Schedule] = set()

    def next(self) -> Schedule | None:
        """The first that is not known."""
        found = next((s for s in self._order if s not in self._known), None)
        if found is not None:
            self._known.add(found)
        return found

    def tell(self, schedule: Schedule, ratio: float | None) -> None:
        """It is known."""
        self._known.add(schedule)


class Guided:
    """The first of the space in its order, then what Optuna's TPE sampler suggests, always the same for a seed.

    Raises:
        BackendError: Optuna is not installed.
    """

    def __init__(self, order: Sequence[Schedule], seed: int = 0) -> None:
        require_optuna()
        import optuna  # type: ignore[import-not-found, unused-ignore]

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._order, self._space = list(order), set(order)
        self._axes = _axes(order)
        self._known: set[Schedule] = set()
        self._asked: dict[Schedule, Any] = {}
        self._distributions = {
            name: optuna.distributions.CategoricalDistribution(values) for name, values in self._axes.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that parts of Optuna may change
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=FIRST)
        self._study = optuna.create_study(sampler=sampler)
        self._trial, self._state = optuna.trial.create_trial, optuna.trial.TrialState

    def next(self) -> Schedule | None:
        """A suggestion; the next of the order where none is new."""
        if len(self._known) >= FIRST and self._axes:
            for _ in range(ATTEMPTS):
                trial = self._study.ask(self._distributions)
                found = replace(self._order[0], **trial.params)
                if found in self._space and found not in self._known:
                    self._asked[found] = trial
                    self._known.add(found)
                    return found
                self._study.tell(trial, state=self._state.FAIL)
        found_next = next((s for s in self._order if s not in self._known), None)
        if found_next is not None:
            self._known.add(found_next)
        return found_next

    def tell(self, schedule: Schedule, ratio: float | None) -> None:
        """Let the next suggestions follow from it."""
        self._known.add(schedule)
        asked = self._asked.pop(schedule, None)
        if asked is not None:
            self._study.tell(asked, ratio) if ratio is not None else self._study.tell(asked, state=self._state.FAIL)
        elif ratio is not None and self._axes:
            params = {name: getattr(schedule, name) for name in self._axes}
            self._study.add_trial(self._trial(params=params, distributions=self._distributions, value=ratio))


def search_of(name: str, order: Sequence[Schedule], seed: int = 0) -> Search:
    """The search of that name.

    Raises:
        ValueError: there is none.
        BackendError: its package is not installed.
    """
    if name not in SEARCHES:
        raise ValueError(f"there is no search {name!r}: say one of {', '.join(SEARCHES)}")
    return Ranked(order) if name == "ranked" else Guided(order, seed)


def require_optuna() -> None:
    """Raise BackendError, with the command that installs it, where Optuna is absent."""
    if find_spec("optuna") is None:
        raise BackendError(f"this search needs the package optuna, which is not installed; run: {INSTALL_OPTUNA}")


def _axes(order: Sequence[Schedule]) -> Mapping[str, tuple[Any, ...]]:
    """The fields in which the schedules differ, with their values."""
    values = {name: tuple(dict.fromkeys(getattr(s, name) for s in order)) for name in vars(order[0])}
    return {name: found for name, found in values.items() if len(found) > 1}
