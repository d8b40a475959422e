"""``smelt verify-rules``: every rule with its certificate."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from ..rewrites.certify import STATUSES, Certificate, examine
from ..rewrites.registry import all_rules, uncertified
from ..rewrites.rule import Rule, rules_by_name
from ..runtime.whynot import suggestion
from .console import counted, emit_json, err, out
from .errors import RuleNameError
from .models import import_source

_SHOWN = {"proved": "green", "exact": "cyan", "tested": "yellow", "faulty": "red"}


def verify_rules(names: Sequence[str], modules: Sequence[str], cases: int, seed: int, as_json: bool) -> None:
    """Certify rules, all or those of these names; exit code 1 where one is faulty.

    Raises:
        RuleNameError: there is no rule of a name.
        UnsupportedError: z3-solver or hypothesis is not installed.
    """
    for module in modules:
        with uncertified():
            import_source(module)
    groups = {name: [r for r in rules if not names or r.name in names] for name, rules in groups_of_rules().items()}
    everything = rules_by_name(all_rules())
    unknown = [name for name in names if name not in everything]
    if unknown:
        raise RuleNameError("; ".join(f"there is no rule {n!r}{suggestion(n, everything)}" for n in unknown))
    found = _certificates(groups, list(everything.values()), cases, seed)
    certificates = [c for group in found.values() for c in group]
    if as_json:
        emit_json(_as_data(found, cases, seed))
    else:
        _print(found)
    if any(c.status == "faulty" for c in certificates):
        raise typer.Exit(1)


def groups_of_rules() -> dict[str, list[Rule]]:
    """All rules by the module that declares them: ``algebra``, ``views``; the user's own as ``registered``."""
    found: dict[str, list[Rule]] = {}
    for rules in all_rules().values():
        for rule in rules:
            module = rule.after.__module__
            name = module.rpartition(".")[2] if ".rewrites.rules." in module else "registered"
            found.setdefault(name, []).append(rule)
    return found


def _certificates(
    groups: Mapping[str, Sequence[Rule]], together: Sequence[Rule], cases: int, seed: int
) -> dict[str, list[Certificate]]:
    found: dict[str, list[Certificate]] = {}
    done, total = 0, sum(map(len, groups.values()))
    with counted("rules", total) as tell:
        for name, rules in groups.items():
            for rule in rules:
                found.setdefault(name, []).append(examine(rule, together, cases, seed))
                done += 1
                tell(done)
                if not err().is_terminal and done % 50 == 0:
                    sys.stderr.write(f"{done}/{total} rules\n")
    return found


def _as_data(found: Mapping[str, Sequence[Certificate]], cases: int, seed: int) -> dict[str, Any]:
    everything = [c for group in found.values() for c in group]
    counts = Counter(c.status for c in everything)
    return {
        "cases": cases,
        "seed": seed,
        "summary": {status: counts[status] for status in STATUSES} | {"rules": len(everything)},
        "groups": {
            name: [asdict(c) | {"evidence": c.evidence, "faults": list(map(str, c.faults))} for c in group]
            for name, group in found.items()
        },
    }


def _print(found: Mapping[str, Sequence[Certificate]]) -> None:
    everything = [c for group in found.values() for c in group]
    few = len(everything) <= 12
    table = Table(box=None, pad_edge=False)
    for column in ("rule", "status", "cases", "evidence") if few else ("group", "rules", *STATUSES, "cases"):
        table.add_column(column)
    for name, group in found.items():
        if few:
            for c in group:
                table.add_row(c.rule, f"[{_SHOWN[c.status]}]{c.status}[/]", str(c.cases), c.evidence)
        else:
            counts = Counter(c.status for c in group)
            cells = [str(counts[status] or "") for status in STATUSES]
            table.add_row(name, str(len(group)), *cells, str(sum(c.cases for c in group)))
    out().print(table)
    _print_remarks(everything, few)


def _print_remarks(everything: Sequence[Certificate], few: bool) -> None:
    console = out()
    for c in everything:
        for fault in c.faults:
            console.print(f"\n{fault}", style="red", markup=False)
    tested = [c.rule for c in everything if c.status == "tested"]
    if tested and not few:
        console.print(f"\ntested only: {', '.join(tested)}", markup=False)
    rising = sorted({name for c in everything for name in c.rising})
    measured = sum(c.applications for c in everything)
    console.print(
        f"\nthe measure by which rewriting ends falls with each of {measured} applications"
        + (f", but for those of {', '.join(rising)}: they ended in every case" if rising else ""),
        markup=False,
    )
    counts = Counter(c.status for c in everything)
    strong = counts["proved"] + counts["exact"]
    shares = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    seconds = sum(c.seconds for c in everything)
    console.print(
        f"\n{len(everything)} rules: {shares}; {100 * strong / max(1, len(everything)):.0f} % proved or exact; "
        f"{sum(c.cases for c in everything)} cases, {sum(c.instances for c in everything)} proofs in {seconds:.0f} s",
        markup=False,
    )
