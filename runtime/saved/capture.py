"""How calls map to a graph, as JSON and back: a capture without its graph and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Signature
from typing import Any

from torch import Tensor

from ...frontend.capture import Capture, Fallback, Guard, InputSpec, OutputSpec, Reason, Specialised
from ...ir.graph import Graph
from .values import (
    NoForm,
    Symbols,
    condition_data,
    condition_of,
    constant_data,
    constant_of,
    dim_data,
    dim_of,
    tensor_data,
    tensor_of,
    tree_data,
    tree_of,
)


def capture_data(capture: Capture, live: Mapping[str, Tensor]) -> dict[str, Any]:
    """A capture as JSON; of its weights those that the model has not, ``live``, are kept with their values.

    Raises:
        NoForm: something in it cannot be kept.
    """
    constants = {name: tensor_data(t) for name, t in capture.weights.items() if name not in live}
    written = {str(m.target.attrs["name"]) for m in capture.graph.mutations if m.target.op.name == "weight"}
    if written & constants.keys():
        raise NoForm(f"the model writes to {', '.join(sorted(written & constants.keys()))}, which is no buffer")
    data = {
        "inputs": [[s.name, s.kind, constant_data(s.value), dim_data(s.dim)] for s in capture.inputs],
        "in_spec": tree_data(capture.in_spec),
        "outputs": [[s.kind, s.index, constant_data(s.value), dim_data(s.dim)] for s in capture.outputs],
        "out_spec": tree_data(capture.out_spec),
        "weights": [name for name in capture.weights if name in live],
        "constants": constants,
        "guards": [[condition_data(guard.condition), guard.where] for guard in capture.guards],
        "fallbacks": [[f.op, f.reason, list(f.sources)] for f in capture.fallbacks],
        "specialised": [[s.argument, s.axis, s.value, s.where] for s in capture.specialised],
        "reasons": [[r.argument, r.axis, r.where] for r in capture.reasons],
        "notes": list(capture.notes),
    }
    again = capture_of(data, capture.graph, live, capture.signature)
    alike = ("inputs", "in_spec", "outputs", "out_spec", "guards", "fallbacks", "specialised", "reasons", "notes")
    for name in alike:
        if getattr(again, name) != getattr(capture, name):
            raise NoForm(f"the {name} of the capture are not read back as they were")
    return data


def capture_of(
    data: Mapping[str, Any], graph: Graph, live: Mapping[str, Tensor], signature: Signature | None
) -> Capture:
    """The capture that :func:`capture_data` wrote, of a model that holds the weights ``live``.

    Raises:
        KeyError, TypeError, ValueError: the data is damaged.
    """
    symbols = [r.symbol for r in graph.symbols]
    weights = {name: _plain(live[name]) for name in data["weights"]}
    return Capture(
        graph=graph,
        weights=weights | {name: tensor_of(kept) for name, kept in data["constants"].items()},
        inputs=tuple(_spec(InputSpec, kept, symbols) for kept in data["inputs"]),
        in_spec=tree_of(data["in_spec"]),
        outputs=tuple(_spec(OutputSpec, kept, symbols) for kept in data["outputs"]),
        out_spec=tree_of(data["out_spec"]),
        fallbacks=tuple(Fallback(op, reason, tuple(sources)) for op, reason, sources in data["fallbacks"]),
        specialised=tuple(Specialised(*kept) for kept in data["specialised"]),
        guards=tuple(Guard(condition_of(condition, symbols), where) for condition, where in data["guards"]),
        reasons=tuple(Reason(*kept) for kept in data.get("reasons", ())),
        notes=tuple(data["notes"]),
        signature=signature,
    )


def _spec(cls: Callable[..., Any], kept: Any, symbols: Symbols) -> Any:
    first, second, value, dim = kept
    return cls(first, second, constant_of(value), dim_of(dim, symbols))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor
