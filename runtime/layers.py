"""The layers of a model, found from module paths: repeated numbered siblings such as ``model.layers.3``."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import ops
from ..ir.node import through_views
from .plan import Plan


def layers_of(modules: Sequence[str]) -> list[str | None]:
    """The layer that each module path lies in; None for those in no layer.

    A layer is a numbered part of a path that has a sibling with another number, the outermost such part where they are
    nested: ``encoder.layer.0`` of ``encoder.layer.0.attention`` where there is an ``encoder.layer.1``.
    """
    siblings: dict[str, set[str]] = {}
    for module in modules:
        for parent, number in _numbered(module):
            siblings.setdefault(parent, set()).add(number)
    return [_layer(module, siblings) for module in modules]


def _numbered(module: str) -> list[tuple[str, str]]:
    """The numbered parts of a path, outermost first: what is before the number, and the number."""
    parts = module.split(".") if module else []
    return [(".".join(parts[:i]), part) for i, part in enumerate(parts) if part.isdigit()]


def _layer(module: str, siblings: dict[str, set[str]]) -> str | None:
    for parent, number in _numbered(module):
        if len(siblings[parent]) > 1:
            return f"{parent}.{number}" if parent else number
    return None


def kernels_of_layers(plan: Plan) -> dict[str, list[int]]:
    """The positions of the steps of each layer, layers in the order in which they run.

    A step that several layers use is not one of the layer that happens to hold it: a position bias, say, or a mask,
    which is read in that layer and in another one, or in two others; and so is what only such steps read.
    """
    found: dict[str, list[int]] = {}
    for i, layer in enumerate(own_layers(plan)):
        if layer is not None:
            found.setdefault(layer, []).append(i)
    return found


def own_layers(plan: Plan) -> list[str | None]:
    """The layer of each step; None for those in none and for those that several layers use."""
    held = layers_of([step.node.origin.module for step in plan.steps])
    readers = _readers(plan)
    own = list(held)
    for i in reversed(range(len(held))):
        layers = {held[j] for j in readers[i]} - {None}
        shared = len(layers - {held[i]}) > 1 or (held[i] in layers and len(layers) > 1)
        passed = bool(readers[i]) and all(own[j] is None and held[j] is not None for j in readers[i])
        if held[i] is not None and (shared or passed):
            own[i] = None
    return own


def _readers(plan: Plan) -> list[list[int]]:
    """The steps that read what each step makes."""
    maker = {r: i for i, step in enumerate(plan.steps) for r in ops.results(step.node)}
    readers: list[list[int]] = [[] for _ in plan.steps]
    for i, step in enumerate(plan.steps):
        for value in dict.fromkeys(map(through_views, step.node.inputs)):
            if value in maker:
                readers[maker[value]].append(i)
    return readers
