"""Rooflines as pictures: each kernel a dot, its rate against its operations for each byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..ir.cost import Roofs
from ..ir.errors import UnsupportedError
from ..runtime.explain import Explanation, StepCost
from .errors import MissingPackageError

INSTALL = "pip install matplotlib, or install smelt with its extra: pip install 'smelt[plot]'"
_COLOURS = {"matmul": "C0", "attention": "C1", "rows": "C2", "map": "C3", "scatter": "C4", "recurrence": "C5"}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Dot:
    """A kernel, all its calls together.

    Attributes:
        kernel, kind: its name, and the shape of its loops.
        intensity: operations for each byte.
        rate: operations a second.
        share: of the time of a run.
        model: whose kernel it is.
    """

    kernel: str
    kind: str
    intensity: float
    rate: float
    share: float
    model: str = ""


def require_matplotlib() -> None:
    """Raise MissingPackageError, with the command that installs it, where matplotlib is absent."""
    if find_spec("matplotlib") is None:
        raise MissingPackageError(f"--plot needs the package matplotlib, which is not installed; run: {INSTALL}")


def roofline(explanation: Explanation, path: Path) -> None:
    """Write the picture of an explanation to a file, in the format of its ending (png, svg, pdf).

    A dot is a kernel, its area the share of the time; its height is the rate that was measured, or the one that was
    estimated where nothing was.

    Raises:
        MissingPackageError: matplotlib is absent.
        UnsupportedError: no roofs are known.
    """
    if explanation.roofs is None:
        raise UnsupportedError(f"there is nothing to draw: the roofs of {explanation.target} are not measured")
    measured = any(part.measured is not None for part in explanation.parts)
    title = f"{explanation.model} on {explanation.target}"
    draw(dots_of(explanation), explanation.roofs, path, title, "measured" if measured else "estimated")


def dots_of(explanation: Explanation, model: str = "") -> list[Dot]:
    """The kernels of an explanation that count operations, in the order of their first calls."""
    by_name: dict[str, list[StepCost]] = {}
    for part in explanation.parts:
        for step in part.steps:
            by_name.setdefault(step.kernel, []).append(step)
    seconds = {name: sum(s.measured or s.estimated or 0.0 for s in found) for name, found in by_name.items()}
    whole = sum(seconds.values()) or 1.0
    found = []
    for name, steps in by_name.items():
        work = sum(s.flops for s in steps)
        if work > 0 and seconds[name] > 0:
            rate, share = work / seconds[name], seconds[name] / whole
            found.append(Dot(name, steps[0].kind, steps[0].intensity, rate, share, model))
    return found


def draw(dots: Sequence[Dot], roofs: Roofs, path: Path, title: str, what: str = "measured") -> None:
    """Write a picture of kernels under a machine's roofs: colours tell kinds apart, markers tell models apart.

    Raises:
        MissingPackageError: matplotlib is absent.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # optional: the extra `plot`

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    _draw_roofs(axes, roofs, [dot.intensity for dot in dots])
    _draw_kernels(axes, dots)
    axes.set_title(title)
    axes.set_xlabel("operations for each byte moved")
    axes.set_ylabel(f"Gop/s, {what}")
    axes.legend(loc="lower right", fontsize="small")
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.savefig(path)


def _draw_roofs(axes: Any, roofs: Roofs, intensities: Iterable[float]) -> None:
    """Memory under every peak, the last cache under that of float32."""
    peaks = dict(roofs.peaks) or {"float32": roofs.matmul_flops}
    seen = [x for x in intensities if x > 0] or [1.0]
    edge = max(peaks.values()) / roofs.bytes_per_second
    low, high = min(0.1, *seen) / 2, max(edge, *seen) * 4
    for name, peak in peaks.items():
        ends = [low, peak / roofs.bytes_per_second, high]
        heights = [low * roofs.bytes_per_second / 1e9, peak / 1e9, peak / 1e9]
        axes.loglog(ends, heights, "-", color="0.3", linewidth=1)
        axes.annotate(f"{name} {peak / 1e9:.0f}", (high, peak / 1e9), fontsize="x-small", ha="right", va="bottom")
    axes.plot([], [], "-", color="0.3", label=f"memory, {roofs.bytes_per_second / 1e9:.0f} GB/s")
    cache = roofs.cache_bytes_per_second
    ridge = [low, roofs.matmul_flops / cache]
    label = f"last cache, {cache / 1e9:.0f} GB/s"
    axes.loglog(ridge, [low * cache / 1e9, roofs.matmul_flops / 1e9], "--", color="0.3", linewidth=1, label=label)


def _draw_kernels(axes: Any, dots: Sequence[Dot]) -> None:
    models = list(dict.fromkeys(dot.model for dot in dots))
    for kind in dict.fromkeys(dot.kind for dot in dots):  # the legend's dots are of one size
        axes.scatter([], [], color=_COLOURS.get(kind, "C7"), alpha=0.6, label=kind)
    for number, model in enumerate(models if len(models) > 1 else ()):
        axes.scatter([], [], color="0.5", marker=_MARKERS[number % len(_MARKERS)], label=model)
    for dot in dots:
        at, marker = (dot.intensity, dot.rate / 1e9), _MARKERS[models.index(dot.model) % len(_MARKERS)]
        colour = _COLOURS.get(dot.kind, "C7")
        axes.scatter(*at, s=20 + 800 * dot.share, color=colour, marker=marker, alpha=0.6)
        if dot.share > 0.05:
            axes.annotate(dot.kernel, at, fontsize="x-small", xytext=(6, 4), textcoords="offset points")
