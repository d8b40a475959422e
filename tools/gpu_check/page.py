"""``python -m smelt.tools.gpu_check.page``: puts the tables of a record into the page on GPUs.

Between ``<!-- gpu PART -->`` and ``<!-- end -->`` stands a part's table, made from ``docs/benchmarks/h200.json``. While
that file is not there, every figure is *not measured*.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .record import RecordError, load
from .row import PARTS
from .table import faults, markdown

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
PAGE, RECORD = DOCS / "gpu.md", DOCS / "h200.json"
NOTHING: Mapping[str, Any] = {"parts": {}, "dry": False}


def made(page: str, data: Mapping[str, Any]) -> str:
    """The page with all tables as a record gives them.

    Raises:
        RecordError: the record is of a dry run, or a table has no place in the page.
    """
    if data["dry"]:
        raise RecordError("this is the record of a dry run, which measures nothing")
    for name, part in PARTS.items():
        found = data["parts"].get(name, {})
        table = markdown(part, found.get("rows", {}))
        page = _replaced(page, f"gpu {name}", f"{table}\n\n{_caption(found)}")
    nothing = "Nothing did." if data["parts"] else "Nothing was run."
    return _replaced(page, "gpu faults", "\n".join(f"- {line}" for line in faults(data)) or nothing)


def _replaced(page: str, name: str, text: str) -> str:
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    found, count = marks.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)
    if count != 1:
        raise RecordError(f"<!-- {name} --> ... <!-- end --> is there {count} times: it must be there once")
    return found


def _caption(found: Mapping[str, Any]) -> str:
    """When, where and with what a part was measured."""
    if not found:
        return "*Not measured*: no GPU was at hand."
    facts = found["environment"]
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    gpu = facts["gpu"].get("name", "no GPU")
    return f"{found['when']}, {gpu}, driver {facts['driver']}, CUDA {facts['gpu'].get('cuda')}; {versions}."


def main(record: Path = RECORD, page: Path = PAGE) -> None:
    """Write the page."""
    data = load(record) if record.exists() else NOTHING
    page.write_text(made(page.read_text(encoding="utf-8"), data), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
