"""The arguments of a call: their leaves, their names, and the examples that stand for them while a model is traced."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..ir.errors import CaptureError, InputError
from ..ir.types import symbol
from .capture import InputSpec

Dynamic = bool | Mapping[str, Mapping[int, str]]

# Stands for a dim of 0 or 1 while a model is traced: a size that nothing is special about.
ENLARGED = 3

# what a call must repeat: never anything that may hold a tensor
CONSTANTS = (
    bool, int, float, complex, str, slice, range, type(...), enum.Enum,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """One leaf of the arguments.

    Attributes:
        name: its path in the call.
        value: what the caller gave.
        axes: for a tensor, the axes to keep symbolic, with the name of the size or "".
        size: for an integer argument that is a size, its name; ``value`` is then a tensor of that length, which stands
            for it while the model is traced.
        strides: of the first call, where every call repeats them: themselves, or their order where sizes are symbolic.
    """

    name: str
    value: Any
    axes: Mapping[int, str] = field(default_factory=dict)
    size: str = ""
    strides: tuple[int, ...] | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether the exported module takes it."""
        return isinstance(self.value, Tensor)

    def spec(self) -> InputSpec:
        """How calls are checked against this leaf."""
        if self.size:
            return InputSpec(self.name, "symbol", dim=symbol(self.size))
        return InputSpec(self.name, "tensor") if self.is_tensor else InputSpec(self.name, "constant", self.value)


def traced(leaves: Sequence[Leaf]) -> list[Leaf]:
    """The leaves that the exported module takes, in order."""
    return [leaf for leaf in leaves if leaf.is_tensor]


def leaves_of(
    signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic
) -> tuple[tuple[Leaf, ...], pytree.TreeSpec]:
    """The leaves of arguments in normal form, and their tree.

    Raises:
        CaptureError: a leaf is of a type that cannot be captured.
        InputError: ``dynamic`` names what is not there, which is no reason to run the model in PyTorch instead.
    """
    paths, spec = pytree.tree_flatten_with_path((args, dict(kwargs)))
    names = _positional_names(signature, len(args))
    leaves = []
    for path, value in paths:
        name = _name(path, names)
        if value is not None and not isinstance(value, (Tensor, *CONSTANTS)):
            raise CaptureError(
                f"argument {name} is a {type(value).__name__}: pass tensors, numbers, strings, None and containers of "
                "them, or register the type with torch.utils._pytree.register_pytree_node"
            )
        leaves.append(Leaf(name, value, _symbolic_axes(name, value, dynamic)))
    _check_names(dynamic, leaves, signature)
    return tuple(leaves), spec


def _positional_names(signature: inspect.Signature | None, count: int) -> list[str]:
    """The names of the positional arguments."""
    names: list[str] = []
    for name, parameter in (signature.parameters if signature else {}).items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names.extend(f"{name}[{i}]" for i in range(count - len(names)))
        elif parameter.kind is not parameter.VAR_KEYWORD:
            names.append(name)
    return [*names, *(f"args[{i}]" for i in range(len(names), count))][:count]


def _name(path: tuple[Any, ...], positional: list[str]) -> str:
    side, first, *rest = path
    head = positional[first.idx] if side.idx == 0 else str(first.key)
    return head + "".join(f'["{key.key}"]' if isinstance(getattr(key, "key", None), str) else str(key) for key in rest)


def _symbolic_axes(name: str, value: Any, dynamic: Dynamic) -> dict[int, str]:
    if not isinstance(value, Tensor) or dynamic is False:
        return {}
    if dynamic is True:
        return dict.fromkeys(range(value.ndim), "")
    named = dynamic.get(name, {})
    if any(not -value.ndim <= axis < value.ndim for axis in named):
        raise InputError(f"dynamic: argument {name} has rank {value.ndim}, axes {sorted(named)} are named")
    return {axis % value.ndim: size for axis, size in named.items()}


def _check_names(dynamic: Dynamic, leaves: list[Leaf], signature: inspect.Signature | None) -> None:
    """That every name is a leaf's, or that of a parameter which this call leaves out."""
    if isinstance(dynamic, bool):
        return
    given = {_head(leaf.name) for leaf in leaves}
    parameters = signature.parameters.values() if signature else ()
    left_out = {known.name for known in parameters if known.kind is not known.VAR_KEYWORD} - given
    unknown = {name for name in dynamic.keys() - {leaf.name for leaf in leaves} if _head(name) not in left_out}
    if unknown:
        raise InputError(
            f"dynamic names {', '.join(sorted(unknown))}, which the call does not have: it has "
            f"{', '.join(leaf.name for leaf in leaves)}"
        )


def _head(name: str) -> str:
    """The argument that a leaf is part of."""
    return re.split(r"[\[.]", name, maxsplit=1)[0]


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A way to make symbolic sizes.

    PyTorch decides by the example whether a dim broadcasts, so an example of 0 or 1 tells it too little: such dims are
    enlarged, or else fixed.

    Attributes:
        described: for the report.
        enlarged: how many leading axes have small dims enlarged; None for all.
        symbolic: how many leading axes may be symbolic; None for all.
    """

    described: str
    enlarged: int | None
    symbolic: int | None = None

    def example_of(self, leaf: Leaf) -> Tensor:
        """What stands for a tensor while the model is traced.

        Only types matter then, so it is a fresh one that shares no memory: contiguous, unless strides are known.
        """
        value: Tensor = leaf.value
        shape = list(value.shape)
        symbolic = []
        for axis in leaf.axes:
            if self.symbolic is not None and axis >= self.symbolic:
                continue
            if shape[axis] >= 2 or self.enlarged is None or axis < self.enlarged:
                shape[axis] = shape[axis] if shape[axis] >= 2 else ENLARGED
                symbolic.append(axis)
        example = torch.empty_strided(shape, _strides(shape, leaf), dtype=value.dtype, device=value.device)
        for axis in symbolic:
            # what Dim.AUTO in torch.export's dynamic_shapes does
            torch._dynamo.maybe_mark_dynamic(example, axis)
        return example


def _strides(shape: Sequence[int], leaf: Leaf) -> list[int]:
    """The strides of an example: row-major, unless the leaf says otherwise."""
    order = list(range(len(shape)))
    if leaf.strides is not None:
        if list(shape) == list(leaf.value.shape) and not leaf.axes:
            return list(leaf.strides)
        order.sort(key=lambda axis: -leaf.strides[axis] if leaf.strides else 0)
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], step = step, step * max(shape[axis], 1)
    return strides


def attempts(leaves: Sequence[Leaf]) -> list[Attempt]:
    """The ways to try in order, the most general one first."""
    small = [axis for leaf in leaves for axis in leaf.axes if leaf.value.shape[axis] < 2]
    ways = [Attempt("all sizes symbolic", None)]
    if any(axis > 0 for axis in small):
        ways.append(Attempt("sizes of 0 and 1 fixed but for the first axes", 1))
    if small:
        ways.append(Attempt("sizes of 0 and 1 fixed", 0))
    axes = {axis for leaf in leaves for axis in leaf.axes}
    if 0 in axes and len(axes) > 1:
        ways.append(Attempt("all sizes fixed but for the first axes", 1, symbolic=1))
    if axes:
        ways.append(Attempt("all sizes fixed", 0, symbolic=0))
    return ways


class Flattened(nn.Module):
    """A model as a module of its tensor arguments alone, in the order of the leaves; ``model`` is a part of it.

    Constants are bound, so that an argument may be of any type that a model understands.
    """

    PREFIX = "model"

    def __init__(self, model: Callable[..., Any], leaves: Sequence[Leaf], spec: pytree.TreeSpec) -> None:
        super().__init__()
        owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
        if isinstance(owner, nn.Module):
            self.model = owner
        self._call = [model]  # in a list, so that a module is not registered twice
        self._leaves = leaves
        self._spec = spec
        self.training = False

    def forward(self, *tensors: Tensor) -> Any:
        """Call the model with the captured arguments, these tensors in their places."""
        given = iter(tensors)
        values = [next(given) if leaf.is_tensor else leaf.value for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(values, self._spec)
        return self._call[0](*args, **kwargs)
