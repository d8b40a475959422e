"""``smelt fuzz``: random whole programs, checked from PyTorch to kernels."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from ..console import counted, emit_json, err, out, warn
from ..zoo import MissingExtraError
from .campaign import Plan, Summary, run_campaign

_CHECKOUT = Path(__file__).resolve().parents[2] / "tests" / "golden"
_SHOWN = 8  # dtypes of an operator that a line has room for


def fuzz(
    n: int, seed: int, start: int, jobs: int, interpret_only: bool, as_json: bool, folder: Path | None, seconds: float
) -> int:
    """Check programs and print what was found; returns how many failed."""
    if find_spec("hypothesis") is None:
        raise MissingExtraError('smelt fuzz needs the package hypothesis; run: pip install "smelt[verify]"')
    plan = Plan(n, seed, start, not interpret_only, jobs, folder or default_folder(), seconds)
    with counted("checking programs", n) as tell:
        summary = run_campaign(plan, tell)
    if as_json:
        emit_json(summary.to_dict())
    else:
        show(summary)
    for failure in summary.failures:
        if failure.saved is not None:
            warn(f"program {failure.number} fails; minimised to {failure.steps} steps: {failure.saved}")
    return len(summary.failures)


def default_folder() -> Path:
    """Where failures go: among the goldens of a checkout, else in the current folder."""
    return _CHECKOUT / "fuzz" if _CHECKOUT.is_dir() else Path("smelt-fuzz")


def show(summary: Summary) -> None:
    """Print a summary: what was run, each operator by dtype, and each kind of failure."""
    plan, counts = summary.plan, summary.counts
    rate = summary.programs / max(summary.seconds, 1e-9)
    ways = "interpreted kernels" + (", native kernels" if plan.native else "")
    out().print(
        f"seed {plan.seed}: programs {plan.start} to {plan.start + plan.n - 1}, {summary.steps} steps, "
        f"{counts['kernels']} kernels; {ways}; {summary.seconds:.0f} s, {rate:.1f} a second"
    )
    out().print(
        f"{counts['raised']} raise in PyTorch as well, {counts['recaptured']} calls took another capture, "
        f"{counts['noisy']} outputs differ as far as rounding explains"
    )
    out().print(operators(summary))
    if not summary.failures:
        out().print("no program fails")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("failures", "kind", "first"):
        table.add_column(column)
    for kind, count in summary.kinds.most_common():
        first = next(f for f in summary.failures if f.finding.kind == kind)
        table.add_row(str(count), kind, f"program {first.number}: {first.finding}"[:200])
    err().print(table)


def operators(summary: Summary) -> Table:
    """How often each operator was used, by dtype."""
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "uses", "by dtype"):
        table.add_column(column)
    totals: Counter[str] = Counter()
    for (op, _), count in summary.coverage.items():
        totals[op] += count
    for op, total in totals.most_common():
        kinds = Counter({dtype: c for (name, dtype), c in summary.coverage.items() if name == op}).most_common(_SHOWN)
        table.add_row(op, str(total), " ".join(f"{dtype} {count}" for dtype, count in kinds))
    return table
