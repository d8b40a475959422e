"""Capture through ``torch.export``: a model and example arguments in, a :class:`Capture` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..ir.errors import CaptureError, SmeltError
from .arguments import Attempt, Dynamic, Flattened, Leaf, attempts, leaves_of, traced
from .branches import Branch
from .capture import Capture, normal_form, signature_of
from .complexity import TooLong
from .instances import NotAlike
from .origins import definition_of
from .program import Request, Unfit, build
from .repeats import Repeats
from .sizes import DependsOnData
from .table import NeedsFunctional
from .tracing import tracing
from .untouched import WritesStateError, Written


def capture(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = True,
    fallback: Literal["allow", "error"] = "allow",
    stateless: bool = False,
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
        stateless: whether a model is refused that sets attributes of its modules, which a later call may read.

    Raises:
        CaptureError: the model is in training mode, or cannot be traced.
        WritesStateError: it sets attributes, and is to be ``stateless``.
        InputError: the arguments do not fit the model's signature, or ``dynamic`` the arguments.
        UnsupportedError: the model needs what smelt does not do, or a fallback where ``fallback`` is ``"error"``.
    """
    _check_inference(model)
    _check_autocast()
    signature = signature_of(model)
    args, named = normal_form(signature, args, kwargs or {})
    leaves, in_spec = leaves_of(signature, args, named, dynamic)
    _check_device(model, leaves)
    module = Flattened(model, leaves, in_spec)
    return capture_request(
        Request(module, leaves, in_spec, signature, fallback, definition_of(model), stateless), model
    )


def capture_request(request: Request, model: Callable[..., Any]) -> Capture:
    """Capture a prepared request, as :func:`capture` does; ``model`` is what messages name."""
    first: Exception | None = None
    is_long = False
    repeats = Repeats(request.module)
    for attempt in attempts(request.leaves):
        if is_long and attempt.symbolic is None:
            continue
        try:
            return _attempt(request, attempt, first, repeats)
        except WritesStateError as failure:  # which may be settled
            first = failure
            if failure.by_size:
                break
        except (Untraceable, Unfit, SmeltError) as failure:
            first = first or failure
            is_long = is_long or isinstance(failure.__cause__, TooLong)
            if _depends_on_data(failure):
                break
    assert first is not None
    if isinstance(first, SmeltError):
        raise first
    raise _refusal(model, first) from first.__cause__


def _attempt(request: Request, attempt: Attempt, earlier: Exception | None, repeats: Repeats) -> Capture:
    notes = () if earlier is None else (f"captured with {attempt.described}: {_line(earlier)}",)
    examples = tuple(attempt.example_of(leaf) for leaf in traced(request.leaves))
    written = Written()
    found = _trace(request, examples, notes, repeats, written)
    if written.names and (request.stateless or written.has_sizes):
        raise written.error("model.")  # the module that only flattens
    return found


def _trace(
    request: Request, examples: tuple[torch.Tensor, ...], notes: tuple[str, ...], repeats: Repeats, written: Written
) -> Capture:
    with tracing(request.module, written) as branches:
        while repeats:
            found = _with_equal_layers(request, examples, branches, notes, repeats)
            if found is not None:
                return found
            branches.clear()
        program = _export(request, examples)
        try:
            return build(request, program, branches, notes)
        except NeedsFunctional:
            # rare: PyTorch traces the program again, which takes as long as the export did
            program = _traced(lambda: program.run_decompositions({}))
            return build(request, program, branches, notes)


def _with_equal_layers(
    request: Request,
    examples: tuple[torch.Tensor, ...],
    branches: Sequence[Branch],
    notes: tuple[str, ...],
    repeats: Repeats,
) -> Capture | None:
    """The capture with equal layers traced twice at most; None where the model must be traced without that."""
    try:
        with repeats.watching():
            program = _export(request, examples)
        if not repeats.broken:
            return build(request, program, branches, notes, repeats.calls)
    except (NeedsFunctional, NotAlike):
        pass
    except Untraceable:
        if not repeats.calls:
            raise
    repeats.give_up()
    return None


def _export(request: Request, examples: tuple[torch.Tensor, ...]) -> ExportedProgram:
    return _traced(lambda: torch.export.export(request.module, examples, strict=False))


def _traced(trace: Callable[[], ExportedProgram]) -> ExportedProgram:
    try:
        return trace()
    except Exception as error:
        raise Untraceable(str(error)) from error


class Untraceable(Exception):
    """``torch.export`` refused; the cause says why."""


def _depends_on_data(failure: Exception) -> bool:
    """Whether a model branches on values, or has sizes that depend on them: fixed sizes will not help it."""
    causes = (GuardOnDataDependentSymNode, torch._dynamo.exc.UserError, DataDependentOutputException)
    return isinstance(failure, DependsOnData) or isinstance(failure.__cause__, causes)


def _line(failure: Exception) -> str:
    if isinstance(failure.__cause__, DataDependentOutputException):
        return f"the result of {failure.__cause__.func} is a Python value"
    return (str(failure).strip() or type(failure).__name__).split("\n")[0]


def _refusal(model: Callable[..., Any], failure: Exception) -> CaptureError:
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    return CaptureError(
        f"{name} cannot be captured as one graph: {_line(failure)}\n"
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


def _check_autocast() -> None:
    active = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if active:
        raise CaptureError(
            f"torch.autocast is active for {active[0]}: call outside of it. For half precision, convert the model with "
            ".to(torch.bfloat16), or enter torch.autocast inside of its forward"
        )


def _check_device(model: Callable[..., Any], leaves: Sequence[Leaf]) -> None:
    weights = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    # a 0-d tensor on the CPU goes with any device
    tensors = [t for t in (*weights, *(leaf.value for leaf in leaves if leaf.is_tensor)) if t.ndim]
    devices = sorted({str(t.device) for t in tensors})
    if "meta" in devices:
        raise CaptureError("weights or arguments are on the meta device: they have no values; load the weights first")
    if len(devices) > 1:
        raise CaptureError(f"weights and arguments are on several devices ({', '.join(devices)}): move them to one")
