"""The table of PyTorch's operators as Markdown, and the page that holds it, made from what ``smelt opinfo`` kept.

Run as ``python -m smelt.tools.opinfo.page KEPT.jsonl docs/operators.json docs/operators.md``: the records become JSON
with one operator in a line, and what stands between ``<!-- operators -->`` and ``<!-- end -->`` in a page is replaced.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ir.errors import SmeltError
from .campaign import KINDS
from .cases import DTYPES, database, supported

Table = Mapping[str, Any]
_MOST = 3  # reasons that a line has room for
_MARKS = re.compile(r"(<!-- operators -->\n).*?(<!-- end -->)", re.DOTALL)


class PageError(SmeltError, ValueError):
    """A page has no place for the table, or more than one."""


def table_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Records by operator: for each dtype how many samples are lowered, passed, wrong and skipped, and the reasons.

    ``interpreted`` are the dtypes in which kernels were not compiled.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        own = found.setdefault(record["op"], {})
        own[record["dtype"]] = [record.get(kind, 0) for kind in KINDS]
        if not record["native"]:
            own.setdefault("interpreted", []).append(record["dtype"])
        reasons = own.setdefault("reasons", [])
        reasons.extend(r for r in record.get("reasons", ()) if r not in reasons)
        own.setdefault("cases", []).extend(f"{record['dtype']} {case}" for case in record.get("cases", ()))
    return {name: {k: v for k, v in own.items() if v or k in DTYPES} for name, own in found.items()}


def dumped(table: Table, **facts: Any) -> str:
    """The table as JSON, an operator in a line."""
    head = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table))
    return f'{{{head}, "operators": {{\n{lines}\n}}}}\n'


def markdown(data: Mapping[str, Any]) -> str:
    """How many operators and samples became what, then a line for each operator."""
    table: Table = data["operators"]
    names = list(DTYPES)
    lines = [_row(["dtype", "operators", "lowered", "in part", "passed through", "wrong", "samples"])]
    lines.append(_row(["---", *["--:"] * 6]))
    for dtype in names:
        found = [own[dtype] for own in table.values() if dtype in own]
        kinds = Counter(map(kind_of, found))
        counts = [kinds["lowered"], kinds["in part"], kinds["passed"], kinds["wrong"], sum(map(sum, found))]
        lines.append(_row([dtype, str(len(found)), *map(str, counts)]))
    lines += ["", caption(data), "", _row(["operator", *names, "what PyTorch runs, and why samples are skipped"])]
    lines.append(_row(["---"] * (len(names) + 2)))
    for name, own in sorted(table.items()):
        cells = [_cell(own[dtype]) if dtype in own else "not run" * (dtype in own.get("left", ())) for dtype in names]
        reasons = "; ".join(own.get("reasons", ())[:_MOST]).replace("|", "\\|").replace("<", "&lt;")
        lines.append(_row([name, *cells, reasons[:160]]))
    return "\n".join(lines)


def kind_of(counts: Sequence[int]) -> str:
    """What became of an operator in one dtype, from its samples."""
    lowered, passed, wrong, skipped = counts
    if wrong:
        return "wrong"
    if lowered:
        return "in part" if passed else "lowered"
    return "passed" if passed else "skipped" if skipped else "none"


def caption(data: Mapping[str, Any]) -> str:
    """How the table came about."""
    table: Table = data["operators"]
    pairs = sum(dtype in own for own in table.values() for dtype in DTYPES)
    interpreted = sum(len(own.get("interpreted", ())) for own in table.values())
    left = sum(len(own.get("left", ())) for own in table.values())
    how = f"were compiled and run in {pairs - interpreted} of {pairs} pairs of an operator and a dtype, interpreted in"
    return (
        f"PyTorch {data['torch']}, {len(table)} operators of its database, at most {data['samples']} "
        f"samples of each dtype, and variants in place and on strided tensors of the first two; kernels {how} "
        f"{interpreted}; {left} pairs were not run."
    )


def _cell(counts: Sequence[int]) -> str:
    lowered, passed, _, _ = counts
    kind = kind_of(counts)
    return f"{lowered} of {lowered + passed}" if kind == "in part" else kind


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(page: str, table: str) -> str:
    """The page with the table between its marks.

    Raises:
        PageError: the marks are not there once.
    """
    made, count = _MARKS.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)
    if count != 1:
        raise PageError(f"<!-- operators --> ... <!-- end --> is there {count} times: it must be there once")
    return made


def main(kept: str, data: str, page: str, samples: str = "8") -> None:
    """Write the JSON and the page."""
    import torch

    records = [json.loads(line) for line in Path(kept).read_text(encoding="utf-8").splitlines()]
    table = table_of(records)
    for name in database():
        own = table.setdefault(name, {})
        left = [dtype for dtype in supported(name) if dtype not in own]
        table[name] = own | ({"left": left} if left else {})
    text = dumped(table, torch=torch.__version__, samples=int(samples))
    Path(data).write_text(text, encoding="utf-8")
    path = Path(page)
    path.write_text(replaced(path.read_text(encoding="utf-8"), markdown(json.loads(text))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
