"""The command ``smelt bench``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.target import usable_cores
from ..console import busy, emit_json, out
from ..env import facts
from ..errors import check_output
from .peers import SMELT
from .plot import plot
from .roofs import Roofs, measure_roofs
from .run import Outcome, check_dtype, measure, parse_peers
from .show import heading, remarks, table


def bench(
    specs: Sequence[str],
    *,
    threads: int | None = None,
    rounds: int = 15,
    peers: str = "eager,inductor",
    start: bool = True,
    dtype: str = "f32",
    json_file: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Time models and print the outcomes; see ``smelt bench --help``.

    Raises:
        VerifyError: a compiled model's result is not eager's, so that timing it means nothing.
        SmeltError: a model cannot be loaded, or there is no such peer or dtype.
    """
    names = [SMELT, *(name for name in parse_peers(peers) if name != SMELT)]
    count = threads or usable_cores()
    for path in (json_file, picture):
        if path is not None and str(path) != "-":
            check_output(path)
    check_dtype(dtype)
    with busy("measuring what this machine reaches"):
        roofs = measure_roofs(count)
    outcomes: list[Outcome] = []
    printed = str(json_file) != "-"
    for spec in specs:
        outcomes.append(measure(spec, names, count, rounds, start, dtype))
        if json_file is not None and printed:  # after each: a long run that ends early leaves what it has
            json_file.write_text(json.dumps(record(outcomes, roofs), indent=1, default=str) + "\n", encoding="utf-8")
        if printed:
            out().print(heading(outcomes[-1]), style="bold", markup=False)
            out().print(table(outcomes[-1], roofs))
    if picture is not None:
        plot(outcomes, roofs, picture)
    if not printed:
        emit_json(record(outcomes, roofs))
        return
    out().print(remarks(outcomes, roofs), style="dim", markup=False)


def record(outcomes: Sequence[Outcome], roofs: Roofs) -> dict[str, Any]:
    """Everything as data for JSON: outcomes, roofs, the date, and what is needed to judge them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "roofs": {"operations": dict(roofs.operations), "bytes_per_second": roofs.bytes_per_second},
        "workloads": [
            outcome.to_dict() | {"share": {n: outcome.share(n, roofs) for n in outcome.timings.seconds}}
            for outcome in outcomes
        ],
        "environment": facts(),
    }
