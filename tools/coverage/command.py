"""``smelt coverage``: which architectures are captured whole, what PyTorch runs of them, and how large errors are."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ...ir.errors import SmeltError
from ...runtime.whynot import suggestion
from ..console import counted, emit_json, out
from ..env import facts
from ..zoo import require
from .architectures import ARCHITECTURES
from .measure import Row
from .page import cells, head
from .worker import rows


class UnknownArchitectureError(SmeltError, ValueError):
    """There is no such architecture; the message names those that are near."""


def coverage(names: Sequence[str], json_file: Path | None, list_only: bool = False) -> bool:
    """Measure architectures and print a table; whether every result was right.

    Args:
        names: of architectures; all of them for none.
        json_file: where to write JSON, ``-`` for standard output; rows of a file that is there already are kept where
            ``names`` names others.
        list_only: print the names and measure nothing.

    Raises:
        UnknownArchitectureError: one of the names is none.
        MissingExtraError: transformers is not installed.
    """
    if list_only:
        print("\n".join(ARCHITECTURES))
        return True
    chosen = check(names)
    require(("transformers",))
    found = []
    with counted("architectures", len(chosen)) as progress:
        for row in rows(chosen):
            found.append(row)
            progress(len(found))
            if not sys.stderr.isatty():
                print(f"{row.name}: {'ok' if row.passed else 'failed'}", file=sys.stderr)
    if json_file is None:
        show(found)
    elif str(json_file) == "-":
        emit_json(record(found))
    else:
        kept = read(json_file) if names and json_file.exists() else ()
        json_file.write_text(json.dumps(record(found, kept), indent=1) + "\n", encoding="utf-8")
    return all(row.passed for row in found)


def check(names: Sequence[str]) -> list[str]:
    """The architectures that are asked for, each once.

    Raises:
        UnknownArchitectureError: one of the names is none.
    """
    for name in names:
        if name not in ARCHITECTURES:
            raise UnknownArchitectureError(f"no architecture {name!r}{suggestion(name, ARCHITECTURES)}")
    return list(dict.fromkeys(names)) or list(ARCHITECTURES)


def record(found: Sequence[Row], kept: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Rows as data, in the order of the list, with versions and the machine."""
    rows_ = {row["name"]: row for row in kept} | {row.name: row.to_dict() for row in found}
    environment = facts()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: environment["versions"][name] for name in ("torch", "transformers")},
        "processor": environment["machine"]["processor"],
        "architectures": [rows_[name] for name in ARCHITECTURES if name in rows_],
    }


def read(path: Path) -> list[Mapping[str, Any]]:
    """The rows that a file holds."""
    found: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["architectures"]
    return found


def show(found: Sequence[Row]) -> None:
    """Print the rows on a terminal, what is wrong or not one graph below them."""
    made = Table(box=None, pad_edge=False)
    for column in head():
        made.add_column(column, overflow="fold")
    for row in found:
        made.add_row(*cells(row.to_dict()))
    console = out()
    console.print(made)
    for row in found:
        for outcome in row.outcomes:
            if outcome.error or outcome.split:
                console.print(f"{row.name}, {outcome.call}: {outcome.error or outcome.split}", markup=False)
