"""``smelt bench``: a model against PyTorch eager and torch.compile, in one interleaved run with equal threads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from rich.table import Table
from torch import Tensor

from ..runtime.compile import compile
from ..runtime.report import Report
from ..runtime.target import usable_cores
from ..runtime.verify import VerifyResult, verify
from .console import busy, counted, emit_json, out, warn
from .env import facts
from .errors import ModelError
from .models import Model, load_model
from .peers import PEERS, SMELT, prepare
from .start import measure_start
from .timing import IDLE_SHARE, Runner, Timings, interleave, wait_for_idle


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found. Times are in seconds.

    Attributes:
        load: how many cores others kept busy before the run.
        ratios: how many times as long each takes as smelt, the median of the ratios within rounds.
        starts: for each, from a model in memory to its first result: ``cold`` with an empty cache, ``warm`` in a second
            process.
        work: floating-point operations of one call.
    """

    model: str
    inputs: tuple[str, ...]
    threads: int
    load: float | None
    timings: Timings
    ratios: Mapping[str, float]
    starts: Mapping[str, Mapping[str, float]]
    work: int | None
    checked: str

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data for JSON, with what is needed to judge it."""
        names = self.timings.seconds
        summary = {name: {"median": self.timings.median(name), "best": self.timings.best(name)} for name in names}
        return asdict(self) | {"summary": summary, "environment": facts()}


def bench(spec: str, threads: int | None, rounds: int, peers: str, start: bool, json_file: Path | None) -> None:
    """Time a model and print the outcome; see ``smelt bench --help``.

    Raises:
        VerifyError: the compiled model's result is not eager's, so that timing it means nothing.
        SmeltError: the model or a peer cannot be loaded.
    """
    names = [SMELT, *(name for name in parse_peers(peers) if name != SMELT)]
    count = threads or usable_cores()
    model = load_model(spec)
    outcome = measure(spec, model, names, count, rounds, start)
    if str(json_file) == "-":
        emit_json(outcome.to_dict())
        return
    if json_file is not None:
        json_file.write_text(json.dumps(outcome.to_dict(), indent=2, default=str) + "\n", encoding="utf-8")
    out().print(heading(outcome), style="bold", markup=False)
    out().print(table(outcome))
    out().print(remarks(outcome), style="dim", markup=False)


def parse_peers(text: str) -> list[str]:
    """The names in a list separated by commas.

    Raises:
        ModelError: one of them is not known.
    """
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    for name in names:
        if name not in PEERS:
            raise ModelError(f"there is no peer {name!r}; there are: {', '.join(PEERS)}")
    return names


def measure(spec: str, model: Model, names: Sequence[str], threads: int, rounds: int, start: bool) -> Outcome:
    """Check the result, then time everyone in turns, then starts in processes of their own."""
    before = torch.get_num_threads()
    try:
        checked, report = check(model, threads)
        runners = make_ready(names, model, threads)
        with busy("waiting for the machine to be idle"):
            load = wait_for_idle()
        if load is not None and load > IDLE_SHARE:
            warn(f"other processes keep {load:.1f} cores busy: these times are longer than on an idle machine")
        with counted("timing", rounds) as progress:
            timings = interleave(runners, rounds, progress=progress)
    finally:
        torch.set_num_threads(before)
    return Outcome(
        model=model.name,
        inputs=tuple(describe_inputs(model)),
        threads=threads,
        load=load,
        timings=timings,
        ratios={name: timings.ratio(name, SMELT) for name in names},
        starts=measure_starts(spec, [name for name in names if name != "eager"], threads) if start else {},
        work=report.flops,
        checked=str(checked.worst),
    )


def check(model: Model, threads: int) -> tuple[VerifyResult, Report]:
    """Hold the compiled model's result against eager's.

    Raises:
        VerifyError: it breaks the numeric contract.
    """
    with busy(f"compiling {model.name} and checking its result"):
        fast = compile(model.model, threads=threads)
        return verify(fast, *model.args, **model.kwargs), fast.report()


def make_ready(names: Sequence[str], model: Model, threads: int) -> dict[str, Runner]:
    """The runners by name, each compiled and run."""
    runners = {}
    for name in names:
        with busy(f"preparing {name}"):
            runners[name] = prepare(name, model, threads)
            runners[name]()
    return runners


def measure_starts(spec: str, names: Sequence[str], threads: int) -> dict[str, dict[str, float]]:
    """Cold and warm starts: a first process with empty caches, and a second one that finds them filled."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        with busy(f"measuring the start of {name}"), tempfile.TemporaryDirectory() as folder:
            cold, warm = (measure_start(spec, name, threads, Path(folder)) for _ in range(2))
            found[name] = {"cold": cold["first"], "warm": warm["first"]}
    return found


def describe_inputs(model: Model) -> list[str]:
    """Names, dtypes and sizes of the tensors that the model is called with."""
    leaves = [*((f"[{i}]", x) for i, x in enumerate(model.args)), *model.kwargs.items()]
    tensors = [(name, x) for name, leaf in leaves for x in pytree.tree_leaves(leaf) if isinstance(x, Tensor)]
    return [f"{name} {str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for name, x in tensors]


def table(outcome: Outcome) -> Table:
    """The outcome as a table."""
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    for column in ("median ms", "best ms", "x smelt", "GFLOP/s", "cold start s", "warm start s"):
        made.add_column(column, justify="right")
    for name in outcome.timings.seconds:
        median, best = outcome.timings.median(name), outcome.timings.best(name)
        rate = f"{outcome.work / best / 1e9:.0f}" if outcome.work else ""
        starts = outcome.starts.get(name, {})
        cells = [f"{median * 1e3:.2f}", f"{best * 1e3:.2f}", f"{outcome.ratios[name]:.2f}", rate]
        made.add_row(name, *cells, *(f"{starts[kind]:.2f}" if kind in starts else "" for kind in ("cold", "warm")))
    return made


def heading(outcome: Outcome) -> str:
    """What was timed."""
    threads = f"{outcome.threads} thread{'s' if outcome.threads > 1 else ''} each"
    return f"{outcome.model}, {threads}: {', '.join(outcome.inputs)}"


def remarks(outcome: Outcome) -> str:
    """How to read the table."""
    rounds = len(next(iter(outcome.timings.seconds.values())))
    load = "at an unknown load" if outcome.load is None else f"others kept {outcome.load:.1f} cores busy"
    return (
        f"{rounds} rounds in turns, {load}. x smelt: the median of the ratios within rounds. GFLOP/s: at best.\n"
        "Start: from a model in memory to the first result; cold: empty caches, warm: a second process.\n"
        f"Checked before timing: {outcome.checked}"
    )
