"""``smelt opinfo``: PyTorch's operators through the backend, lowered, passed through or wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ...ir.errors import SmeltError
from ..console import counted, emit_json, err, out
from ..tune import seconds_of
from .campaign import KINDS, Plan, pairs_of, run_campaign
from .cases import DTYPES, database


class OpInfoError(SmeltError, ValueError):
    """An operator or a dtype that the database does not have."""


def opinfo(
    names: Sequence[str],
    *,
    dtypes: str,
    samples: int,
    edges: bool,
    dynamic: bool,
    jobs: int,
    interpret_only: bool,
    budget: str | None,
    keep: Path | None,
    as_json: bool,
) -> int:
    """Check operators and print what was found; returns how many pairs of an operator and a dtype are wrong.

    Raises:
        OpInfoError: there is no such operator or dtype.
        MissingPackageError: PyTorch's tests need a package that is not installed.
    """
    kinds = tuple(dtypes.split(","))
    _check_known("dtype", kinds, DTYPES)
    known = database()
    _check_known("operator", names, known)
    chosen = tuple(names) or tuple(known)
    seconds = None if budget is None else seconds_of(budget)
    plan = Plan(chosen, kinds, samples, edges, dynamic, jobs, not interpret_only, budget=seconds, keep=keep)
    with counted("checking operators", len(pairs_of(chosen, kinds))) as tell:
        records = run_campaign(plan, tell)
    if as_json:
        emit_json(summary(records, plan))
    else:
        show(records, plan)
    return sum("wrong" in record for record in records)


def _check_known(what: str, given: Sequence[str], known: Mapping[str, Any]) -> None:
    strange = [name for name in given if name not in known]
    if strange:
        near = [name for name in known if strange[0].rpartition(".")[2] in name][:6]
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise OpInfoError(f"there is no {what} {', '.join(strange)} in PyTorch's database{hint}")


def summary(records: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """What a run found, as data for JSON."""
    import torch

    return {"torch": torch.__version__, "samples": plan.samples, "native": plan.native, "records": list(records)}


def show(records: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    """Print how many samples of each dtype became what, and each wrong one."""
    table = Table(box=None, pad_edge=False)
    for column in ("dtype", "operators", *KINDS):
        table.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype in plan.dtypes:
        found = [record for record in records if record["dtype"] == dtype]
        counts: Counter[str] = Counter()
        for record in found:
            counts.update({kind: record.get(kind, 0) for kind in KINDS})
        table.add_row(dtype, str(len(found)), *(str(counts[kind]) for kind in KINDS))
    out().print(table)
    left = len(pairs_of(plan.names, plan.dtypes)) - len(records)
    if left:
        out().print(f"{left} pairs of an operator and a dtype are left")
    for record in records:
        for case in record.get("cases", ()):
            err().print(f"[red]wrong:[/red] {record['op']} {record['dtype']}, sample ", end="")
            err().print(case, markup=False, soft_wrap=True)
