"""A benchmark's outcome as a table, with what is needed to read it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ...ir.cost import Roofs
from .outcome import HEAVY_REMARK, MARK, Outcome
from .peers import SMELT
from .quantised import QUANTIZE

COLUMNS = ("median ms", "best ms", "x smelt", "error", "Gop/s", "% roof", "cold s", "warm s", "peak MB")


def table(outcome: Outcome) -> Table:
    """The outcome as a table, one line for each peer."""
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    for column in COLUMNS:
        made.add_column(column, justify="right")
    for name in outcome.timings.seconds:
        made.add_row(name, *_cells(outcome, name))
    for name in outcome.failed:
        made.add_row(name, "-")
    return made


def _cells(outcome: Outcome, name: str) -> list[str]:
    median, best = outcome.timings.median(name), outcome.timings.best(name)
    share = outcome.share(name)
    starts = [outcome.start(name, kind) for kind in ("cold", "warm")]
    peak = outcome.start(name, "warm", "peak_bytes")
    return [
        f"{median * 1e3:.2f}",
        f"{best * 1e3:.2f}",
        f"{MARK if outcome.loaded else ''}{outcome.ratios[name]:.2f}" if SMELT in outcome.ratios else "",
        f"{outcome.errors[name]:.0e}" if outcome.errors.get(name) else "",
        f"{outcome.work / median / 1e9:.0f}" if outcome.work else "",
        f"{share * 100:.0f} {outcome.bound}" if share is not None else "",
        *("" if seconds is None else f"{seconds:.2f}" for seconds in starts),
        "" if peak is None else f"{peak / 1e6:.0f}",
    ]


def heading(outcome: Outcome) -> str:
    """What was timed."""
    threads = f"{outcome.threads} thread{'s' if outcome.threads > 1 else ''} each"
    return f"{outcome.model}, {outcome.dtype}, {threads}: {', '.join(outcome.inputs)}"


def remarks(outcomes: Sequence[Outcome], roofs: Roofs | None) -> str:
    """How to read the tables."""
    first = outcomes[0]
    rounds = len(next(iter(first.timings.seconds.values())))
    busiest = max((x for o in outcomes for x in (o.load, o.load_during) if x is not None), default=None)
    load = "at an unknown load" if busiest is None else f"others kept up to {busiest:.1f} cores busy"
    lines = [
        f"{rounds} rounds in turns, {load}. x smelt: the median of the ratios within rounds. Gop/s: at the median."
    ]
    if any(outcome.loaded for outcome in outcomes):
        lines.append(HEAVY_REMARK)
    if roofs is not None:
        rates = ", ".join(f"{name} {rate / 1e9:.0f} Gop/s" for name, rate in roofs.peaks.items())
        lines.append(
            f"Roofs before the first round: {rates}, memory {roofs.bytes_per_second / 1e9:.1f} GB/s. "
            "% roof: the share of the nearer one, which has a turn in each round; the median over rounds."
        )
    if any(outcome.starts for outcome in outcomes):
        lines.append(
            "cold, warm: from a model in memory to its first result, with empty caches and in a second process; "
            "medians of the tries, which are in turns."
        )
    lines += [f"{outcome.model}, checked before timing: {outcome.checked}" for outcome in outcomes if outcome.checked]
    lines.append("error: of the result against eager's, relative to its values, as a root of mean squares.")
    if any(outcome.dtype in QUANTIZE for outcome in outcomes):
        lines.append("Eager and Inductor run quantised workloads in float32.")
    lines += [f"{outcome.model}: {why}" for outcome in outcomes for why in outcome.failed.values()]
    return "\n".join(lines)
