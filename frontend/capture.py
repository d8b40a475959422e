"""What a capture is: a graph, the tensors it names, and how a call's arguments and results map to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..ir.errors import InputError
from ..ir.graph import Graph
from ..ir.types import Dim, substitute


@dataclass(frozen=True)
class InputSpec:
    """One leaf of the flattened arguments.

    Attributes:
        name: its path in the call, ``input_ids`` or ``states[0]["x"]``.
        kind: ``tensor``: the graph input of that name; ``symbol``: an integer that gives ``dim`` its size;
            ``constant``: a leaf that every call must repeat.
        value: a constant's value.
        dim: what an integer argument measures.
    """

    name: str
    kind: Literal["tensor", "symbol", "constant"]
    value: Any = None
    dim: Dim | None = None

    def accepts(self, leaf: object) -> bool:
        """Whether a constant leaf repeats the captured one: equal and of the same type, NaN equal to itself."""
        if isinstance(leaf, float) and isinstance(self.value, float):
            return leaf.hex() == self.value.hex()  # 0.0 is not -0.0
        return type(leaf) is type(self.value) and bool(leaf == self.value)


@dataclass(frozen=True)
class OutputSpec:
    """One leaf of the flattened results.

    Attributes:
        kind: ``tensor``: the graph output ``index``; ``input``: leaf ``index`` of the arguments, the same object;
            ``size``: the integer ``dim``; ``constant``: ``value``.
    """

    kind: Literal["tensor", "input", "size", "constant"]
    index: int = 0
    value: Any = None
    dim: Dim | None = None


@dataclass(frozen=True)
class Fallback:
    """An operator that PyTorch executes: its name, why, and the lines of the model that call it."""

    op: str
    reason: str
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}: {self.reason}" + (f" ({', '.join(self.sources)})" if self.sources else "")


@dataclass(frozen=True)
class Specialised:
    """A dim that the model, or the example, forces to one size: calls with another size need another capture."""

    argument: str
    axis: int
    value: int
    where: str = ""

    def __str__(self) -> str:
        return f"{self.argument}: axis {self.axis} is always {self.value}" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Reason:
    """Why a dim of an argument is not of any size: the line and the module of the model that narrowed it."""

    argument: str
    axis: int
    where: str


@dataclass(frozen=True)
class Guard:
    """A relation between sizes that must hold for the graph to be the model: a sympy condition over its symbols."""

    condition: Any
    where: str = ""

    def holds(self, sizes: Mapping[sympy.Symbol, int]) -> bool:
        """Whether the relation holds for the sizes of a call."""
        try:
            found = self.condition.subs(dict(sizes), simultaneous=True)
        except ZeroDivisionError:
            return False
        return found is sympy.true or found is True

    def __str__(self) -> str:
        return f"{self.condition}" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Capture:
    """A model as a graph.

    Attributes:
        graph: what it computes. Its inputs are the tensor leaves of the arguments, in order.
        weights: the live tensors that the graph's ``weight`` nodes name: parameters and buffers by qualified name, tied
            ones once, and ``constant.N``.
        inputs: the leaves of the arguments in their normal form (see :meth:`flatten`).
        in_spec: the tree of those arguments, (args, kwargs).
        outputs: the leaves of the result.
        out_spec: the tree of the result.
        fallbacks: operators that PyTorch executes.
        specialised: dims that are not symbolic though they might have been.
        guards: relations between sizes beyond the ranges in ``graph.symbols``.
        reasons: of dims that are fixed, equal to others or in a range, which lines of the model made them so.
        notes: remarks for the report.
    """

    graph: Graph
    weights: Mapping[str, Tensor]
    inputs: tuple[InputSpec, ...]
    in_spec: pytree.TreeSpec
    outputs: tuple[OutputSpec, ...]
    out_spec: pytree.TreeSpec
    fallbacks: tuple[Fallback, ...] = ()
    specialised: tuple[Specialised, ...] = ()
    guards: tuple[Guard, ...] = ()
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    signature: inspect.Signature | None = field(default=None, repr=False, compare=False)

    def reason_of(self, argument: str, axis: int) -> str:
        """Why a dim of an argument is not of any size, in a line; "" where that is not known."""
        found = [r.where for r in self.reasons if (r.argument, r.axis) == (argument, axis) and r.where]
        return "; ".join(dict.fromkeys(found))

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call's arguments, one for each of ``inputs``.

        Raises:
            InputError: the arguments have another structure than the captured ones.
        """
        leaves, spec = pytree.tree_flatten(normal_form(self.signature, args, kwargs))
        if spec != self.in_spec:
            raise InputError(
                f"the arguments have another structure than the captured ones: got {describe(spec)}, "
                f"captured {describe(self.in_spec)}"
            )
        return leaves

    def unflatten(
        self, tensors: list[Tensor] | tuple[Tensor, ...], leaves: list[Any], sizes: Mapping[sympy.Symbol, int]
    ) -> Any:
        """The model's result from the graph's outputs, the leaves of the call and the sizes of its symbols."""

        given: set[int] = set()

        def value(spec: OutputSpec) -> Any:
            if spec.kind == "tensor":
                again = spec.index in given  # two results that are always equal need not be one tensor in the model
                given.add(spec.index)
                return tensors[spec.index].clone() if again else tensors[spec.index]
            if spec.kind == "input":
                return leaves[spec.index]
            return spec.value if spec.dim is None else substitute(spec.dim, sizes)

        return pytree.tree_unflatten([value(spec) for spec in self.outputs], self.out_spec)


def describe(spec: pytree.TreeSpec) -> str:
    """A tree of arguments in a line, ``*`` for each leaf."""
    try:
        tree = pytree.tree_unflatten(["*"] * spec.num_leaves, spec)
    except Exception:  # a class that is made of tensors alone, as PackedSequence
        return str(spec)
    return str(tree).replace("'*'", "*")


def signature_of(model: Callable[..., Any]) -> inspect.Signature | None:
    """The signature a call is bound to; None for a callable that does not tell."""
    try:
        return inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)
    except (TypeError, ValueError):
        return None


def normal_form(
    signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One form for all calls that mean the same: arguments by name in the signature's order, defaults left out.

    Only positional-only parameters, and those before a non-empty ``*args``, stay positional.

    Raises:
        InputError: the arguments do not fit the signature.
    """
    if signature is None:
        return tuple(args), dict(kwargs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the arguments do not fit the model: {error}") from None
    parameters = signature.parameters
    variadic = next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL and bound.arguments.get(n)), None)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    before = variadic is not None
    for name, value in bound.arguments.items():
        parameter = parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.extend(value)
            before = False
        elif parameter.kind is parameter.VAR_KEYWORD:
            named.update(sorted(value.items()))
        elif before or parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(value)
        elif not _is_default(value, parameter.default):
            named[name] = value
    return tuple(positional), named


def _is_default(value: Any, default: Any) -> bool:
    """Whether an argument is what the parameter has anyway: the same object, or an equal constant of the same type."""
    if value is default:
        return True
    if type(value) is not type(default):
        return False
    if type(value) is tuple:
        return len(value) == len(default) and all(map(_is_default, value, default))
    if type(value) is float:
        return bool(value.hex() == default.hex())  # 0.0 is not -0.0
    return type(value) in _COMPARABLE and bool(value == default)


_COMPARABLE = (bool, int, str, torch.dtype, torch.device)
