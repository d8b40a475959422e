"""``smelt.verify``: a compiled model's results held against PyTorch's and a float64 reference, by the numeric contract.

A result passes where it is close to eager's at the tolerances of its dtype, or where its error against a float64
reference is at most twice eager's own (three times for half types). NaN and infinities must stand where eager's do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..ir.errors import SmeltError, VerifyError
from ..ir.interpret import interpret
from .module import CompiledModule
from .state import buffers_of, preserved, same

# rtol, atol: those of torch.testing.assert_close.
TOLERANCES = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class OutputResult:
    """How one output compares.

    Attributes:
        path: where it is in the result: ``last_hidden_state``, ``[0]``; ``buffer …`` and ``argument …`` for tensors
            that the model writes to.
        max_abs, max_rel: the largest difference from eager, absolute and relative to eager's value.
        rmse, eager_rmse: the root mean square error against the float64 reference, ours and eager's; None without one.
        fault: what is wrong; None where it passes.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float = 0.0
    max_rel: float = 0.0
    rmse: float | None = None
    eager_rmse: float | None = None
    fault: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it keeps the contract."""
        return self.fault is None

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        errors = f"max abs {self.max_abs:.2e}, rel {self.max_rel:.2e}"
        if self.rmse is not None and self.eager_rmse is not None:
            errors += f"; rmse against float64: {self.rmse:.2e}, eager {self.eager_rmse:.2e}"
        return f"{self.path} {self.dtype}[{shape}]: {errors}" + (f": {self.fault}" if self.fault else "")


@dataclass(frozen=True)
class VerifyResult:
    """How a compiled model compares. ``reference`` says how the float64 reference was made."""

    outputs: tuple[OutputResult, ...]
    reference: str

    @property
    def worst(self) -> OutputResult | None:
        """The output with the largest error, one that fails before any that passes; None where there is no output."""
        return max(self.outputs, key=_badness, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The result as data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.outputs), f"reference: {self.reference}"])


def verify(fast: CompiledModule, *args: Any, **kwargs: Any) -> VerifyResult:
    """Hold a compiled model's results against eager's and a float64 reference.

    The model runs three times on copies of the arguments; buffers that it changes are put back.

    Raises:
        VerifyError: an output breaks the numeric contract; the message names the worst one.
    """
    model = fast.original
    eager = _observe(model, model, args, kwargs)
    ours = _observe(fast, model, args, kwargs)
    if list(ours.values) != list(eager.values):
        differing = sorted(set(ours.values) ^ set(eager.values)) or list(ours.values)
        raise VerifyError(f"the result has another structure than eager's: {', '.join(differing)}")
    reference, how = _reference(fast, args, kwargs, eager.values)
    shown = [path for path in eager.values if path not in eager.unwritten & ours.unwritten]
    results = tuple(compare(path, ours.values[path], eager.values[path], reference.get(path)) for path in shown)
    result = VerifyResult(results, how)
    worst = result.worst
    if worst is not None and not worst.passed:
        failed = sum(not output.passed for output in results)
        raise VerifyError(f"{failed} of {len(results)} outputs break the numeric contract; the worst: {worst}")
    return result


# --- running ----------------------------------------------------------------------------------------------------------


class _Observation(NamedTuple):
    """Everything that a call gives, by path, and which arguments and buffers among it are as they were."""

    values: dict[str, Any]
    unwritten: set[str]


def _observe(
    run: Callable[..., Any], model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> _Observation:
    """The leaves of a call's result, and what becomes of its arguments and the model's buffers, on copies of them."""
    given = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))[0]
    before = {f"argument {_path(path[1:])}": leaf for path, leaf in given if isinstance(leaf, Tensor)}
    before |= {f"buffer {name}": tensor.clone() for name, tensor in buffers_of(model).items()}
    args, kwargs = pytree.tree_map(_copy, (tuple(args), dict(kwargs)))
    with torch.no_grad(), preserved(model):
        result = run(*args, **kwargs)
        values = {_path(path): _copy(leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0]}
        after = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        after += [tensor.clone() for tensor in buffers_of(model).values()]
    states = dict(zip(before, after, strict=True))
    return _Observation(values | states, {path for path, state in states.items() if same(state, before[path])})


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _path(path: Sequence[Any]) -> str:
    """``last_hidden_state`` for a key, ``[0]`` for a place; ``result`` for a result that is one tensor."""
    text = "".join(f".{key.key}" if isinstance(getattr(key, "key", None), str) else str(key) for key in path)
    return text.removeprefix(".") or "result"


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


def _double(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    wide = copy.deepcopy(model).double() if isinstance(model, nn.Module) else model
    args, kwargs = pytree.tree_map(_widen, (tuple(args), dict(kwargs)))
    return _observe(wide, wide, args, kwargs).values


def _interpreted(fast: CompiledModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    entry, sizes, call = fast.entry_for(tuple(args), kwargs)
    graph = entry.capture.graph
    tensors = [leaf for spec, leaf in zip(entry.capture.inputs, call.leaves, strict=True) if spec.kind == "tensor"]
    results = interpret(graph, tensors, entry.capture.weights, sizes=sizes, dtype=torch.float64)
    found = entry.capture.unflatten(list(results.outputs), call.leaves, sizes)
    return {_path(path): leaf for path, leaf in pytree.tree_flatten_with_path(found)[0]}


def _widen(leaf: Any) -> Any:
    return leaf.double() if _is_float(leaf) else leaf


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype.is_floating_point


def _is_wide(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype == torch.float64


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(path: str, ours: Any, eager: Any, reference: Any = None) -> OutputResult:
    """How a value compares with eager's, by the numeric contract; ``reference`` is the same in float64."""
    if not isinstance(eager, Tensor) or not isinstance(ours, Tensor):
        equal = type(ours) is type(eager) and (ours == eager or (ours != ours and eager != eager))
        return OutputResult(path, type(eager).__name__, (), fault=None if equal else f"{ours!r}, eager gives {eager!r}")
    plain = OutputResult(path, str(eager.dtype).removeprefix("torch."), tuple(eager.shape))
    for what in ("dtype", "shape", "device"):
        if getattr(ours, what) != getattr(eager, what):
            return _with(plain, fault=f"{what} {getattr(ours, what)}, eager gives {getattr(eager, what)}")
    if not eager.dtype.is_floating_point and not eager.dtype.is_complex:
        wrong = int((ours != eager).sum())
        largest = float((ours.double() - eager.double()).abs().max()) if wrong else 0.0
        return _with(plain, max_abs=largest, fault=f"{wrong} of {eager.numel()} values differ" if wrong else None)
    return _compare_floats(plain, ours, eager, reference)


def _compare_floats(plain: OutputResult, ours: Tensor, eager: Tensor, reference: Any) -> OutputResult:
    special = _special_fault(ours, eager)
    if special is not None:
        return _with(plain, max_abs=math.inf, max_rel=math.inf, fault=special)
    finite = eager.isfinite()
    wide = torch.complex128 if eager.dtype.is_complex else torch.float64
    mine, theirs = (x.detach()[finite].to(wide) for x in (ours, eager))
    difference, size = (mine - theirs).abs(), theirs.abs()
    result = _with(
        plain,
        max_abs=float(difference.max()) if difference.numel() else 0.0,
        max_rel=float((difference / size.clamp_min(torch.finfo(size.dtype).tiny)).max()) if size.numel() else 0.0,
    )
    if isinstance(reference, Tensor) and reference.shape == eager.shape:
        exact = reference[finite].to(wide)
        result = _with(result, rmse=_rmse(mine, exact), eager_rmse=_rmse(theirs, exact))
    rtol, atol = TOLERANCES.get(eager.dtype, TOLERANCES[torch.float32])
    if bool((difference <= atol + rtol * size).all()):
        return result
    return _with(result, fault=_error_fault(result, 3.0 if eager.dtype in _HALF else 2.0))


def _error_fault(result: OutputResult, factor: float) -> str | None:
    """What is wrong with a result that is not close to eager's: nothing where eager is no nearer to the truth."""
    if result.rmse is None or result.eager_rmse is None:
        return "it is not close to eager's at the dtype's tolerances"
    if result.rmse <= factor * result.eager_rmse:
        return None
    return f"its error is more than {factor:g} times eager's, and it is not close to eager's"


def _special_fault(ours: Tensor, eager: Tensor) -> str | None:
    if eager.dtype.is_complex:
        ours, eager = torch.view_as_real(ours), torch.view_as_real(eager)
    for what, mine, theirs in (
        ("NaN", ours.isnan(), eager.isnan()),
        ("inf", ours.isposinf(), eager.isposinf()),
        ("-inf", ours.isneginf(), eager.isneginf()),
    ):
        if not torch.equal(mine, theirs):
            differ = int((mine != theirs).sum())
            return f"{what} at {int(mine.sum())} places, in eager's at {int(theirs.sum())}: {differ} differ"
    return None


def _rmse(values: Tensor, exact: Tensor) -> float:
    error = (values - exact).abs()
    return float(error.square().mean().sqrt()) if error.numel() else 0.0


def _badness(result: OutputResult) -> tuple[bool, float, float]:
    ratio = result.rmse / max(result.eager_rmse, 1e-300) if result.rmse and result.eager_rmse is not None else 0.0
    return not result.passed, ratio, result.max_abs


def _with(result: OutputResult, **changes: Any) -> OutputResult:
    return OutputResult(**{**asdict(result), **changes})
