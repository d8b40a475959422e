"""``smelt zoo``: the built-in models."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .console import emit_json, out
from .zoo import ZOO, ZooModel


def list_zoo(as_json: bool) -> None:
    """Print the built-in models."""
    if as_json:
        emit_json([describe(model) for model in ZOO.values()])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("model", "what it is", "inputs", "needs"):
        table.add_column(column)
    for model in ZOO.values():
        table.add_row(f"zoo:{model.name}", model.description, inputs(model), " ".join(model.packages))
    out().print(table)


def describe(model: ZooModel) -> dict[str, Any]:
    """A built-in model as data."""
    return {
        "model": f"zoo:{model.name}",
        "description": model.description,
        "inputs": {name: list(axes) for name, axes in model.axes.items()},
        "sizes": [list(sizes) for sizes in model.sizes],
        "packages": list(model.packages),
    }


def inputs(model: ZooModel) -> str:
    """The inputs in a line: ``input_ids [batch, seq]``; a dash stands for a dim that is fixed."""
    return ", ".join(f"{name} \\[{', '.join(axis or '-' for axis in axes)}]" for name, axes in model.axes.items())
