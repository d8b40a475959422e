"""The table of ``smelt coverage`` as Markdown, and a page that holds it, made from the JSON that it wrote.

Run as ``python -m smelt.tools.coverage.page docs/coverage.json docs/coverage.md``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ir.errors import SmeltError

Record = Mapping[str, Any]
MARKS = re.compile(r"(<!-- coverage -->\n).*?(<!-- end -->)", re.DOTALL)
CALLS = ("forward", "decode")


class CoveragePageError(SmeltError, ValueError):
    """A page has no place for the table, or more than one."""


def head() -> list[str]:
    """The columns: four for each call."""
    return [
        "architecture",
        *(f"{call} {column}".strip() for call in ("", "decode") for column in COLUMNS),
    ]


COLUMNS = ("captured", "fallbacks", "largest error", "kernels a layer")


def cells(row: Record) -> list[str]:
    """A row: the forward call, then the step of decoding; dashes where there is none."""
    found = {outcome["call"]: outcome for outcome in row["outcomes"]}
    texts = [text for call in CALLS for text in _outcome(found.get(call))]
    return [row["name"], *texts]


def _outcome(found: Record | None) -> list[str]:
    if found is None:
        return ["-"] * len(COLUMNS)
    if found["max_abs"] is None:
        return ["no", "-", "failed", "-"]
    captured = "one graph" if found["graphs"] == 1 and not found["split"] else f"{found['graphs']} graphs"
    names = ", ".join(name.removeprefix("aten.").removesuffix(".default") for name in found["fallbacks"])
    error = f"{found['max_abs']:.1e}" if found["error"] is None else f"wrong: {found['max_abs']:.1e}"
    layer = found["kernels_per_layer"]
    return [captured, names or "none", error, "-" if layer is None else str(layer)]


def markdown(record: Record) -> str:
    """The table, what failed, and when and with what it was measured."""
    columns = head()
    lines = [_line(columns), _line(["---", *["--:"] * (len(columns) - 1)])]
    lines += [_line(cells(row)) for row in record["architectures"]]
    return "\n".join([*lines, "", *_faults(record), caption(record)])


def _faults(record: Record) -> list[str]:
    found = [
        f"- {row['name']}, {outcome['call']}: {outcome['error'] or outcome['split']}"
        for row in record["architectures"]
        for outcome in row["outcomes"]
        if outcome["error"] or outcome["split"]
    ]
    return [*found, ""] if found else []


def caption(record: Record) -> str:
    """How many there are, how many are whole and right, and what was measured with."""
    rows: Sequence[Record] = record["architectures"]
    outcomes = [outcome for row in rows for outcome in row["outcomes"]]
    right = sum(outcome["error"] is None for outcome in outcomes)
    whole = sum(outcome["graphs"] == 1 and not outcome["split"] for outcome in outcomes)
    clean = sum(outcome["max_abs"] is not None and not outcome["fallbacks"] for outcome in outcomes)
    versions = record["versions"]
    return (
        f"{len(rows)} architectures, {len(outcomes)} kinds of calls: {right} right, {whole} one graph, {clean} without "
        f"fallbacks. {record['date']}, {record['processor']}, PyTorch {versions['torch']}, transformers "
        f"{versions['transformers']}."
    )


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def replaced(page: str, table: str) -> str:
    """The page with the table between its marks.

    Raises:
        CoveragePageError: the marks are not there once.
    """
    made, count = MARKS.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)
    if count != 1:
        raise CoveragePageError(f"<!-- coverage --> ... <!-- end --> is there {count} times: it must be there once")
    return made


def main(file: str, page: str) -> None:
    """Put the table of a file into a page."""
    table = markdown(json.loads(Path(file).read_text(encoding="utf-8")))
    path = Path(page)
    path.write_text(replaced(path.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
