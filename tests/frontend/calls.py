"""Captured graphs run by the interpreter and compared with eager."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree

from smelt.frontend.capture import Capture
from smelt.frontend.export import capture
from smelt.ir.binding import bind_symbols
from smelt.ir.errors import InputError
from smelt.ir.interpret import interpret
from smelt.ir.verify import verify

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass
class Ran:
    """The result of a call and what the caller's tensors became, by name."""

    result: Any
    mutations: dict[str, torch.Tensor] = field(default_factory=dict)


def run(captured: Capture, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Ran:
    """Call a capture as a runtime does: check the arguments, bind the sizes, interpret the graph."""
    leaves = captured.flatten(args, kwargs or {})
    for spec, leaf in zip(captured.inputs, leaves, strict=True):
        if spec.kind == "constant" and not spec.accepts(leaf):
            raise InputError(f"{spec.name} is {leaf}, captured as {spec.value}")
    tensors = [leaf for spec, leaf in zip(captured.inputs, leaves, strict=True) if spec.kind == "tensor"]
    known = {spec.dim: leaf for spec, leaf in zip(captured.inputs, leaves, strict=True) if spec.kind == "symbol"}
    sizes = bind_symbols(captured.graph, [t.shape for t in tensors], known)
    broken = [str(guard) for guard in captured.guards if not guard.holds(sizes)]
    if broken:
        raise InputError(f"guards do not hold: {broken}")
    outputs, mutations = interpret(captured.graph, tensors, captured.weights, sizes=known)
    names = [str(m.target.attrs["name"]) for m in captured.graph.mutations]
    return Ran(captured.unflatten(outputs, leaves, sizes), dict(zip(names, mutations, strict=True)))


def same(found: Any, expected: Any) -> None:
    """Equal structure, types, shapes and dtypes; values within a tolerance of the dtype."""
    ours, ours_spec = pytree.tree_flatten(found)
    theirs, theirs_spec = pytree.tree_flatten(expected)
    assert ours_spec == theirs_spec
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            tolerance = TOLERANCE.get(b.dtype, 1e-4)
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 10, equal_nan=True)
        else:
            assert type(a) is type(b)
            assert a == b


def run_and_apply(captured: Capture, args: tuple[Any, ...]) -> Any:
    """:func:`run`, and write to the arguments and weights what the graph changes."""
    ran = run(captured, args)
    named = dict(zip((spec.name for spec in captured.inputs), captured.flatten(args, {}), strict=True))
    for name, value in ran.mutations.items():
        (named | dict(captured.weights))[name].copy_(value)
    return ran.result


def check_calls(model: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> Capture:
    """Capture the first call's arguments and compare every call with eager."""
    captured = capture(model, calls[0], **options)
    verify(captured.graph)
    for args in calls:
        with torch.no_grad():
            expected = model(*pytree.tree_map_only(torch.Tensor, torch.clone, args))
        same(run(captured, args).result, expected)
    return captured
