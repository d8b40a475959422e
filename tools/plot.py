"""The roofline of a model as a picture: each kernel a dot, its rate against its operations for each byte."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..runtime.explain import Explanation, StepCost
from .errors import MissingPackageError

INSTALL = "pip install matplotlib, or install smelt with its extra: pip install 'smelt[plot]'"
_COLOURS = {"matmul": "C0", "attention": "C1", "rows": "C2", "map": "C3", "scatter": "C4", "recurrence": "C5"}


def require_matplotlib() -> None:
    """Raise MissingPackageError, with the command that installs it, where matplotlib is absent."""
    if find_spec("matplotlib") is None:
        raise MissingPackageError(f"--plot needs the package matplotlib, which is not installed; run: {INSTALL}")


def roofline(explanation: Explanation, path: Path) -> None:
    """Write the picture to a file, in the format of its ending (png, svg, pdf).

    A dot is a kernel, its area the share of the time; its height is the rate that was measured, or the one that was
    estimated where nothing was.

    Raises:
        MissingPackageError: matplotlib is absent.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # optional: the extra `plot`

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    steps = [step for part in explanation.parts for step in part.steps if step.flops > 0]
    _draw_roofs(axes, explanation, steps)
    _draw_kernels(axes, steps)
    measured = any(part.measured is not None for part in explanation.parts)
    axes.set_title(f"{explanation.model} on {explanation.target}")
    axes.set_xlabel("floating-point operations for each byte moved")
    axes.set_ylabel(f"GFLOP/s, {'measured' if measured else 'estimated'}")
    axes.legend(loc="lower right", fontsize="small")
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.savefig(path)


def _draw_roofs(axes: Any, explanation: Explanation, steps: list[StepCost]) -> None:
    roofs = explanation.roofs
    intensities = [step.intensity for step in steps] or [1.0]
    edge = roofs.matmul_flops / roofs.bytes_per_second
    low, high = min(0.1, *intensities) / 2, max(edge, *intensities) * 4
    for name, rate in (("memory", roofs.bytes_per_second), ("last cache", roofs.cache_bytes_per_second)):
        ridge = roofs.matmul_flops / rate
        heights = [low * rate / 1e9, roofs.matmul_flops / 1e9, roofs.matmul_flops / 1e9]
        label = f"{name}, {rate / 1e9:.0f} GB/s; products, {roofs.matmul_flops / 1e9:.0f} GFLOP/s"
        axes.loglog([low, ridge, high], heights, "-" if name == "memory" else "--", color="0.3", label=label)


def _draw_kernels(axes: Any, steps: list[StepCost]) -> None:
    by_name: dict[str, list[StepCost]] = {}
    for step in steps:
        by_name.setdefault(step.kernel, []).append(step)
    seconds = {name: sum(_seconds(s) for s in found) for name, found in by_name.items()}
    whole, told = sum(seconds.values()) or 1.0, set()
    for name, found in by_name.items():
        kind, share = found[0].kind, seconds[name] / whole
        rate = sum(s.flops for s in found) / seconds[name] / 1e9
        if kind not in told:  # the legend's dots are of one size
            axes.scatter([], [], color=_COLOURS.get(kind, "C7"), alpha=0.6, label=kind)
            told.add(kind)
        at, colour = (found[0].intensity, rate), _COLOURS.get(kind, "C7")
        axes.scatter(*at, s=20 + 800 * share, color=colour, alpha=0.6)
        if share > 0.05:
            axes.annotate(name, at, fontsize="x-small", xytext=(6, 4), textcoords="offset points")


def _seconds(step: StepCost) -> float:
    return step.measured or step.estimated
