"""One workload: its peers made ready and checked, then timed in turns, then their starts in processes of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ...codegen.tvm.meter import Meter
from ...runtime.module import CompiledModule
from ...runtime.report import Report
from ...runtime.verify import verify
from ..console import busy, counted, warn
from ..errors import ModelError
from ..models import Model, load_model
from ..plot import Dot, dots_of
from ..timing import IDLE_SHARE, LoadClock, Runner, interleave, wait_for_idle
from .outcome import Outcome, Starts
from .peers import PEERS, SMELT, PeerError, check, first_line, prepare
from .quantised import compiled
from .start import StartError, measure_start

ROOF = "roof"
# of weights and floating-point inputs before anyone quantises them
DTYPES: Mapping[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "int4": torch.float32,
    "fp8": torch.float32,
    "fp8-dynamic": torch.float32,
}


@dataclass(frozen=True)
class How:
    """How to measure: threads for all, rounds, how many starts, in which dtype, and whether kernels are measured too.

    ``meters`` are the machine's roofs (``flops`` and ``bytes``), which have a turn in each round as well.
    """

    threads: int
    rounds: int = 15
    starts: int = 1
    dtype: str = "f32"
    kernels: bool = False
    meters: Mapping[str, Meter] = field(default_factory=dict)


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
    if DTYPES[dtype] == torch.float32:
        return model
    if not isinstance(model.model, nn.Module):
        raise ModelError(f"{spec} is not a module: its weights cannot be made {dtype}")

    def cast(x: Any) -> Any:
        return x.to(DTYPES[dtype]) if isinstance(x, Tensor) and x.is_floating_point() else x

    args, kwargs = pytree.tree_map(cast, (tuple(model.args), dict(model.kwargs)))
    return replace(model, model=model.model.to(DTYPES[dtype]), args=args, kwargs=kwargs)


def measure(spec: str, names: Sequence[str], how: How) -> Outcome:
    """Check results, then time everyone in turns, then starts.

    Raises:
        VerifyError: the compiled model's result is not eager's, so that timing it means nothing.
        SmeltError: the model cannot be loaded.
    """
    return measure_model(load(spec, how.dtype), names, how, spec)


def measure_model(
    model: Model, names: Sequence[str], how: How, spec: str = "", fast: CompiledModule | None = None
) -> Outcome:
    """The same for a model that is loaded; starts are measured where its ``spec`` is known.

    ``fast`` is the compiled model, where it was compiled for other sizes before.
    """
    before = torch.get_num_threads()
    try:
        runners, failed, errors = {}, {}, {}
        checked, report = "", None
        if SMELT in names:
            try:
                fast, checked, report = verified(model, how, fast)
                runners[SMELT], errors[SMELT] = fast_runner(fast, model, how)
            except PeerError as error:
                failed[SMELT] = str(error)
        others, refused, theirs = make_ready([n for n in names if n != SMELT], model, how.threads, how.dtype)
        runners, failed, errors = runners | others, failed | refused, errors | theirs
        if not runners:
            raise ModelError("; ".join(failed.values()) or "there is nothing to time")
        torch.set_num_threads(how.threads)
        with busy("waiting for the machine to be idle"):
            load = wait_for_idle()
        if load is not None and load > IDLE_SHARE:
            warn(f"other processes keep {load:.1f} cores busy: these times are longer than on an idle machine")
        clock = LoadClock()
        with counted(f"timing {model.name}", how.rounds) as progress:
            turns = runners | {f"{ROOF} {kind}": meter.run for kind, meter in how.meters.items()}
            everyone = interleave(turns, how.rounds, progress=progress)
        during = clock.load()
        dots = kernel_dots(fast, model) if how.kernels and fast is not None and SMELT in runners else ()
    finally:
        torch.set_num_threads(before)
    timed = [name for name in runners if name != "eager"] if spec else []
    first = SMELT if SMELT in runners else next(iter(runners))
    timings = everyone.only(runners)
    return Outcome(
        model=model.name,
        dtype=how.dtype,
        inputs=tuple(describe_inputs(model)),
        threads=how.threads,
        load=load,
        load_during=during,
        timings=timings,
        ratios={name: timings.ratio(name, first) for name in runners},
        errors=errors,
        starts=measure_starts(spec, timed, how),
        work=None if report is None else report.flops,
        moved=None if report is None else bytes_moved(model, report),
        roofs={
            kind: [meter.amount / seconds for seconds in everyone.seconds[f"{ROOF} {kind}"]]
            for kind, meter in how.meters.items()
        },
        checked=checked,
        failed=failed,
        kernels=tuple(dots),
    )


def bytes_moved(model: Model, report: Report) -> int | None:
    """What kernels read and write in this call; the part of a cache that is not read does not count."""
    unread = getattr(model.model, "unread_bytes", None)
    if report.bytes is None or unread is None:
        return report.bytes
    return report.bytes - int(unread(*model.args, **model.kwargs))


def verified(model: Model, how: How, fast: CompiledModule | None) -> tuple[CompiledModule, str, Report]:
    """Hold the compiled model's result to the contract: to eager's, or to that of the quantised weights.

    Raises:
        VerifyError: it breaks the numeric contract.
    """
    with busy(f"compiling {model.name} and checking its result"):
        if fast is None:
            fast = compiled(model, how.dtype, how.threads)
        return fast, str(verify(fast, *model.args, **model.kwargs).worst), fast.report()


def fast_runner(fast: CompiledModule, model: Model, how: How) -> tuple[Runner, float]:
    """The compiled model as a runner, and its error. It computes no gradients: there is nothing to switch off."""

    def run() -> Any:
        return fast(*model.args, **model.kwargs)

    torch.set_num_threads(how.threads)
    return run, check(SMELT, run(), model(), how.dtype)


def make_ready(
    names: Sequence[str], model: Model, threads: int, dtype: str = "f32"
) -> tuple[dict[str, Runner], dict[str, str], dict[str, float]]:
    """The runners by name, each compiled, run and checked against eager; those that cannot be, with the reason; errors.

    Whatever a peer raises ends that peer only.
    """
    expected = model()
    runners: dict[str, Runner] = {}
    failed: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name in names:
        with busy(f"preparing {name}"):
            try:
                runner = prepare(name, model, threads, dtype)
                errors[name] = check(name, runner(), expected, dtype)
            except PeerError as error:
                failed[name] = str(error)
                continue
            except Exception as error:  # some compile, and fail, in their first run
                failed[name] = f"{name} cannot run {model.name}: {first_line(error)}"
                continue
        runners[name] = runner
    return runners, failed, errors


def kernel_dots(fast: CompiledModule, model: Model) -> list[Dot]:
    """Each kernel of the compiled model, measured within runs of it; none where it is several graphs."""
    if fast.is_split:
        return []
    with busy("timing each kernel"), torch.no_grad():
        return dots_of(fast.explain(model.args, dict(model.kwargs), measure=True), model.name)


def measure_starts(spec: str, names: Sequence[str], how: How) -> dict[str, Starts]:
    """Starts by name, in turns: a first process with empty caches (cold), and a second one that finds them filled."""
    found: dict[str, Starts] = {}
    waiting = list(names)
    for number in range(how.starts):
        for name in list(waiting):
            with busy(f"measuring start {number + 1} of {name}"), tempfile.TemporaryDirectory() as folder:
                try:
                    cold, warm = (measure_start(spec, name, how.threads, Path(folder), how.dtype) for _ in range(2))
                except StartError as error:
                    warn(str(error))
                    waiting.remove(name)
                    found.pop(name, None)
                    continue
            kinds = found.setdefault(name, {"cold": [], "warm": []})
            kinds["cold"].append(cold)
            kinds["warm"].append(warm)
    return found


def describe_inputs(model: Model) -> list[str]:
    """Names, dtypes and sizes of the tensors that the model is called with."""
    leaves = [*((f"[{i}]", x) for i, x in enumerate(model.args)), *model.kwargs.items()]
    tensors = [(name, x) for name, leaf in leaves for x in pytree.tree_leaves(leaf) if isinstance(x, Tensor)]
    return [f"{name} {str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for name, x in tensors]
