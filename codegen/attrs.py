"""Attributes of IR nodes by type: what an operator's rule has already checked, told to the type checker."""

from __future__ import annotations

from typing import cast

from ..ir.node import Node
from ..ir.types import Dim, Shape


def integer(node: Node, name: str) -> int:
    """An attribute that is a whole number."""
    return cast(int, node.attrs[name])


def integers(node: Node, name: str) -> tuple[int, ...]:
    """An attribute that is a tuple of whole numbers."""
    return cast("tuple[int, ...]", node.attrs[name])


def flag(node: Node, name: str) -> bool:
    """An attribute that is true or false."""
    return bool(node.attrs[name])


def number(node: Node, name: str) -> float | int | bool | Dim:
    """An attribute that is a number or a size."""
    return cast("float | int | bool | Dim", node.attrs[name])


def size(node: Node, name: str) -> Dim:
    """An attribute that is a size."""
    return cast(Dim, node.attrs[name])


def sizes(node: Node, name: str) -> Shape:
    """An attribute that is a tuple of sizes."""
    return cast(Shape, node.attrs[name])
