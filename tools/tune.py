"""``smelt tune``: faster schedules for a model's kernels, and whether those that were found still count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..codegen.schedule import schedule_text
from ..codegen.schedule_data import schedule_to_dict
from ..codegen.space import differences
from ..runtime.cache import KernelCache
from ..runtime.compile import compile
from ..runtime.entry import Entry
from ..runtime.executable import Executable
from ..runtime.module import CompiledModule
from ..runtime.roofs import roofs_of
from ..runtime.target import Target
from ..runtime.tensors import dense
from ..runtime.tuned import fault_of
from ..runtime.tuner import Progress, Settings, Tuner, progress_of, reached
from ..runtime.tuner_lock import LOCK, read_lock, write_lock
from ..runtime.tuner_records import Choice, Records, versions
from ..runtime.tuner_search import SEARCHES, require_optuna
from ..runtime.tuner_task import tasks_of
from .console import busy, emit_json, measured, out, warn
from .errors import ModelError
from .models import Model, load_model
from .timing import IDLE_SHARE, interleave, wait_for_idle

ENOUGH = 0.9  # of the tuned speed, which default schedules should reach
COMPARED_ROUNDS = 9
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def tune(
    spec: str,
    *,
    budget: str = "60s",
    trials: int = 64,
    workers: int = 1,
    threads: int | None = None,
    search: str = "ranked",
    resume: bool = False,
    check: bool = False,
    lock: bool = False,
    merge: Path | None = None,
    as_json: bool = False,
) -> int:
    """Tune a model's kernels, or check what is known of them; see ``smelt tune --help``.

    Returns:
        The exit code: 1 where something is stale, or the default schedule of a kernel is wrong.

    Raises:
        SmeltError: the model cannot be loaded or captured, or an option says nothing that is known.
    """
    settings = Settings(seconds_of(budget), trials, workers, resume, _known(search))
    model, records = load_model(spec), Records.of_user()
    if merge is not None:
        _merge(records, merge)
    with busy(f"compiling {model.name}"):
        kernels, target = kernels_of(model, threads)
    if check:
        return _check(model, kernels, target, records, as_json)
    load = wait_for_idle()
    if load is not None and load > IDLE_SHARE:
        warn(f"other processes keep {load:.1f} cores busy: what is found now may not hold on an idle machine")
    with _bar(settings.budget) as tell:
        Tuner(kernels, target, records, settings, tell).run()
    if lock:
        _pin(kernels)
    speed = _compare(model, kernels, threads)
    if as_json:
        emit_json(_data(model, kernels, target, speed, load))
    else:
        _show(kernels, speed)
    return 1 if any(k.problem for k in kernels) else 0


def seconds_of(text: str) -> float:
    """Seconds from ``90``, ``60s``, ``5m`` or ``1h``.

    Raises:
        ModelError: it is none of that.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if found is None or float(found[1]) <= 0:
        raise ModelError(f"{text!r} is not a budget: say 60s or 5m")
    return float(found[1]) * _UNITS[found[2]]


def _known(search: str) -> str:
    if search not in SEARCHES:
        raise ModelError(f"there is no search {search!r}; there are: {', '.join(SEARCHES)}")
    if search == "optuna":
        require_optuna()
    return search


def _merge(records: Records, other: Path) -> None:
    if not other.is_file():
        raise ModelError(f"there is no file {other} to take records from")
    warn(f"{records.merge(Records(other))} records of {other} are new")


def kernels_of(model: Model, threads: int | None) -> tuple[list[Progress], Target]:
    """The kernels of a model's example call, before anything is measured.

    Raises:
        UnsupportedError: the model is several graphs.
    """
    target = Target.detect(threads=threads)
    fast = compile(model.model, target=target, tune="off")
    entry, sizes, call = fast.entry_for(model.args, model.kwargs)
    leaves = [dense(leaf) for leaf in _tensors(entry, call.leaves)]
    assert isinstance(entry.executable, Executable)
    return progress_of(tasks_of(entry.executable, leaves, sizes), target, roofs_of(target, KernelCache())), target


def _tensors(entry: Entry, leaves: Sequence[Any]) -> list[Any]:
    return [leaf for spec, leaf in zip(entry.capture.inputs, leaves, strict=True) if spec.kind == "tensor"]


# --- what is stale ----------------------------------------------------------------------------------------------------


def _check(model: Model, kernels: Sequence[Progress], target: Target, records: Records, as_json: bool) -> int:
    """Say for each kernel what is known of it; and what the lock pins that no kernel of the model has."""
    pinned = read_lock(Path(LOCK))
    states = {k.task.name: _state(k, target, [*records.choices(), *pinned]) for k in kernels}
    keys = {k.key for k in kernels}
    foreign = sorted({choice.kernel for choice in pinned if choice.key not in keys})
    if as_json:
        emit_json({"model": model.name, "kernels": states, "locked_elsewhere": foreign, "versions": versions()})
    else:
        for name, state in states.items():
            out().print(f"{name:<44} {state}", markup=False)
        if foreign:
            out().print(f"{LOCK} also has {len(foreign)} kernels that are not in this model now: {', '.join(foreign)}")
    return 1 if any(state.startswith("stale") for state in states.values()) else 0


def _state(kernel: Progress, target: Target, choices: Sequence[Choice]) -> str:
    mine = [choice for choice in choices if choice.key == kernel.key]
    if not mine:
        return "not tuned"
    program = kernel.task.step(target.machine).kernel.program
    faults = [fault_of(choice, program, target) for choice in mine]
    good = [choice for choice, fault in zip(mine, faults, strict=True) if fault is None]
    if not good:
        return f"stale: {faults[-1]}"
    last = good[-1]
    return "tuned: the default is best" if last.schedule == last.default else f"tuned: {last.gain:.2f} times as fast"


def _pin(kernels: Sequence[Progress]) -> None:
    """Put the choices into the lock, in place of those for the same kernels at the same sizes."""
    made = [k.choice for k in kernels if k.choice is not None]
    mine = {(c.key, tuple(sorted(c.sizes.items()))) for c in made}
    kept = [c for c in read_lock(Path(LOCK)) if (c.key, tuple(sorted(c.sizes.items()))) not in mine]
    write_lock(Path(LOCK), [*kept, *made])


# --- what was found ---------------------------------------------------------------------------------------------------


@contextmanager
def _bar(budget: float) -> Iterator[Callable[[Sequence[Progress], Progress | None], None]]:
    """A bar of the budget, with the best so far and what is left."""
    with measured("tuning", budget) as update:

        def tell(kernels: Sequence[Progress], now: Progress | None) -> None:
            whole = sum(k.task.calls * k.default_seconds for k in kernels) or 1.0
            name = "" if now is None else f"{now.task.name}, {sum(now.tried.values())} tried; "
            won, left = sum(k.gained for k in kernels) / whole, sum(k.left for k in kernels) / whole
            update(f"{name}{won:.1%} gained, at most {left:.0%} left")

        yield tell


def _compare(model: Model, kernels: Sequence[Progress], threads: int | None) -> dict[str, float] | None:
    """Seconds of a run with default and tuned schedules, in turns; None where the tuned ones are the default ones."""
    if all(k.choice is None or k.choice.schedule == k.default for k in kernels):
        return None
    runs: dict[str, CompiledModule] = {
        "default": compile(model.model, threads=threads, tune="off"),
        "tuned": compile(model.model, threads=threads, tune="cached"),
    }
    with busy("running the model both ways"):
        calls = {name: partial(_run, run, model) for name, run in runs.items()}
        found = interleave(calls, COMPARED_ROUNDS)
    return {name: found.median(name) for name in runs} | {"ratio": found.ratio("default", "tuned")}


def _run(compiled: CompiledModule, model: Model) -> Any:
    with torch.no_grad():
        return compiled(*model.args, **model.kwargs)


def _show(kernels: Sequence[Progress], speed: dict[str, float] | None) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    for column in ("calls", "default us", "tuned us", "x faster", "tried"):
        table.add_column(column, justify="right")
    table.add_column("schedule")
    for kernel in sorted(kernels, key=lambda k: -k.task.calls * k.default_seconds):
        table.add_row(*_cells(kernel))
    out().print(table)
    out().print(f"Default schedules reach {reached(kernels):.0%} of the tuned speed, kernel by kernel.", markup=False)
    for kernel in _behind(kernels):
        default = schedule_text(kernel.default)
        out().print(f"{kernel.task.name}: the default {default} reaches {kernel.seconds / kernel.default_seconds:.0%}")
    if speed is not None:
        out().print(
            f"The model: {speed['default'] * 1e3:.2f} ms with default schedules, {speed['tuned'] * 1e3:.2f} ms tuned, "
            f"{speed['ratio']:.3f} times as fast: the median of the ratios within {COMPARED_ROUNDS} rounds."
        )


def _behind(kernels: Sequence[Progress]) -> list[Progress]:
    """The kernels whose default schedule does not reach what it should."""
    return [k for k in kernels if k.choice is not None and k.seconds < ENOUGH * k.default_seconds]


def _cells(kernel: Progress) -> list[str]:
    tuned = "" if kernel.choice is None else f"{kernel.seconds * 1e6:.1f}"
    ratio = "" if kernel.choice is None else f"{kernel.default_seconds / kernel.seconds:.3f}"
    bad = {status: count for status, count in kernel.tried.items() if status != "ok"}
    tried = f"{sum(kernel.tried.values())}{' ' + str(bad) if bad else ''}" if kernel.tried else ""
    return [
        kernel.task.name,
        str(kernel.task.calls),
        f"{kernel.default_seconds * 1e6:.1f}",
        tuned,
        ratio,
        tried,
        kernel.problem or _changes(kernel),
    ]


def _changes(kernel: Progress) -> str:
    if kernel.choice is None:
        return ""
    found = differences(kernel.choice.schedule, kernel.default)
    known = " (known)" if kernel.known else ""
    return (", ".join(f"{name}={value}" for name, value in found.items()) or "default") + known


def _data(
    model: Model, kernels: Sequence[Progress], target: Target, speed: dict[str, float] | None, load: float | None
) -> dict[str, Any]:
    return {
        "model": model.name,
        "target": str(target),
        "load": load,
        "reached": reached(kernels),
        "run": speed,
        "kernels": [
            {
                "name": k.task.name,
                "key": k.key,
                "calls": k.task.calls,
                "sizes": dict(k.task.sizes),
                "default_seconds": k.default_seconds,
                "seconds": k.seconds,
                "least_seconds": k.least,
                "default": schedule_to_dict(k.default),
                "schedule": None if k.choice is None else schedule_to_dict(k.choice.schedule),
                "tried": dict(k.tried),
                "problem": k.problem,
                "known": k.known,
            }
            for k in kernels
        ],
    }
