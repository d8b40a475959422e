"""Values as JSON and back: constants, conditions on sizes, trees of arguments, tensors. What has no form raises."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ...ir.dims import normal_form, print_dim
from ...ir.parse import parse_dim
from ...ir.types import DTYPE_NAMES, DTYPES, Dim

Symbols = Iterable[sympy.Symbol]
MOST_BYTES = 16 << 20  # of a constant tensor

_RELATIONS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        sympy.Eq,
        sympy.Ne,
        sympy.StrictLessThan,
        sympy.LessThan,
        sympy.StrictGreaterThan,
        sympy.GreaterThan,
    )
}
_CONNECTIVES: dict[str, Any] = {"And": sympy.And, "Or": sympy.Or, "Not": sympy.Not}


class NoForm(Exception):
    """A value that cannot be kept; the message says which."""


def constant_data(value: Any) -> Any:
    """A constant: None, a number, a string, a dtype or a device, or a tuple of such."""
    return {"tuple": [_single_data(item) for item in value]} if type(value) is tuple else _single_data(value)


def constant_of(data: Any) -> Any:
    """The constant that :func:`constant_data` wrote."""
    if isinstance(data, dict) and list(data) == ["tuple"]:
        return tuple(map(_single_of, data["tuple"]))
    return _single_of(data)


def _single_data(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, torch.dtype) and value in DTYPE_NAMES:
        return {"dtype": DTYPE_NAMES[value]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise NoForm(f"the constant {value!r} is a {type(value).__name__}")


def _single_of(data: Any) -> Any:
    if data is None or type(data) in (bool, int, str):
        return data
    ((kind, text),) = data.items()
    read: dict[str, Any] = {"float": float.fromhex, "dtype": DTYPES.__getitem__, "device": torch.device}
    return read[kind](text)


def dim_data(dim: Dim | None) -> Any:
    """A size; None for none."""
    return dim if dim is None or isinstance(dim, int) else print_dim(dim)


def dim_of(data: Any, symbols: Symbols) -> Any:
    """The size that :func:`dim_data` wrote."""
    return parse_dim(data, symbols) if isinstance(data, str) else data


def condition_data(condition: Any) -> Any:
    """A condition on sizes."""
    name = type(condition).__name__
    if name in _RELATIONS:
        return [name, *(dim_data(normal_form(side)) for side in condition.args)]
    if name in _CONNECTIVES:
        return [name, *map(condition_data, condition.args)]
    raise NoForm(f"the condition {condition} is a {name}")


def condition_of(data: Any, symbols: Symbols) -> Any:
    """The condition that :func:`condition_data` wrote."""
    name, *parts = data
    if name in _RELATIONS:
        return _RELATIONS[name](*(dim_of(part, symbols) for part in parts))
    return _CONNECTIVES[name](*(condition_of(part, symbols) for part in parts))


def tree_data(spec: pytree.TreeSpec) -> str:
    """A tree of arguments or results, as PyTorch writes it."""
    try:
        text = pytree.treespec_dumps(spec)
        same = pytree.treespec_loads(text) == spec
    except Exception as error:  # whatever a registered type's own functions raise
        raise NoForm(f"the tree {spec} has no text: {error}") from error
    if not same:
        raise NoForm(f"the tree {spec} is not read back")
    return text


def tree_of(text: str) -> pytree.TreeSpec:
    """The tree that :func:`tree_data` wrote."""
    return pytree.treespec_loads(text)


def tensor_data(tensor: Tensor) -> Any:
    """A tensor with its values."""
    if tensor.nbytes > MOST_BYTES or tensor.dtype not in DTYPE_NAMES or tensor.layout is not torch.strided:
        raise NoForm(f"a constant of {tensor.nbytes} bytes, {tensor.dtype}")
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    values = base64.b64encode(flat.numpy().tobytes()).decode("ascii")
    return {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "values": values}


def tensor_of(data: Any) -> Tensor:
    """The tensor that :func:`tensor_data` wrote."""
    raw = bytearray(base64.b64decode(data["values"], validate=True))
    dtype, shape = DTYPES[data["dtype"]], data["shape"]
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).clone().view(dtype).reshape(shape)
