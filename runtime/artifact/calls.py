"""How calls map to a graph, as JSON and back, without the classes and the code of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...frontend.capture import Capture, Fallback, Guard, InputSpec, OutputSpec, Specialised
from ...ir.errors import ArtifactError, UnsupportedError
from ...ir.graph import Graph
from ..saved.values import (
    NoForm,
    condition_data,
    condition_of,
    constant_data,
    constant_of,
    dim_data,
    dim_of,
)
from .names import identifier
from .trees import tree_data, tree_of

MOST_PARAMETERS = 1000
_KINDS = {kind.name: kind for kind in inspect._ParameterKind}


class _Default:
    """Stands for a default value that has no text. No call passes it, so that it is never taken for given."""

    def __repr__(self) -> str:
        return "..."


def calls_data(capture: Capture) -> dict[str, Any]:
    """A capture as JSON, without its graph and weights.

    Raises:
        UnsupportedError: an argument or a result is of a kind that an artifact cannot hold.
    """
    try:
        return {
            "signature": _signature_data(capture.signature),
            "inputs": [[s.name, s.kind, constant_data(s.value), dim_data(s.dim)] for s in capture.inputs],
            "arguments": tree_data(capture.in_spec, "the arguments"),
            "outputs": [[s.kind, s.index, constant_data(s.value), dim_data(s.dim)] for s in capture.outputs],
            "results": tree_data(capture.out_spec, "the results"),
            "guards": [[condition_data(guard.condition), guard.where] for guard in capture.guards],
            "fallbacks": [[f.op, f.reason, list(f.sources)] for f in capture.fallbacks],
            "specialised": [[s.argument, s.axis, s.value, s.where] for s in capture.specialised],
            "notes": list(capture.notes),
        }
    except NoForm as error:
        raise UnsupportedError(f"an artifact cannot hold this model: {error}") from None


def capture_of(data: Mapping[str, Any], graph: Graph, weights: Mapping[str, Tensor]) -> Capture:
    """The capture that :func:`calls_data` wrote.

    Raises:
        ArtifactError, ParseError, KeyError, TypeError, ValueError: the data is damaged.
    """
    symbols = [r.symbol for r in graph.symbols]
    capture = Capture(
        graph=graph,
        weights=weights,
        inputs=tuple(InputSpec(n, k, constant_of(v), dim_of(d, symbols)) for n, k, v, d in data["inputs"]),
        in_spec=tree_of(data["arguments"]),
        outputs=tuple(OutputSpec(k, i, constant_of(v), dim_of(d, symbols)) for k, i, v, d in data["outputs"]),
        out_spec=tree_of(data["results"]),
        fallbacks=tuple(Fallback(op, reason, tuple(sources)) for op, reason, sources in data["fallbacks"]),
        specialised=tuple(Specialised(*kept) for kept in data["specialised"]),
        guards=tuple(Guard(condition_of(condition, symbols), where) for condition, where in data["guards"]),
        notes=tuple(map(str, data["notes"])),
        signature=_signature_of(data["signature"]),
    )
    _check(capture)
    return capture


def _check(capture: Capture) -> None:
    """That leaves, inputs and results are as many as the graph and the trees have."""
    tensors = sum(spec.kind == "tensor" for spec in capture.inputs)
    counts = [
        (len(capture.inputs), capture.in_spec.num_leaves),
        (tensors, len(capture.graph.inputs)),
        (len(capture.outputs), capture.out_spec.num_leaves),
    ]
    if any(found != wanted for found, wanted in counts):
        raise ArtifactError("arguments or results are more or fewer than the graph's")
    if any(spec.kind not in ("tensor", "symbol", "constant") or type(spec.name) is not str for spec in capture.inputs):
        raise ArtifactError("there is no argument of such a kind")
    ends = {"tensor": len(capture.graph.outputs), "input": len(capture.inputs), "size": 1, "constant": 1}
    for result in capture.outputs:
        if result.kind not in ends or type(result.index) is not int or not 0 <= result.index < ends[result.kind]:
            raise ArtifactError("there is no result of such a kind")


# --- signatures -------------------------------------------------------------------------------------------------------


def _signature_data(signature: inspect.Signature | None) -> Any:
    if signature is None:
        return None
    return [[p.name, p.kind.name, _default_data(p.default)] for p in signature.parameters.values()]


def _default_data(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return []
    try:
        return [constant_data(default)]
    except NoForm:
        return ["other", None]


def _signature_of(data: Any) -> inspect.Signature | None:
    if data is None:
        return None
    if not isinstance(data, list) or len(data) > MOST_PARAMETERS:
        raise ArtifactError("a signature is damaged")
    return inspect.Signature([_parameter(*entry) for entry in data])


def _parameter(name: Any, kind: Any, default: Any) -> inspect.Parameter:
    if kind not in _KINDS:
        raise ArtifactError("there is no parameter of such a kind")
    value: Any
    match default:
        case []:
            value = inspect.Parameter.empty
        case [data]:
            value = constant_of(data)
        case _:
            value = _Default()
    return inspect.Parameter(identifier(name, "the name of a parameter"), _KINDS[kind], default=value)
