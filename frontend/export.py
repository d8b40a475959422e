"""Capture through ``torch.export``: a model and example arguments in, a :class:`Capture` out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram, ShapesCollection

from ..ir.errors import CaptureError
from .arguments import Dynamic, Leaf, enlargements, example_of, leaves_of
from .capture import Capture, normal_form, signature_of
from .program import Unfit, build
from .table import NeedsFunctional
from .tracing import tracing


def capture(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = True,
    fallback: Literal["allow", "error"] = "allow",
) -> Capture:
    """Capture a module or a function for inference.

    Args:
        model: the module, in eval mode, or the function.
        args: example positional arguments; only their types matter, not their values.
        kwargs: example keyword arguments.
        dynamic: True keeps every dim of every tensor argument symbolic that the model does not fix; False fixes all; a
            mapping such as ``{"input_ids": {0: "batch", 1: "seq"}}`` names the symbolic ones, equal names being equal
            sizes.
        fallback: whether operators without a lowering may be executed by PyTorch.

    Raises:
        CaptureError: the model is in training mode, or cannot be traced.
        InputError: the arguments do not fit the model's signature.
        UnsupportedError: the model needs what smelt does not do, or a fallback where ``fallback`` is ``"error"``.
    """
    _check_inference(model)
    signature = signature_of(model)
    args, named = normal_form(signature, args, kwargs or {})
    leaves, in_spec = leaves_of(signature, args, named, dynamic)
    module = model if isinstance(model, nn.Module) else FunctionModule(model)
    _check_device(module, leaves)
    attempts = enlargements(leaves)
    for attempt in attempts:
        try:
            return _attempt(module, leaves, in_spec, attempt, signature, fallback)
        except (Untraceable, Unfit) as failure:
            if attempt is attempts[-1]:
                raise _refusal(model, failure) from failure.__cause__
    raise AssertionError("unreachable")


def _attempt(
    module: nn.Module,
    leaves: tuple[Leaf, ...],
    in_spec: pytree.TreeSpec,
    enlarge: bool | int,
    signature: Any,
    fallback: str,
) -> Capture:
    examples = [example_of(leaf, enlarge) for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(examples, in_spec)
    with tracing() as branches:
        program = _export(module, args, kwargs, leaves, examples)
        try:
            return build(module, program, leaves, in_spec, branches, signature, fallback)
        except NeedsFunctional:
            # rare: PyTorch traces the program again, which takes as long as the export did
            program = program.run_decompositions({})
            return build(module, program, leaves, in_spec, branches, signature, fallback)


class Untraceable(Exception):
    """``torch.export`` refused; the cause says why."""


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: tuple[Leaf, ...], examples: list[Any]
) -> ExportedProgram:
    shapes = ShapesCollection()
    for leaf, example in zip(leaves, examples, strict=True):
        if leaf.axes:
            shapes[example] = dict.fromkeys(leaf.axes, ExportDim.AUTO)
    try:
        wanted = shapes.dynamic_shapes(module, args, kwargs) if shapes else None
        return torch.export.export(module, args, kwargs, dynamic_shapes=wanted, strict=False)
    except Exception as error:
        raise Untraceable(str(error)) from error


def _refusal(model: Callable[..., Any], failure: Exception) -> CaptureError:
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    reason = str(failure).strip().split("\n\n")[0]
    return CaptureError(
        f"{name} cannot be captured as one graph: {reason}\n"
        "A model is traced once for all inputs: what its Python decides by the values of tensors cannot be traced. "
        'Compile the part below that code, or use torch.compile(model, backend="smelt"), which splits the model there.'
    )


def _check_inference(model: Callable[..., Any]) -> None:
    if not isinstance(model, nn.Module):
        return
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f" (its module {training} is)" if training else ""
        raise CaptureError(f"{type(model).__name__} is in training mode{where}: call .eval() on it first")


def _check_device(module: nn.Module, leaves: tuple[Leaf, ...]) -> None:
    tensors = [*module.parameters(), *module.buffers(), *(leaf.value for leaf in leaves if leaf.is_tensor)]
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        raise CaptureError(f"weights and arguments are on several devices ({', '.join(devices)}): move them to one")
    if "meta" in devices:
        raise CaptureError("weights or arguments are on the meta device: they have no values; load the weights first")


class FunctionModule(nn.Module):
    """A function as a module, for ``torch.export``; a bound method keeps its module's parameters known by name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        owner = getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner
        self.eval() if owner is None else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


__all__ = ["FunctionModule", "capture", "functools"]
