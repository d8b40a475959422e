"""The report: what was compiled and how, as data and as a text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..ir.dims import print_dim
from ..ir.types import Dim, concrete, symbols_of
from ..rewrites.check import Verdicts
from ..rewrites.log import FUSE, PLACE
from .cuda.report import GraphReport
from .entry import Entry
from .generation.report import CacheReport
from .kernels import KernelInfo
from .quantized import QuantizationReport, quantization_lines, report_quantization
from .target import Target
from .traffic import least_by_kernel, moved_by_kernel, traffic_of

WIDTH = 100
_INDENT = " " * 12


@dataclass(frozen=True)
class KernelReport:
    """A kernel. ``flops`` and ``bytes`` are those of one call, for the sizes of the model's last call.

    Before the first call, and for sizes that a call does not tell, they are expressions. ``least_bytes`` are those that
    all calls together had to move at least (see ``runtime.traffic``), None before the first call.
    """

    name: str
    kind: str
    calls: int
    flops: int | str
    bytes: int | str
    operators: tuple[str, ...]
    module: str
    least_bytes: int | None = None

    @property
    def bytes_over_minimum(self) -> float | None:
        """Bytes moved over the least possible; None before the first call, and where nothing had to be moved."""
        return self.calls * self.bytes / self.least_bytes if self.least_bytes and isinstance(self.bytes, int) else None


@dataclass(frozen=True)
class CheckReport:
    """What a check found; a fault is an error, so that all that was checked agrees.

    Attributes:
        mode: ``"rules"`` or ``"passes"``.
        checked: applications, or passes and kernel programs, that were evaluated; ``distinct`` of them are different.
        proved: those found equal without an evaluation.
        skipped: how often each reason kept one from being checked.
    """

    mode: str
    checked: int
    distinct: int
    proved: int
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        text = f"{self.mode}: {self.checked} agree ({self.distinct} different ones), {self.proved} proved equal"
        return text + f", {sum(self.skipped.values())} not checked"


@dataclass(frozen=True)
class CaptureReport:
    """One capture.

    Attributes:
        inputs: the graph's inputs with their types.
        symbols: the symbolic sizes with their ranges.
        sizes: what they were in the last call.
        seconds: what each stage of the compilation took.
        cache: whether the kernels came from the cache ("hit") or were compiled ("miss"); None without a cache.
        arena_bytes: memory for intermediates at these sizes; None before the first call.
        fallbacks: what PyTorch runs, with reasons.
        specialised: sizes that are not symbolic though they might have been.
        guards: relations between sizes that calls must keep.
        rules: how often each rule was applied.
        checks: what ``check=`` found; None where nothing was asked for.
        notes: other remarks.
        bytes_over_minimum: bytes moved in the last call, copies included, over the least possible; None before it.
        quantization: what became of the weights; None where ``quantize`` was not asked for.
        graphs: the CUDA graphs that are held; None for other targets.
    """

    inputs: tuple[str, ...]
    symbols: tuple[str, ...]
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]
    cache: str | None
    arena_bytes: int | None
    kernels: tuple[KernelReport, ...]
    fallbacks: tuple[str, ...]
    specialised: tuple[str, ...]
    guards: tuple[str, ...]
    rules: Mapping[str, int]
    notes: tuple[str, ...]
    checks: CheckReport | None = None
    bytes_over_minimum: float | None = None
    quantization: QuantizationReport | None = None
    graphs: GraphReport | None = None

    @property
    def total_seconds(self) -> float:
        """What the whole compilation took."""
        return sum(self.seconds.values())

    @property
    def calls(self) -> int:
        """How many kernel calls one call of the model makes."""
        return sum(kernel.calls for kernel in self.kernels)

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the last call; None before the first one."""
        return _sum((kernel.flops, kernel.calls) for kernel in self.kernels)

    @property
    def bytes(self) -> int | None:
        """Bytes that the kernels of the last call moved; None before the first one."""
        return _sum((kernel.bytes, kernel.calls) for kernel in self.kernels)


@dataclass(frozen=True)
class Report:
    """What was compiled of a model.

    Attributes:
        model: the name of its class or function.
        target: what it was compiled for.
        captures: one for each kind of calls, oldest first; for a split model, one for each part.
        recaptures: the guard that failed before each capture but the first.
        split: why the model is split into several graphs, with Python between them, or has none and runs in PyTorch;
            None where it is one graph.
        caches: what became of calls with a cache of keys and values; None where there was none.
    """

    model: str
    target: str
    captures: tuple[CaptureReport, ...]
    recaptures: tuple[str, ...] = ()
    split: str | None = None
    caches: CacheReport | None = None

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the last call of each capture; None where one was not called."""
        known = [capture.flops for capture in self.captures if capture.flops is not None]
        return sum(known) if len(known) == len(self.captures) else None

    @property
    def bytes(self) -> int | None:
        """Bytes that the kernels of the last call of each capture moved; None where one was not called."""
        known = [capture.bytes for capture in self.captures if capture.bytes is not None]
        return sum(known) if len(known) == len(self.captures) else None

    def to_dict(self) -> dict[str, Any]:
        """The report as data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.model} on {self.target}"]
        if self.split is not None:
            parts = f"{len(self.captures)} graphs with Python between them"
            lines += _item(
                "split", f"{parts if self.captures else 'all of it runs in PyTorch'}: {_first_line(self.split)}"
            )
        lines += [line for text in self.recaptures for line in _item("recaptured", text)]
        if self.caches is not None:
            lines += [line for label, text in self.caches.lines() for line in _item(label, text)]
        part = "part" if self.split is not None else "capture"
        for number, capture in enumerate(self.captures, 1):
            lines += ["", f"{part} {number} of {len(self.captures)}: {', '.join(capture.inputs) or 'no inputs'}"]
            lines += capture_lines(capture)
        return "\n".join(lines) + "\n"


def make_report(
    model: str, target: Target, entries: Sequence[Entry], split: str | None, caches: CacheReport | None = None
) -> Report:
    """The report on a model's captures."""
    recaptures = tuple(entry.refusal for entry in entries if entry.refusal)
    return Report(model, str(target), tuple(map(report_entry, entries)), recaptures, split, caches)


def report_entry(entry: Entry) -> CaptureReport:
    """The report on one capture."""
    capture, executable, sizes = entry.capture, entry.executable, entry.sizes
    known = dict(sizes or {})
    traffic = None if sizes is None else traffic_of(executable, known)
    least = None if traffic is None else least_by_kernel(executable, traffic)
    moved = {} if traffic is None else moved_by_kernel(executable, traffic)
    return CaptureReport(
        inputs=tuple(f"{node.attrs['name']} {node.type}" for node in capture.graph.inputs),
        symbols=tuple(map(str, capture.graph.symbols)),
        sizes={str(symbol): size for symbol, size in known.items()},
        seconds=dict(entry.timings),
        cache=None if entry.cached is None else "hit" if entry.cached else "miss",
        arena_bytes=None if sizes is None else executable.arena_bytes(sizes),
        kernels=tuple(_kernel(kernel, known, least, moved) for kernel in executable.kernels),
        fallbacks=tuple(map(str, executable.fallbacks)),
        specialised=tuple(map(str, capture.specialised)),
        guards=tuple(map(str, capture.guards)),
        rules={name: n for name, n in executable.applications.counts().items() if name not in (FUSE, PLACE)},
        notes=(*capture.notes, *([f"not kept for other processes: {entry.unkept}"] if entry.unkept else [])),
        checks=None if executable.checks is None else _checks(executable.checks),
        bytes_over_minimum=None if traffic is None else traffic.ratio,
        quantization=report_quantization(executable),
        graphs=executable.graph_report(),
    )


def _checks(found: Verdicts) -> CheckReport:
    return CheckReport(found.mode, found.checked, found.distinct, found.proved, dict(found.skipped))


def _kernel(
    kernel: KernelInfo, sizes: Mapping[Any, int], least: Mapping[str, int] | None, moved: Mapping[str, int]
) -> KernelReport:
    return KernelReport(
        name=kernel.name,
        kind=kernel.program.skeleton.value,
        calls=kernel.calls,
        flops=_at(kernel.flops, sizes),
        bytes=moved[kernel.name] if kernel.name in moved else _at(kernel.bytes, sizes),
        operators=kernel.operators,
        module=kernel.module,
        least_bytes=None if least is None else least[kernel.name],
    )


def _at(dim: Dim, sizes: Mapping[Any, int]) -> int | str:
    return concrete(dim, sizes) if set(symbols_of([dim])) <= set(sizes) else print_dim(dim)


# --- text -------------------------------------------------------------------------------------------------------------


def capture_lines(capture: CaptureReport) -> list[str]:
    """The text of one capture, line by line."""
    lines: list[str] = []
    if capture.symbols:
        last = ", ".join(f"{name} = {size}" for name, size in capture.sizes.items())
        lines += _item("sizes", ", ".join(capture.symbols) + (f"; last call: {last}" if last else ""))
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in capture.seconds.items())
    came = {"hit": "; kernels from the cache", "miss": "; kernels compiled", None: "; no cache"}[capture.cache]
    lines += _item("compile", f"{capture.total_seconds:.2f} s: {stages}{came}")
    lines += _kernel_lines(capture)
    if capture.quantization is not None:
        lines += [line for label, text in quantization_lines(capture.quantization) for line in _item(label, text)]
    if capture.graphs is not None:
        lines += _items("graphs", list(capture.graphs.lines()))
    lines += _items("fallbacks", capture.fallbacks) or _item("fallbacks", "none")
    lines += _items("fixed", capture.specialised)
    lines += _items("guards", capture.guards)
    if capture.rules:
        fired = sorted(capture.rules.items(), key=lambda pair: -pair[1])
        lines += _item("rules", ", ".join(f"{name} {count}" for name, count in fired))
    if capture.checks is not None:
        lines += _item("checked", str(capture.checks))
        lines += _items("unchecked", [f"{n} x {reason}" for reason, n in capture.checks.skipped.items()])
    return lines + _items("notes", capture.notes)


def _kernel_lines(capture: CaptureReport) -> list[str]:
    kernels = capture.kernels
    text = f"{len(kernels)} kernels, {capture.calls} calls"
    flops, moved = capture.flops, capture.bytes
    if flops is not None and moved is not None:
        text += f": {quantity(flops)}FLOP, {quantity(moved)}B moved"
    if capture.bytes_over_minimum is not None:
        text += f", {capture.bytes_over_minimum:.2f} times the least"
    if capture.arena_bytes is not None:
        text += f"; intermediates in {quantity(capture.arena_bytes)}B"
    lines = _item("kernels", text)
    if kernels:
        lines.append(f"  {'calls':>5} {'FLOP':>7} {'bytes':>7} {'/least':>6}  {'kind':<10} operators")
    for kernel in kernels:
        work = [quantity(x) if isinstance(x, int) else "?" for x in (kernel.flops, kernel.bytes)]
        ratio = kernel.bytes_over_minimum
        start = f"  {kernel.calls:>5} {work[0]:>7} {work[1]:>7} {_ratio_text(ratio):>6}  {kernel.kind:<10} "
        lines.append(textwrap.shorten(", ".join(kernel.operators), WIDTH - len(start), placeholder=" …"))
        lines[-1] = start + lines[-1]
    return lines


def _ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}" if ratio < 100 else ">100"


def _sum(amounts: Iterable[tuple[int | str, int]]) -> int | None:
    """The sum of values, each times its count; None where a value is an expression."""
    total = 0
    for value, count in amounts:
        if isinstance(value, str):
            return None
        total += value * count
    return total


def quantity(number: int) -> str:
    """A count with three digits and a unit: 1234567 as ``1.23 M``."""
    step = min(len(str(number)) - 1, 14) // 3
    # 999.6 k is 1.00 M
    step = min(step + (round(number / 1000**step) >= 1000), 4)
    value = number / 1000**step
    digits = 3 - len(str(int(value))) if step else 0
    return f"{value:.{max(digits, 0)}f} {['', 'k', 'M', 'G', 'T'][step]}"


def _items(label: str, texts: Sequence[str]) -> list[str]:
    return [line for number, text in enumerate(texts) for line in _item(label if number == 0 else "", text)]


def _item(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<10}", subsequent_indent=_INDENT) or [f"  {label}"]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
