"""Operators that move or readdress elements without computing: views, concatenation, padding."""

from __future__ import annotations

from typing import Any

import torch

from ..node import REQUIRED, Node, Trait
from ..types import Dim, Shape, TensorType, broadcast_dims, canonical_dim, differ, product
from .base import axes, axis, declare, number, require, same_dtype


def _reshape_type(x: TensorType, *, shape: Shape) -> TensorType:
    require(not differ(product(shape), x.numel), f"reshape: {x} has not the elements of {list(shape)}")
    return x.with_shape(shape)


# elements in row-major order are unchanged. Where it rests on a division whether the numbers of elements are equal,
# 2 * (s // 2) and s, they are taken to be: whoever captured the model has proved it
reshape = declare(
    "reshape",
    infer=_reshape_type,
    evaluate=lambda x, *, shape: x.reshape(shape),
    attrs={"shape": REQUIRED},
    traits={Trait.VIEW},
)


def _permute_type(x: TensorType, *, dims: tuple[int, ...]) -> TensorType:
    require(sorted(dims) == list(range(x.rank)), f"permute: {dims} is no permutation of the axes of {x}")
    return x.with_shape(x.shape[d] for d in dims)


permute = declare(
    "permute",
    infer=_permute_type,
    evaluate=lambda x, *, dims: x.permute(dims),
    attrs={"dims": REQUIRED},
    traits={Trait.VIEW},
    normalise=lambda x, *, dims: {"dims": tuple(axis(d, x.rank) for d in dims)},
)


def _expand_type(x: TensorType, *, shape: Shape) -> TensorType:
    offset = len(shape) - x.rank
    require(offset >= 0, f"expand: {x} to a lower rank {list(shape)}")
    for have, want in zip(x.shape, shape[offset:], strict=True):
        require(broadcast_dims(have, want) == want, f"expand: {x} does not expand to {list(shape)}")
    return x.with_shape(shape)


expand = declare(
    "expand",
    infer=_expand_type,
    evaluate=lambda x, *, shape: x.expand(shape),
    attrs={"shape": REQUIRED},
    traits={Trait.VIEW},
)


def _slice_type(x: TensorType, *, dim: int, start: Dim, stop: Dim, step: int) -> TensorType:
    require(x.rank > 0 and isinstance(step, int) and step > 0, f"slice: of {x} in steps of {step}")
    # 0 <= start <= stop <= size, as far as it can be told
    for gap in (start, stop - start, x.shape[dim] - stop):
        short = canonical_dim(gap)
        require(not isinstance(short, int) or short >= 0, f"slice: [{start}:{stop}:{step}] of {x} is out of range")
    length = canonical_dim((stop - start + step - 1) // step)
    return x.with_shape(length if i == dim else d for i, d in enumerate(x.shape))


def _slice(x: torch.Tensor, *, dim: int, start: int, stop: int, step: int) -> torch.Tensor:
    index = [slice(None)] * x.ndim
    index[dim] = slice(start, stop, step)
    return x[tuple(index)]


# 0 <= start <= stop <= size: the frontend clamps
slice_ = declare(
    "slice",
    infer=_slice_type,
    evaluate=_slice,
    attrs={"dim": REQUIRED, "start": 0, "stop": REQUIRED, "step": 1},
    traits={Trait.VIEW},
    normalise=lambda x, *, dim, **_: {"dim": axis(dim, x.rank)},
)


def _windows_type(x: TensorType, *, dim: int, size: int, step: int, apart: int, count: Dim) -> TensorType:
    numbers = all(isinstance(n, int) and n > 0 for n in (size, step, apart))
    require(x.rank > 0 and numbers, f"windows: {size} elements {apart} apart, in steps of {step}, of {x}")
    known = canonical_dim(count)
    require(not isinstance(known, int) or known >= 0, f"windows: {count} of them")
    spare = canonical_dim(x.shape[dim] - (count - 1) * step - (size - 1) * apart - 1)
    past_end = isinstance(spare, int) and spare < 0 and known != 0
    require(not past_end, f"windows: {count} of {size} elements {apart} apart, in steps of {step}, end after {x}")
    return x.with_shape((*x.shape[:dim], known, size, *x.shape[dim + 1 :]))


def _windows(x: torch.Tensor, *, dim: int, size: int, step: int, apart: int, count: int) -> torch.Tensor:
    first, within = (torch.arange(n, device=x.device) for n in (count, size))
    places = first[:, None] * step + within * apart
    return x.index_select(dim, places.flatten()).reshape(*x.shape[:dim], count, size, *x.shape[dim + 1 :])


# what each of ``count`` places of a sliding window sees along an axis: element j of window i is element
# i * step + j * apart of the axis, which becomes the two axes (i, j). Windows may overlap
windows = declare(
    "windows",
    infer=_windows_type,
    evaluate=_windows,
    attrs={"dim": REQUIRED, "size": REQUIRED, "step": 1, "apart": 1, "count": REQUIRED},
    traits={Trait.VIEW},
    normalise=lambda x, *, dim, size, apart, **_: {"dim": axis(dim, x.rank), "apart": 1 if size == 1 else apart},
)

flip = declare(
    "flip",
    infer=lambda x, *, dims: x,
    evaluate=lambda x, *, dims: x.flip(dims),
    attrs={"dims": REQUIRED},
    traits={Trait.VIEW},
    normalise=lambda x, *, dims: {"dims": axes(dims, x.rank)},
)


def _concat_type(*types: TensorType, dim: int) -> TensorType:
    first = types[0]
    require(first.rank > 0, f"concat: needs an axis, got {first}")
    for t in types[1:]:
        others_equal = t.rank == first.rank and all(
            a == b for i, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if i != dim
        )
        require(others_equal, f"concat: {first} and {t} differ outside axis {dim}")
    total = canonical_dim(sum((t.shape[dim] for t in types), 0))
    return TensorType(tuple(total if i == dim else d for i, d in enumerate(first.shape)), same_dtype("concat", types))


concat = declare(
    "concat",
    infer=_concat_type,
    evaluate=lambda *xs, dim: torch.cat(xs, dim),
    arity=(1, None),
    attrs={"dim": REQUIRED},
    traits={Trait.CONCAT},
    normalise=lambda x, *_, dim: {"dim": axis(dim, x.rank)},
)


def _pad_type(x: TensorType, *, low: Shape, high: Shape, value: Any) -> TensorType:
    require(len(low) == len(high) == x.rank, f"pad: {x} needs {x.rank} widths on each side")
    return x.with_shape(canonical_dim(lo + d + hi) for lo, d, hi in zip(low, x.shape, high, strict=True))


def _pad(x: torch.Tensor, *, low: tuple[int, ...], high: tuple[int, ...], value: Any) -> torch.Tensor:
    widths = [w for lo, hi in zip(reversed(low), reversed(high), strict=True) for w in (lo, hi)]
    return torch.nn.functional.pad(x, widths, value=value)


# constant padding, a width before and after each axis; a negative width crops
pad = declare(
    "pad",
    infer=_pad_type,
    evaluate=_pad,
    attrs={"low": REQUIRED, "high": REQUIRED, "value": 0},
    traits={Trait.CONCAT},
    normalise=lambda x, *, low, high, value: {"value": number(value, x.dtype)},
)


def transpose(x: Node, first: int, second: int) -> Node:
    """Swap two axes: a ``permute``."""
    rank = x.tensor_type.rank
    order = list(range(rank))
    a, b = axis(first, rank), axis(second, rank)
    order[a], order[b] = order[b], order[a]
    return permute(x, dims=tuple(order))


def unsqueeze(x: Node, dim: int) -> Node:
    """Insert an axis of size 1: a ``reshape``."""
    at = axis(dim, x.tensor_type.rank + 1)
    return reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))
