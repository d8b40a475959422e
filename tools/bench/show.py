"""A benchmark's outcome as a table, with what is needed to read it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .roofs import Roofs
from .run import Outcome

COLUMNS = ("median ms", "best ms", "x smelt", "GFLOP/s", "% roof", "cold s", "warm s", "peak MB")


def table(outcome: Outcome, roofs: Roofs | None) -> Table:
    """The outcome as a table, one line for each peer."""
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    for column in COLUMNS:
        made.add_column(column, justify="right")
    for name in outcome.timings.seconds:
        made.add_row(name, *_cells(outcome, name, roofs))
    for name in outcome.failed:
        made.add_row(name, "-")
    return made


def _cells(outcome: Outcome, name: str, roofs: Roofs | None) -> list[str]:
    median, best = outcome.timings.median(name), outcome.timings.best(name)
    share = outcome.share(name, roofs)
    starts = outcome.starts.get(name, {})
    return [
        f"{median * 1e3:.2f}",
        f"{best * 1e3:.2f}",
        f"{outcome.ratios[name]:.2f}",
        f"{outcome.work / best / 1e9:.0f}" if outcome.work else "",
        f"{share * 100:.0f}" if share is not None else "",
        *(f"{starts[kind]['first']:.2f}" if kind in starts else "" for kind in ("cold", "warm")),
        f"{starts['warm']['peak_bytes'] / 1e6:.0f}" if "warm" in starts else "",
    ]


def heading(outcome: Outcome) -> str:
    """What was timed."""
    threads = f"{outcome.threads} thread{'s' if outcome.threads > 1 else ''} each"
    return f"{outcome.model}, {outcome.dtype}, {threads}: {', '.join(outcome.inputs)}"


def remarks(outcomes: Sequence[Outcome], roofs: Roofs | None) -> str:
    """How to read the tables."""
    first = outcomes[0]
    rounds = len(next(iter(first.timings.seconds.values())))
    load = "at an unknown load" if first.load is None else f"others kept {first.load:.1f} cores busy"
    lines = [f"{rounds} rounds in turns, {load}. x smelt: the median of the ratios within rounds. GFLOP/s: at best."]
    if roofs is not None:
        rates = ", ".join(f"{name} {rate / 1e9:.0f} Gop/s" for name, rate in roofs.operations.items())
        lines.append(
            f"Roofs: {rates}, memory {roofs.bytes_per_second / 1e9:.1f} GB/s. % roof: of the nearer one, at best."
        )
    if any(outcome.starts for outcome in outcomes):
        lines.append(
            "cold, warm: from a model in memory to its first result, with empty caches and in a second process."
        )
    lines += [f"{outcome.model}, checked before timing: {outcome.checked}" for outcome in outcomes]
    lines += [f"{outcome.model}: {why}" for outcome in outcomes for why in outcome.failed.values()]
    return "\n".join(lines)
