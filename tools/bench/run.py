"""One workload: its peers made ready and checked, then timed in turns, then their starts in processes of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ...runtime.compile import compile
from ...runtime.report import Report
from ...runtime.verify import VerifyResult, verify
from ..console import busy, counted, warn
from ..errors import ModelError
from ..models import Model, load_model
from ..timing import IDLE_SHARE, Runner, Timings, interleave, wait_for_idle
from .peers import PEERS, SMELT, PeerError, check, prepare
from .roofs import Roofs
from .start import StartError, measure_start

DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
_ROOF = {"f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found. Times are in seconds.

    Attributes:
        load: how many cores others kept busy before the run.
        ratios: how many times as long each takes as smelt, the median of the ratios within rounds.
        starts: for each, ``cold`` with empty caches and ``warm`` in a second process: ``first``, from a model in memory
            to its first result, and ``peak_bytes``, the most memory that the process held.
        work: floating-point operations of one call.
        moved: bytes that kernels read and write in one call.
        failed: the peers that cannot run the model, and why.
    """

    model: str
    dtype: str
    inputs: tuple[str, ...]
    threads: int
    load: float | None
    timings: Timings
    ratios: Mapping[str, float]
    starts: Mapping[str, Mapping[str, Mapping[str, float]]]
    work: int | None
    moved: int | None
    checked: str
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data for JSON."""
        names = self.timings.seconds
        summary = {name: {"median": self.timings.median(name), "best": self.timings.best(name)} for name in names}
        return asdict(self) | {"summary": summary}

    def share(self, name: str, roofs: Roofs | None) -> float | None:
        """The share of its roof that a peer reaches at best."""
        if roofs is None or self.work is None or self.moved is None:
            return None
        return roofs.share(_ROOF[self.dtype], self.work, self.moved, self.timings.best(name))


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


def check_dtype(dtype: str) -> None:
    """Raise ModelError for a dtype that is not known."""
    if dtype not in DTYPES:
        raise ModelError(f"there is no dtype {dtype!r} to benchmark; there are: {', '.join(DTYPES)}")


def load(spec: str, dtype: str) -> Model:
    """The model that a command line names, its weights and floating-point inputs in a dtype.

    Raises:
        ModelError: there is no such model or dtype.
    """
    check_dtype(dtype)
    model = load_model(spec)
    if dtype == "f32":
        return model
    if not isinstance(model.model, nn.Module):
        raise ModelError(f"{spec} is not a module: its weights cannot be made {dtype}")

    def cast(x: Any) -> Any:
        return x.to(DTYPES[dtype]) if isinstance(x, Tensor) and x.is_floating_point() else x

    args, kwargs = pytree.tree_map(cast, (tuple(model.args), dict(model.kwargs)))
    return replace(model, model=model.model.to(DTYPES[dtype]), args=args, kwargs=kwargs)


def measure(
    spec: str, names: Sequence[str], threads: int, rounds: int, start: bool = True, dtype: str = "f32"
) -> Outcome:
    """Check results, then time everyone in turns, then starts.

    Raises:
        VerifyError: the compiled model's result is not eager's, so that timing it means nothing.
        SmeltError: the model cannot be loaded.
    """
    model = load(spec, dtype)
    before = torch.get_num_threads()
    try:
        checked, report = verified(model, threads)
        runners, failed = make_ready(names, model, threads)
        with busy("waiting for the machine to be idle"):
            others = wait_for_idle()
        if others is not None and others > IDLE_SHARE:
            warn(f"other processes keep {others:.1f} cores busy: these times are longer than on an idle machine")
        with counted(f"timing {model.name}", rounds) as progress:
            timings = interleave(runners, rounds, progress=progress)
    finally:
        torch.set_num_threads(before)
    measured = [name for name in runners if name != "eager"] if start else []
    return Outcome(
        model=model.name,
        dtype=dtype,
        inputs=tuple(describe_inputs(model)),
        threads=threads,
        load=others,
        timings=timings,
        ratios={name: timings.ratio(name, SMELT) for name in runners},
        starts=measure_starts(spec, measured, threads, dtype),
        work=report.flops,
        moved=report.bytes,
        checked=str(checked.worst),
        failed=failed,
    )


def verified(model: Model, threads: int) -> tuple[VerifyResult, Report]:
    """Hold the compiled model's result against eager's.

    Raises:
        VerifyError: it breaks the numeric contract.
    """
    with busy(f"compiling {model.name} and checking its result"):
        fast = compile(model.model, threads=threads)
        return verify(fast, *model.args, **model.kwargs), fast.report()


def make_ready(names: Sequence[str], model: Model, threads: int) -> tuple[dict[str, Runner], dict[str, str]]:
    """The runners by name, each compiled, run and checked against eager; and those that cannot be, with the reason."""
    expected = model()
    runners: dict[str, Runner] = {}
    failed: dict[str, str] = {}
    for name in names:
        with busy(f"preparing {name}"):
            try:
                runner = prepare(name, model, threads)
                check(name, runner(), expected)
            except PeerError as error:
                failed[name] = str(error)
                continue
        runners[name] = runner
    return runners, failed


def measure_starts(spec: str, names: Sequence[str], threads: int, dtype: str) -> dict[str, dict[str, dict[str, float]]]:
    """Cold and warm starts: a first process with empty caches, and a second one that finds them filled."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        with busy(f"measuring the start of {name}"), tempfile.TemporaryDirectory() as folder:
            try:
                cold, warm = (measure_start(spec, name, threads, Path(folder), dtype) for _ in range(2))
            except StartError as error:
                warn(str(error))
                continue
            found[name] = {"cold": cold, "warm": warm}
    return found


def describe_inputs(model: Model) -> list[str]:
    """Names, dtypes and sizes of the tensors that the model is called with."""
    leaves = [*((f"[{i}]", x) for i, x in enumerate(model.args)), *model.kwargs.items()]
    tensors = [(name, x) for name, leaf in leaves for x in pytree.tree_leaves(leaf) if isinstance(x, Tensor)]
    return [f"{name} {str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for name, x in tensors]
