"""What ``smelt compile-check`` found, as text: a model's kernels, and a line for each model of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Data = dict[str, Any]

_HEAD = f"{'calls':>5} {'regs':>5} {'spills':>6} {'shared':>7} {'warps':>5} {'occup.':>6} {'bits':>4}  function"


def text_of(data: Data) -> str:
    """The findings of a model as a table, a line for each function."""
    kernels = data["kernels"]
    lines = [f"{_title(data)}: {len(kernels)} kernels; nothing was run or measured", "", _HEAD]
    for k in kernels:
        for f in k["functions"]:
            numbers = f"{k['calls']:>5} {f['registers']:>5} {f['spills']:>6} {f['shared_bytes']:>7} {f['warps']:>5}"
            lines.append(f"{numbers} {f['occupancy']:>6.0%} {f['bits']:>4}  {f['function']}")
        if k["error"]:
            lines += [f"{k['calls']:>5} FAILED {k['name']}", *(f"      {line}" for line in k["error"].splitlines())]
    found = summary_of(data)
    lines += [
        "",
        f"{found['functions']} functions, {len(found['spilling'])} with spills, {len(found['failed'])} failed",
    ]
    lines += [f"PyTorch runs {op}: {why}" for op, why in data["torch"]]
    return "\n".join(lines)


def _title(data: Data) -> str:
    on = "" if data["numbers"] == "f32" else f" on {data['numbers']}"
    return f"{data['name']}{on} for {data['target']}"


def summary_of(data: Data) -> Data:
    """What is said of a model in a table of many: the largest of each figure, and what is not as it should be."""
    functions = [f for k in data["kernels"] for f in k["functions"]]
    return {
        "name": data["name"],
        "numbers": data["numbers"],
        "target": data["target"],
        "kernels": len(data["kernels"]),
        "functions": len(functions),
        "registers": max((f["registers"] for f in functions), default=0),
        "shared_bytes": max((f["shared_bytes"] for f in functions), default=0),
        "occupancy": round(min((f["occupancy"] for f in functions), default=1.0), 3),
        "spilling": [[f["function"], f["spills"]] for f in functions if f["spills"]],
        "failed": [[k["name"], k["error"].splitlines()[0]] for k in data["kernels"] if k["error"]],
        "torch": data["torch"],
    }


COLUMNS = ("model", "on", "target", "kernels", "functions", "registers", "shared KiB", "occupancy", "spills", "failed")
NAMES = 3  # columns of names, before those of numbers


def cells_of(row: Data) -> list[str]:
    """A line of the table of the zoo, as :data:`COLUMNS` says."""
    return [
        row["name"].removeprefix("zoo:"),
        row["numbers"],
        row["target"],
        str(row["kernels"]),
        str(row["functions"]),
        str(row["registers"]),
        f"{row['shared_bytes'] / 1024:.0f}",
        f"{row['occupancy']:.0%}",
        str(len(row["spilling"])),
        str(len(row["failed"])),
    ]


def table_of(rows: Sequence[Data]) -> str:
    """A line for each model, kind of numbers and target; then what spills, fails, or is left to PyTorch."""
    table = [list(COLUMNS), *map(cells_of, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(c.ljust(w) if i < NAMES else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in table
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", *remarks_of(rows)])


def remarks_of(rows: Sequence[Data]) -> list[str]:
    """What spills, fails or is left to PyTorch, a line each; and the sum."""
    found: list[str] = []
    for row in rows:
        where = f"{row['name']} on {row['numbers']} for {row['target']}"
        found += [f"{where}: {name} spills {count} bytes a thread" for name, count in row["spilling"]]
        found += [f"{where}: {name} FAILED: {why}" for name, why in row["failed"]]
    left = dict.fromkeys(
        f"PyTorch runs {op} of {row['name']} on {row['numbers']}: {why}" for row in rows for op, why in row["torch"]
    )
    spilling, failed = (sum(len(row[what]) for row in rows) for what in ("spilling", "failed"))
    total = sum(row["functions"] for row in rows)
    return [*found, *left, f"{total} functions, {spilling} with spills, {failed} failed; nothing was run or measured"]
