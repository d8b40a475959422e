"""Samples: what a rule is tried on, in half a line: ``shapes("m n", "n", dim=-1)``.

One text for each operand of a rule, in the order of its variables, and one keyword for each attribute. A text holds the
dims, and before a colon what kind of operand it is:

    "m n"            an input of shape [m, n] of any float dtype, the same one for all operands
    "int: m 1 2*H"   of an integer dtype; "bool", "any" and dtype names such as "bf16" likewise
    "weight: K N"    a weight instead of an input

Dims in lower case may become symbolic, those with a capital are numbers in every model. An attribute may be a function
of dims: ``shape=lambda m, n: (m * n,)``; so may an operand, where it has to be a node of some kind.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..ir import ops
from ..ir.node import WILDCARD, Node, OpDef
from ..ir.types import DTYPES, Dim, canonical_dim
from .pattern import REST

# The dtypes that each word stands for; a dtype's own name stands for itself.
DTYPE_CLASSES: Mapping[str, tuple[torch.dtype, ...]] = {
    "float": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "int": (torch.int64, torch.int32),
    "bool": (torch.bool,),
    "any": (torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.float64, torch.int32),
} | {name: (dtype,) for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Operand:
    """One operand of a sample: an input or a weight, the word for its dtype, and its dims as text."""

    op: OpDef
    dtype: str
    dims: tuple[str, ...]

    def node(self, name: str, sizes: Mapping[str, Dim], dtypes: Mapping[str, torch.dtype]) -> Node:
        """The node of this operand for given sizes and dtypes."""
        shape = tuple(_dim(text, sizes) for text in self.dims)
        return self.op(name=name, shape=shape, dtype=dtypes[self.dtype])


@dataclass(frozen=True)
class Sample:
    """Operands and attributes for the variables of a rule."""

    operands: tuple[Operand | Callable[..., Node], ...]
    attrs: Mapping[str, Any]

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the dims, each once."""
        named = [name for operand in self.operands for name in _dims_of(operand)]
        used = [name for value in self.attrs.values() for name in _parameters(value)]
        return tuple(dict.fromkeys([*named, *used]))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The words for dtypes, each once: keys of ``DTYPE_CLASSES``."""
        return tuple(dict.fromkeys(operand.dtype for operand in self.operands if isinstance(operand, Operand)))

    def bindings(
        self, variables: Mapping[str, OpDef | None], sizes: Mapping[str, Dim], dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Any]:
        """What each variable of a pattern stands for in this sample."""
        names = _operand_names(variables)
        nodes = [
            operand.node(name, sizes, dtypes) if isinstance(operand, Operand) else _call(operand, sizes)
            for operand, name in zip(self.operands, names, strict=False)
        ]
        attrs = {name: self.attrs[name] for name, kind in variables.items() if kind is None}
        bound = {name: _call(v, sizes) if inspect.isfunction(v) else v for name, v in attrs.items()}
        single = [name for name, kind in variables.items() if kind is WILDCARD]
        bound.update(zip(single, nodes, strict=False))
        bound.update({name: tuple(nodes[len(single) :]) for name, kind in variables.items() if kind is REST})
        return bound


def shapes(*operands: str | Callable[..., Node], **attrs: Any) -> Sample:
    """The sample with these operands and attributes; see the module for how they are written."""
    return Sample(tuple(_operand(x) if isinstance(x, str) else x for x in operands), attrs)


def _operand(text: str) -> Operand:
    kind, colon, dims = text.rpartition(":")
    words = kind.split() if colon else []
    op = ops.weight if "weight" in words else ops.input
    dtypes = [word for word in words if word != "weight"] or ["float"]
    if len(dtypes) > 1 or dtypes[0] not in DTYPE_CLASSES:
        raise ValueError(f"{text!r}: {kind!r} is not a kind of operand")
    return Operand(op, dtypes[0], tuple(dims.split()))


def _dim(text: str, sizes: Mapping[str, Dim]) -> Dim:
    return canonical_dim(prod(int(part) if part.isdigit() else sizes[part] for part in text.split("*")))


def _dims_of(operand: Operand | Callable[..., Node]) -> list[str]:
    if not isinstance(operand, Operand):
        return list(_parameters(operand))
    return [name for text in operand.dims for name in text.split("*") if not name.isdigit()]


def _call(function: Callable[..., Any], sizes: Mapping[str, Dim]) -> Any:
    """Call a function with the dims that its parameters name."""
    return function(*(sizes[name] for name in _parameters(function)))


def _parameters(value: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(value).parameters) if inspect.isfunction(value) else ()


def _operand_names(variables: Mapping[str, OpDef | None]) -> Iterator[str]:
    """A name for each operand: the variable's, and numbered ones for the operands that are left."""
    yield from (name for name, kind in variables.items() if kind is WILDCARD)
    rests = [name for name, kind in variables.items() if kind is REST]
    yield from (f"{rests[0] if rests else 'x'}{i}" for i in itertools.count())
