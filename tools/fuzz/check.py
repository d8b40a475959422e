"""One program along every way: PyTorch, the graph interpreter, kernels without and with rewriting, native code."""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...frontend.capture import Capture, signature_of
from ...frontend.export import capture
from ...ir.text import print_graph
from ...rewrites.log import Fuel
from ...runtime.build import build_executable
from ...runtime.calls import CallReader
from ...runtime.contract import TOLERANCES
from ...runtime.entry import Entry, Mismatch
from ...runtime.target import Target
from ...runtime.verify import compare
from .noise import explained, noisy_runs
from .program import Call, Loaded, forget, load
from .variants import InterpretedGraph, interpreted_hosts

Values = dict[str, Any]
_HALF = re.compile(r"\bb?f16\b")
_PACKAGE = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Raised:
    """A call that raised."""

    error: Exception

    def __str__(self) -> str:
        text = str(self.error).strip().split("\n")[0]
        frames = [f for f in traceback.extract_tb(self.error.__traceback__) if "/tools/fuzz/" not in f.filename]
        own = [f for f in frames if str(_PACKAGE) in f.filename]
        place = f" in {own[-1].name} of {Path(own[-1].filename).name}" if own else ""
        return f"{type(self.error).__name__}{place}: {text}"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a program.

    Attributes:
        way: where it went wrong: capture, interpreter, unoptimised, optimised, native, crash or hang.
        message: what is wrong, in a line.
    """

    way: str
    message: str

    @property
    def kind(self) -> str:
        """The finding without names and numbers: what must stay the same while a program is made smaller."""
        return f"{self.way}: {re.sub(r'[0-9.e+-]*[0-9][0-9.e+-]*|[xbvs][0-9]+', '#', self.message.split(': ')[0])}"

    def __str__(self) -> str:
        return f"{self.way}: {self.message}"


@dataclass
class Verdict:
    """What checking a program found. ``recaptured`` calls had sizes that the first capture was not for."""

    finding: Finding | None = None
    graph: str = ""
    raised: bool = False
    recaptured: int = 0
    noisy: int = 0
    kernels: int = 0
    ways: list[str] = field(default_factory=list)


def check(source: str, native: bool = False) -> Verdict:
    """Check a program's source; with ``native`` its kernels are compiled and run as well."""
    loaded = load(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Check(source, loaded, native).run()
    finally:
        forget(loaded)


class _Check:
    def __init__(self, source: str, loaded: Loaded, native: bool) -> None:
        self.source, self.loaded, self.native = source, loaded, native
        self.verdict = Verdict()
        self.target = Target.detect("cpu", 1)
        self.narrow = bool(_HALF.search(source.partition("class Program")[2]))
        self._noise: list[list[Values | Raised]] | None = None

    def run(self) -> Verdict:
        self.eager = observe(self.loaded.module(), self.loaded.calls)
        self.verdict.raised = isinstance(self.eager[-1], Raised)
        self.reference = self.wide()
        self.model = self.loaded.module()
        self.before = [t.clone() for t in self.model.buffers()]
        self.reader = CallReader(signature_of(self.model))
        first = self.captured(self.loaded.calls[0])
        if isinstance(first, Raised):
            if not isinstance(self.eager[0], Raised):
                self.verdict.finding = Finding("capture", str(first))
            return self.verdict
        self.verdict.graph = print_graph(first.graph)
        ways: list[tuple[str, Callable[[Capture], Any]]] = [
            ("interpreter", InterpretedGraph),
            ("unoptimised", lambda c: self.built(c, Fuel(limit=0), interpreted_hosts)),
            ("optimised", lambda c: self.built(c, None, interpreted_hosts)),
        ]
        if self.native:
            ways.append(("native", lambda c: self.built(c, None, None)))
        captures = [first]
        for way, make in ways:
            self.verdict.ways.append(way)
            self.verdict.finding = self.way(way, make, captures)
            if self.verdict.finding is not None:
                break
        self.verdict.recaptured = len(captures) - 1
        return self.verdict

    def captured(self, call: Call) -> Capture | Raised:
        self.restore()
        try:
            return capture(self.model, clones(call), dynamic=self.loaded.dynamic)
        except Exception as error:
            return Raised(error)

    def restore(self) -> None:
        for tensor, value in zip(self.model.buffers(), self.before, strict=True):
            tensor.data.copy_(value)

    def built(self, captured: Capture, fuel: Fuel | None, native: Any) -> Any:
        made = build_executable(captured, self.target, verify=True, fuel=fuel, native=native)
        self.verdict.kernels = len(made.kernels)
        return made

    # --- one way ------------------------------------------------------------------------------------------------------

    def way(self, way: str, make: Callable[[Capture], Any], captures: list[Capture]) -> Finding | None:
        self.restore()
        entries: list[Entry] = []

        def run(*args: Tensor) -> Any:
            call = self.reader.read(args, {})
            for captured in captures:
                at = captures.index(captured)
                if at >= len(entries):
                    entries.append(Entry(captured, make(captured)))
                with contextlib.suppress(Mismatch):
                    return entries[at].run(call.leaves, entries[at].match(call.spec, call.leaves))
            kept = [t.clone() for t in self.model.buffers()]
            new = self.captured(args)
            for tensor, value in zip(self.model.buffers(), kept, strict=True):
                tensor.data.copy_(value)
            if isinstance(new, Raised):
                raise new.error
            captures.append(new)
            entries.append(Entry(new, make(new)))
            return entries[-1].run(call.leaves, entries[-1].match(call.spec, call.leaves))

        found = observe(run, self.loaded.calls, self.model)
        for number, (ours, eager) in enumerate(zip(found, self.eager, strict=False)):
            fault = self.fault(number, ours, eager)
            if fault is not None:
                return Finding(way, f"{fault}, call {number}")
        return None

    def fault(self, number: int, ours: Values | Raised, eager: Values | Raised) -> str | None:
        if isinstance(ours, Raised):
            return None if isinstance(eager, Raised) else f"raised {ours}"
        if isinstance(eager, Raised):
            return f"no error where eager raises {eager}"
        reference = self.reference[number] if number < len(self.reference) else {}
        exact = {} if isinstance(reference, Raised) else reference
        for path, value in eager.items():
            result = compare(path, ours[path], value, exact.get(path))
            if not result.passed and not self.explained(number, path, ours[path], value, exact.get(path)):
                return f"{result.fault}: {result}"
        return None

    def explained(self, number: int, path: str, ours: Any, eager: Any, exact: Any) -> bool:
        runs = [run[number] for run in self.noise() if number < len(run)]
        known: list[Values] = [run for run in runs if not isinstance(run, Raised)]
        if self.narrow and isinstance(exact, Tensor):
            known.append({path: exact})  # a kernel computes in more than a half type, eager rounds each step to it
        raises = any(isinstance(run, Raised) for run in runs)
        found = raises or explained(path, ours, eager, known) or on_the_edge(ours, eager, exact)
        self.verdict.noisy += found
        return found

    def noise(self) -> list[list[Values | Raised]]:
        found = self._noise
        if found is None:
            found = self._noise = noisy_runs(lambda: observe(self.loaded.module(), self.loaded.calls))
        return found

    def wide(self) -> list[Values | Raised]:
        """The calls in float64."""
        loaded = load(self.source, wide=True)
        model = loaded.module().double()
        calls = [tuple(t.double() if t.dtype.is_floating_point else t for t in call) for call in self.loaded.calls]
        with default_dtype(torch.float64):
            found = observe(model, calls)
        forget(loaded)
        return found


def on_the_edge(ours: Any, eager: Any, exact: Any) -> bool:
    """Whether values differ only where float64 says that eager's dtype cannot hold, or hardly, what is computed.

    That is where the exact value is too large, or is a number though eager's overflowed on the way to it.
    """
    if not isinstance(exact, Tensor) or not eager.dtype.is_floating_point or ours.shape != exact.shape:
        return False
    limit = torch.finfo(eager.dtype).max
    beyond = exact.isfinite() & ((exact.abs() > 0.9 * limit) | ~eager.isfinite())
    rtol, atol = TOLERANCES[eager.dtype]
    same = torch.isclose(ours, eager, rtol=rtol, atol=atol, equal_nan=True)
    return bool((same | beyond).all())


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """PyTorch's default dtype meanwhile."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def observe(run: Callable[..., Any], calls: Sequence[Call], module: nn.Module | None = None) -> list[Values | Raised]:
    """What some calls give, one after the other: outputs, and what became of arguments and buffers.

    It ends with the first call that raises.
    """
    owner = run if isinstance(run, nn.Module) else module
    found: list[Values | Raised] = []
    for call in calls:
        args = clones(call)
        try:
            with torch.no_grad():
                results = run(*args)
        except Exception as error:
            found.append(Raised(error))
            break
        values = {f"output {i}": x.clone() for i, x in enumerate(results)}
        values |= {f"argument {i}": x for i, x in enumerate(args)}
        if owner is not None:
            values |= {f"buffer {name}": x.detach().clone() for name, x in owner.named_buffers()}
        found.append(values)
    return found


def clones(call: Call) -> Call:
    """A call's tensors, copied."""
    return tuple(t.clone() for t in call)
