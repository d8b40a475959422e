"""``python -m smelt.tools.compile_check_page``: ``docs/gpu-kernels.md`` from what ``compile-check --zoo`` found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .compile_check_text import COLUMNS, NAMES, cells_of, remarks_of
from .console import emit_text
from .errors import OutputError

Data = dict[str, Any]

BEGIN, END = "<!-- compile-check -->", "<!-- end -->"
KEPT = Path("docs/gpu-kernels.json")
PAGE = Path("docs/gpu-kernels.md")


def merged(files: Sequence[Data]) -> Data:
    """Several findings as one: a later one for the same model, numbers and target replaces an earlier one.

    Raises:
        OutputError: they were made with different versions.
    """
    versions = files[0]["versions"]
    if any(f["versions"] != versions for f in files):
        raise OutputError("findings of different versions of Triton or PyTorch are not one table")
    rows = {(r["name"], r["numbers"], r["target"]): r for f in files for r in f["rows"]}
    return {"versions": versions, "rows": [rows[key] for key in sorted(rows, key=_order)]}


def _order(key: tuple[str, str, str]) -> tuple[str, str, int]:
    name, numbers, target = key
    return name, numbers, int(target.removeprefix("sm_"))


def table_of(found: Data) -> str:
    """The findings as a table, and what is to be said of them."""
    rule = ["---"] * NAMES + ["--:"] * (len(COLUMNS) - NAMES)
    lines = [" | ".join(cells) for cells in (COLUMNS, rule, *map(cells_of, found["rows"]))]
    *remarks, total = remarks_of(found["rows"])
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    said = ["", *(f"- {r}" for r in remarks), "", f"{total}. {versions}."]
    return "\n".join([*(f"| {line} |" for line in lines), *said])


def page_with(page: str, table: str) -> str:
    """A page with the table between its marks.

    Raises:
        OutputError: the page has no such marks.
    """
    if BEGIN not in page or END not in page.split(BEGIN, 1)[1]:
        raise OutputError(f"the page has no place for the table: {BEGIN} and {END}")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}"


def main(
    files: Annotated[list[Path], typer.Argument(help="What `smelt compile-check --zoo --json` wrote.")],
) -> None:
    """Put findings together, keep them as JSON, and write the page's table."""
    found = merged([json.loads(path.read_text(encoding="utf-8")) for path in files])
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), table_of(found)), encoding="utf-8")
    emit_text(f"{len(found['rows'])} rows in {PAGE}")


if __name__ == "__main__":
    typer.run(main)
