"""``smelt.verify``: a compiled model's results held against PyTorch's and a float64 reference, by the numeric contract.

A result passes where it is close to eager's at the tolerances of its dtype, or where its error against a float64
reference is at most twice eager's own (three times for half types). NaN and infinities must stand where eager's do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..ir.errors import InputError, SmeltError, VerifyError
from ..ir.interpret import interpret
from .contract import OutputResult, compare
from .generation.recording import Recording
from .module import CompiledModule
from .precision import asks_for_tf32
from .state import buffers_of, preserved, same
from .verify_caches import copied, copy_of, is_cache, leaves_of, path_of
from .verify_quantized import Judge, Moved, judged
from .verify_rounded import REFERENCE, judged_rounded, moved_all, rounding

__all__ = ["OutputResult", "VerifyResult", "compare", "verify"]

QUANTISED = "the model with its quantised weights, interpreted in float64"
QUANTISED_ROUNDED = "the model with its quantised weights and rounded caches, interpreted in float64"
HINT = "to find the step that broke it: smelt bisect MODEL, or smelt.runtime.bisect.bisect(model, args)"


@dataclass(frozen=True)
class VerifyResult:
    """How a compiled model compares.

    Attributes:
        reference: how the float64 reference was made.
        moved: how far quantisation, or rounding of its caches, moved each output from the model's own.
    """

    outputs: tuple[OutputResult, ...]
    reference: str
    moved: tuple[Moved, ...] = ()

    @property
    def worst(self) -> OutputResult | None:
        """The output with the largest error, one that fails before any that passes; None where there is no output."""
        return max(self.outputs, key=_badness, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The result as data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [*map(str, self.outputs), f"reference: {self.reference}"]
        results = [moved for moved in self.moved if not moved.path.startswith("buffer ")]
        return "\n".join([*lines, *map(str, results or self.moved)])


def verify(fast: CompiledModule, *args: Any, **kwargs: Any) -> VerifyResult:
    """Hold a compiled model's results against eager's and a float64 reference.

    The model runs three times on copies of the arguments; buffers that it changes are put back. A quantised model is
    held to the model with the quantised weights, and the result says how far those moved it from the model. A call with
    a cache of a model compiled with ``kv_cache_dtype`` is held to the model with a cache that rounds as much, and one
    that PyTorch ran to the model as it is; the result says so.

    Raises:
        UnsupportedError: the model is quantised and split into several graphs.
        VerifyError: an output breaks the numeric contract; the message names the worst one.
        InputError: the model itself refuses the arguments.
        TypeError: the model is not compiled.
    """
    if not hasattr(fast, "original"):
        raise TypeError(f"verify takes what smelt.compile returned, not a {type(fast).__name__}")
    model = fast.original
    eager = _eager(model, args, kwargs)
    with _recorded(fast) as recording:
        ours = _observe(fast, model, args, kwargs)
    if list(ours.values) != list(eager.values):
        differing = sorted(set(ours.values) ^ set(eager.values)) or list(ours.values)
        raise VerifyError(f"the result has another structure than eager's: {', '.join(differing)}")
    reference, how = _reference(fast, args, kwargs, eager.values)
    shown = [path for path in eager.values if path not in eager.unwritten & ours.unwritten]
    options = getattr(fast, "options", None)
    tf32 = options is not None and options.target.kind == "cuda" and asks_for_tf32()
    plain = _Values(eager.values, reference)
    rounded = _rounded(fast, args, kwargs) if _rounds(fast, args, kwargs) else None
    if options is not None and options.quantize is not None and not recording.passed:
        judge = _judge(fast, args, kwargs, recording)
        ties = options.quantize.activations is not None
        held, moved_by_rounding = plain, {}
        if rounded is not None:
            held, moved_by_rounding = rounded, moved_all(shown, rounded.exact, reference)
        results, moved = judged(ours.values, *held, shown, judge, ties, tf32, moved_by_rounding)
        result = VerifyResult(results, QUANTISED if rounded is None else QUANTISED_ROUNDED, moved)
    elif rounded is not None:
        pairs = (rounded.eager, eager.values), (rounded.exact, reference)
        results, moved = judged_rounded(ours.values, *pairs, shown)
        result = VerifyResult(results, REFERENCE, moved)
    else:
        found = ((path, ours.values[path], eager.values[path], reference.get(path)) for path in shown)
        result = VerifyResult(tuple(compare(*values, tf32=tf32) for values in found), how)
    if recording.passed:
        result = replace(result, reference=f"{result.reference}; PyTorch ran the call: {recording.passed}")
    worst = result.worst
    if worst is not None and not worst.passed:
        failed = sum(not output.passed for output in result.outputs)
        raise VerifyError(
            f"{failed} of {len(result.outputs)} outputs break the numeric contract; the worst: {worst}\n{HINT}"
        )
    return result


class _Values(NamedTuple):
    """What ours are held to, by path: what PyTorch gives in the model's dtypes, and in float64."""

    eager: Mapping[str, Any]
    exact: Mapping[str, Any]


def _recorded(fast: CompiledModule) -> AbstractContextManager[Recording]:
    """Within, the model's calls with a cache are recorded."""
    generation = getattr(fast, "_generation", None)
    return nullcontext(Recording()) if generation is None else generation.recorded()


def _judge(fast: CompiledModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], recording: Recording) -> Judge:
    """The graphs of a quantised model's call."""
    if not recording.steps:
        return Judge(*fast.entry_for(args, kwargs), _leaf_paths(args, kwargs))
    from .verify_cached import StepJudge  # which needs transformers, as such calls do

    (step,) = recording.steps
    return StepJudge(step, fast._generation.calls)


def _leaf_paths(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int, str]:
    """The paths of the tensors among the arguments, by identity."""
    given = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))[0]
    return {id(leaf): f"argument {path_of(path[1:])}" for path, leaf in given if isinstance(leaf, Tensor)}


# --- running ----------------------------------------------------------------------------------------------------------


class _Observation(NamedTuple):
    """Everything that a call gives, by path, and which arguments and buffers among it are as they were."""

    values: dict[str, Any]
    unwritten: set[str]


def _eager(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Observation:
    """What the model itself gives.

    Raises:
        InputError: it refuses the arguments.
    """
    try:
        return _observe(model, model, args, kwargs)
    except (SmeltError, IndexError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises
        name = getattr(model, "__name__", type(model).__name__)
        raise InputError(f"{name} itself refuses these arguments: {error}") from error


def _observe(
    run: Callable[..., Any], model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> _Observation:
    """The leaves of a call's result, and what becomes of its arguments and the model's buffers, on copies of them."""
    given = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))[0]
    before = {f"argument {path_of(path[1:])}": leaf for path, leaf in given if isinstance(leaf, Tensor)}
    before |= {f"buffer {name}": tensor.clone() for name, tensor in buffers_of(model).items()}
    args, kwargs = pytree.tree_map(copy_of, (tuple(args), dict(kwargs)))
    with torch.no_grad(), preserved(model):
        result = run(*args, **kwargs)
        values = leaves_of(result)
        after = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        after += [tensor.clone() for tensor in buffers_of(model).values()]
    states = dict(zip(before, after, strict=True))
    return _Observation(values | states, {path for path, state in states.items() if same(state, before[path])})


def _reference(
    fast: CompiledModule, args: Sequence[Any], kwargs: Mapping[str, Any], eager: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str]:
    """What the model gives in float64, and how that was found."""
    try:
        found = _double(fast.original, args, kwargs)
    except Exception:  # whatever a model does that only works in its own dtypes
        found = {}
    floats = [path for path, value in eager.items() if _is_float(value)]
    if found and all(_is_wide(found.get(path)) for path in floats):
        return found, "the model in float64"
    try:
        return _interpreted(fast, args, kwargs), "the captured graph, interpreted in float64"
    except SmeltError as error:
        return {}, f"none ({error})"


def _rounds(fast: CompiledModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes to a cache that is rounded."""
    asked = getattr(fast, "options", None) is not None and fast.options.kv_cache_dtype is not None
    return asked and fast._generation.has_cache(args, kwargs)


def _rounded(fast: CompiledModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Values:
    """What the model gives with caches that are rounded."""
    calls, model = fast._generation.calls, fast.original
    found = _observe(rounding(calls, model), model, args, kwargs).values
    return _Values(found, _double(model, args, kwargs, lambda wide: rounding(calls, wide)))


def _double(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    way: Callable[[Any], Callable[..., Any]] = lambda wide: wide,
) -> dict[str, Any]:
    """What the model gives in float64; ``way`` makes of that model what is called."""
    wide = copy.deepcopy(model).double() if isinstance(model, nn.Module) else model
    args, kwargs = pytree.tree_map(_widen, (tuple(args), dict(kwargs)))
    return _observe(way(wide), wide, args, kwargs).values


def _interpreted(fast: CompiledModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    entry, sizes, call = fast.entry_for(tuple(args), kwargs)
    graph = entry.capture.graph
    tensors = [leaf for spec, leaf in zip(entry.capture.inputs, call.leaves, strict=True) if spec.kind == "tensor"]
    device = entry.executable.device  # constants of the model's Python are the CPU's
    weights = {name: tensor.to(device) for name, tensor in entry.capture.weights.items()}
    results = interpret(graph, tensors, weights, sizes=sizes, dtype=torch.float64)
    found = entry.capture.unflatten(list(results.outputs), call.leaves, sizes)
    return {path_of(path): leaf for path, leaf in pytree.tree_flatten_with_path(found)[0]}


def _widen(leaf: Any) -> Any:
    if is_cache(leaf):
        return copied(leaf, wide=True)
    return leaf.double() if _is_float(leaf) else leaf


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype.is_floating_point


def _is_wide(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.float64


def _badness(result: OutputResult) -> tuple[bool, float, float]:
    ratio = result.rmse / max(result.eager_rmse, 1e-300) if result.rmse and result.eager_rmse is not None else 0.0
    return not result.passed, ratio, result.max_abs
