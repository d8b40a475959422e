"""A roofline picture: every kernel of the benchmarked models as a dot under the machine's roofs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plot import require_matplotlib
from .roofs import Roofs
from .run import Outcome


def plot(outcomes: Sequence[Outcome], roofs: Roofs, path: Path) -> None:
    """Draw models by arithmetic intensity (operations a byte) and rate (operations a second), with the roofs.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    top = max(roofs.operations.values())
    for name, rate in roofs.operations.items():
        ends = [0.05, rate / roofs.bytes_per_second, 2e3]
        axes.plot(ends, [min(rate, x * roofs.bytes_per_second) / 1e9 for x in ends], label=f"{name} roof")
    for outcome in outcomes:
        if not outcome.work or not outcome.moved:
            continue
        for name in outcome.timings.seconds:
            rate = outcome.work / outcome.timings.best(name) / 1e9
            axes.plot(
                outcome.work / outcome.moved, rate, "o" if name == "smelt" else "x", label=f"{outcome.model} {name}"
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="Gop/s", ylim=(0.1, top / 1e9 * 2))
    axes.legend(fontsize="x-small")
    figure.savefig(path)
