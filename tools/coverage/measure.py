"""One architecture, measured: captured in how many graphs, what PyTorch runs of it, how large its error is."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ...ir.errors import SmeltError, VerifyError
from ...runtime.compile import compile
from ...runtime.entry import Entry
from ...runtime.layers import kernels_of_layers
from ...runtime.module import CompiledModule
from ...runtime.verify import OutputResult, verify
from .architectures import Architecture

Call = tuple[tuple[Any, ...], dict[str, Any]]

SIZES = ((2, 9), (3, 14))  # batch and length of the calls; one capture is to serve both
PROMPT = (2, 12)
CONTEXT = 32


@dataclass(frozen=True)
class Outcome:
    """How one kind of call fares.

    Attributes:
        call: ``"forward"`` or ``"decode"``.
        graphs: captures that all calls took; of a model that is not one graph, its parts.
        split: why it is not one graph; None where it is.
        fallbacks: operators that PyTorch runs, each once.
        max_abs: the largest difference from eager of any result.
        worst: that result with its errors, as ``smelt.verify`` says it.
        kernels: calls of kernels in one call of the model, those of PyTorch included.
        kernels_per_layer: those of the layer with the most, one that counts a cache's positions among them; None where
            no layers are numbered.
        error: what is wrong, None where every result keeps the numeric contract.
        seconds: for all of it.
    """

    call: str
    graphs: int = 0
    split: str | None = None
    fallbacks: tuple[str, ...] = ()
    max_abs: float | None = None
    worst: str | None = None
    kernels: int | None = None
    kernels_per_layer: int | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every result keeps the numeric contract."""
        return self.error is None


@dataclass(frozen=True)
class Row:
    """What was found of an architecture."""

    name: str
    kind: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether all of it is right."""
        return all(outcome.passed for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """The row as data for JSON."""
        return asdict(self)


def row_of(data: Mapping[str, Any]) -> Row:
    """A row from its data."""
    outcomes = (Outcome(**{**found, "fallbacks": tuple(found["fallbacks"])}) for found in data["outcomes"])
    return Row(data["name"], data["kind"], tuple(outcomes))


def measure(architecture: Architecture) -> Row:
    """Measure the forward call, and the step of decoding where there is one. What goes wrong is in the result."""
    outcomes = [attempt("forward", lambda: forward(architecture))]
    if architecture.decodes:
        outcomes.append(attempt("decode", lambda: decode(architecture)))
    return Row(architecture.name, architecture.kind, tuple(outcomes))


def attempt(call: str, run: Any) -> Outcome:
    """An outcome, also of what raised."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Outcome = run()
    except Exception as error:  # one failure is one row, whatever it is
        where = "" if isinstance(error, SmeltError) else f" ({_place(error)})"
        found = Outcome(call, error=f"{type(error).__name__}: {first_line(str(error))}{where}")
    return Outcome(**{**_fields(found), "seconds": round(time.monotonic() - start, 2)})


def forward(architecture: Architecture) -> Outcome:
    """Calls of two sizes, without a cache."""
    model = architecture.make()
    return observe("forward", model, [architecture.inputs(model, *sizes) for sizes in SIZES], dynamic=True)


def decode(architecture: Architecture) -> Outcome:
    """One token for each sequence, with transformers' static cache filled by a prompt."""
    from .architectures import tokens
    from .step import CachedStep

    model = architecture.make()
    step = CachedStep(model, prompt_of(architecture, model), CONTEXT, architecture.needs_mask).eval()
    position = torch.tensor([PROMPT[1]])
    return observe("decode", step, [((tokens(PROMPT[0], 1), position), {})], dynamic=False)


def prompt_of(architecture: Architecture, model: nn.Module) -> dict[str, Any]:
    """A prompt without padding."""
    _, named = architecture.inputs(model, *PROMPT)
    return {name: value for name, value in named.items() if name not in ("attention_mask", "use_cache")}


def observe(call: str, model: nn.Module, calls: Sequence[Call], dynamic: bool) -> Outcome:
    """Run calls compiled, hold each to the numeric contract, and count."""
    fast = compile(model, dynamic=dynamic, cache="kernels")
    results: list[OutputResult] = []
    error = None
    for args, kwargs in calls:
        try:
            results.extend(verify(fast, *args, **kwargs).outputs)
        except VerifyError as fault:
            error = error or first_line(str(fault))
    worst = max(results, key=lambda found: found.max_abs, default=None)
    return Outcome(
        call,
        graphs=len(fast.entries),
        split=split_reason(fast),
        fallbacks=fallbacks_of(fast.entries),
        max_abs=None if worst is None else worst.max_abs,
        worst=None if worst is None else str(worst),
        kernels=sum(len(entry.executable.plan.steps) for entry in last_call(fast)),
        kernels_per_layer=per_layer(last_call(fast)),
        error=error,
    )


def last_call(fast: CompiledModule) -> tuple[Entry, ...]:
    """The captures that one call runs: the last one, or all parts of a model that is split."""
    return fast.entries if fast.is_split else fast.entries[-1:]


def split_reason(fast: CompiledModule) -> str | None:
    """Why the model is not one graph."""
    return first_line(fast.report().split or "") or None


def fallbacks_of(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The operators that PyTorch runs."""
    return tuple(dict.fromkeys(found.op for entry in entries for found in entry.executable.fallbacks))


def per_layer(entries: Sequence[Entry]) -> int | None:
    """Kernels of the layer with the most."""
    counts = [len(steps) for entry in entries for steps in kernels_of_layers(entry.executable.plan).values()]
    return max(counts, default=None)


def first_line(text: str) -> str:
    """The first line of a text, shortened."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= 240 else f"{line[:237]}..."


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"


def _fields(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
