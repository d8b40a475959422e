"""The arguments of a call: their leaves, their names, and the examples that stand for them while a model is traced."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..ir.errors import CaptureError
from .capture import InputSpec

Dynamic = bool | Mapping[str, Mapping[int, str]]

# Stands for a dim of 0 or 1 while a model is traced: a size that nothing is special about.
ENLARGED = 3


@dataclass(frozen=True)
class Leaf:
    """One leaf of the arguments.

    Attributes:
        name: its path in the call.
        value: what the caller gave.
        axes: for a tensor, the axes to keep symbolic, with the name of the size or "".
    """

    name: str
    value: Any
    axes: Mapping[int, str]

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.value, Tensor)

    def spec(self) -> InputSpec:
        """How calls are checked against this leaf."""
        return InputSpec(self.name, "tensor") if self.is_tensor else InputSpec(self.name, "constant", self.value)


def leaves_of(
    signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic
) -> tuple[tuple[Leaf, ...], pytree.TreeSpec]:
    """The leaves of arguments in normal form, and their tree.

    Raises:
        CaptureError: a leaf is of a type that cannot be captured, or ``dynamic`` names what is not there.
    """
    paths, spec = pytree.tree_flatten_with_path((args, dict(kwargs)))
    names = _positional_names(signature, len(args))
    leaves = []
    for path, value in paths:
        name = _name(path, names)
        if not (value is None or isinstance(value, Tensor | bool | int | float | complex | str | torch.dtype | torch.device)):
            raise CaptureError(
                f"argument {name} is a {type(value).__name__}: pass tensors, numbers, strings, None and containers of "
                "them, or register the type with torch.utils._pytree.register_pytree_node"
            )
        leaves.append(Leaf(name, value, _symbolic_axes(name, value, dynamic)))
    _check_names(dynamic, leaves)
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
    named = {axis % max(value.ndim, 1): size for axis, size in dynamic.get(name, {}).items()}
    if any(axis >= value.ndim for axis in dynamic.get(name, {})):
        raise CaptureError(f"dynamic: argument {name} has rank {value.ndim}, axes {sorted(dynamic[name])} are named")
    return named


def _check_names(dynamic: Dynamic, leaves: list[Leaf]) -> None:
    if isinstance(dynamic, bool):
        return
    unknown = dynamic.keys() - {leaf.name for leaf in leaves}
    if unknown:
        raise CaptureError(
            f"dynamic names {', '.join(sorted(unknown))}, which the call does not have: it has "
            f"{', '.join(leaf.name for leaf in leaves)}"
        )


def example_of(leaf: Leaf, enlarge: bool | int) -> Any:
    """What stands for a leaf while the model is traced.

    Only types matter then, so a tensor is replaced by a fresh one: contiguous, sharing memory with no other, and with
    dims of 0 and 1 enlarged, on all symbolic axes or on the first ones only. PyTorch decides by the example whether a
    dim broadcasts, so a dim of 1 tells it too little.
    """
    if not leaf.is_tensor:
        return leaf.value
    value: Tensor = leaf.value
    shape = list(value.shape)
    for axis in leaf.axes:
        if shape[axis] < 2 and (enlarge is True or (enlarge is not False and axis < enlarge)):
            shape[axis] = ENLARGED
    return torch.empty(shape, dtype=value.dtype, device=value.device)


def enlargements(leaves: tuple[Leaf, ...]) -> list[bool | int]:
    """The ways to enlarge small dims, the most general one first: all, those of the first axes, none."""
    small = [axis for leaf in leaves for axis in leaf.axes if leaf.value.shape[axis] < 2]
    if not small:
        return [False]
    return [True, 1, False] if any(axis > 0 for axis in small) else [True, False]
