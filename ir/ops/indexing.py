"""Operators addressed by values: gather and scatter."""

from __future__ import annotations

from typing import Any

import torch

from ..node import REQUIRED, Trait
from ..types import Dim, TensorType, broadcast_shapes, canonical_dim
from .base import axis, declare, is_integer, per_element, require, require_dtype, same_dtype


def _check_indices(name: str, indices: tuple[TensorType, ...]) -> None:
    for i in indices:
        require_dtype(f"{name} by an index", i, is_integer)


def _no_longer(name: str, i: TensorType, x: TensorType, *, but: int | None = None) -> None:
    """An index may not reach past what it picks from, on the axes along which it does not choose."""
    for d, (have, want) in enumerate(zip(x.shape, i.shape, strict=True)):
        known = isinstance(have, int) and isinstance(want, int)
        require(d == but or not known or want <= have, f"{name}: index {i} is longer than {x} along axis {d}")


def _index_type(x: TensorType, *indices: TensorType, dim: int, wrap: bool) -> TensorType:
    _check_indices("index", indices)
    require(dim + len(indices) <= x.rank, f"index: {len(indices)} indices from axis {dim} of {x}")
    picked = broadcast_shapes(*(i.shape for i in indices))
    return x.with_shape((*x.shape[:dim], *picked, *x.shape[dim + len(indices) :]))


def _check_range(index: torch.Tensor, size: int, wrap: bool) -> None:
    low = -size if wrap else 0
    if index.numel() and (int(index.min()) < low or int(index.max()) >= size):
        raise IndexError(f"index out of range: an index is outside [{low}, {size})")


def _check_ranges(x: torch.Tensor, indices: tuple[torch.Tensor, ...], dim: int, wrap: bool) -> None:
    """Check the indices of some axes: only where there is anything else to pick, as eager does."""
    if 0 not in (*x.shape[:dim], *x.shape[dim + len(indices) :]):
        for offset, i in enumerate(indices):
            _check_range(i, x.shape[dim + offset], wrap)


def _index(x: torch.Tensor, *indices: torch.Tensor, dim: int, wrap: bool) -> torch.Tensor:
    _check_ranges(x, indices, dim, wrap)
    return x[(slice(None),) * dim + tuple(i.long() for i in indices)]


# index(x, i, j, dim=d): the broadcast indices replace axes d, d+1, ...; with wrap, negative ones count from the end.
# An index out of range raises IndexError.
index = declare(
    "index",
    infer=_index_type,
    evaluate=_index,
    arity=(2, None),
    attrs={"dim": 0, "wrap": True},
    traits={Trait.GATHER},
    normalise=lambda x, *_, dim, wrap: {"dim": axis(dim, x.rank)},
)


def _gather_type(x: TensorType, i: TensorType, *, dim: int) -> TensorType:
    _check_indices("gather", (i,))
    require(i.rank == x.rank, f"gather: index {i} and {x} differ in rank")
    _no_longer("gather", i, x, but=dim)
    return x.with_shape(i.shape)


def _gather(x: torch.Tensor, i: torch.Tensor, *, dim: int) -> torch.Tensor:
    if x.ndim:
        _check_range(i, x.shape[dim], wrap=False)
    return torch.gather(x, dim, i.long())


# gather(x, i, dim=1)[a, b] = x[a, i[a, b]]
gather = declare(
    "gather",
    infer=_gather_type,
    evaluate=_gather,
    arity=(2, 2),
    attrs={"dim": REQUIRED},
    traits={Trait.GATHER},
    normalise=lambda x, i, *, dim: {"dim": axis(dim, x.rank)},
)


def _index_put_type(x: TensorType, value: TensorType, *indices: TensorType, dim: int, accumulate: bool) -> TensorType:
    _check_indices("index_put", indices)
    same_dtype("index_put", (x, value))
    target = _index_type(x, *indices, dim=dim, wrap=True)
    require(broadcast_shapes(target.shape, value.shape) == target.shape, f"index_put: {value} does not fit {target}")
    return x


def _index_put(
    x: torch.Tensor, value: torch.Tensor, *indices: torch.Tensor, dim: int, accumulate: bool
) -> torch.Tensor:
    _check_ranges(x, indices, dim, wrap=True)
    picks: list[Any] = [torch.arange(n, device=x.device) for n in x.shape[:dim]]
    rank = max(i.ndim for i in indices)
    picks = [p.reshape(-1, *([1] * (len(picks) - 1 - n + rank))) for n, p in enumerate(picks)]
    return x.index_put((*picks, *(i.long() for i in indices)), value, accumulate)


# a copy of x with x[..., i, j] = value (or += with accumulate); repeated indices: the last one wins
index_put = declare(
    "index_put",
    infer=_index_put_type,
    evaluate=_index_put,
    arity=(3, None),
    attrs={"dim": 0, "accumulate": False},
    traits={Trait.SCATTER},
    normalise=lambda x, *_, dim, accumulate: {"dim": axis(dim, x.rank)},
)


def _scatter_type(x: TensorType, i: TensorType, src: TensorType, *, dim: int, reduce: str) -> TensorType:
    _check_indices("scatter", (i,))
    require(i.rank == x.rank == src.rank, f"scatter: {x}, {i} and {src} differ in rank")
    require(reduce in ("none", "add"), f"scatter: unknown reduce {reduce!r}")
    same_dtype("scatter", (x, src))
    _no_longer("scatter", i, src)
    _no_longer("scatter", i, x, but=dim)
    return x


def _scatter(x: torch.Tensor, i: torch.Tensor, src: torch.Tensor, *, dim: int, reduce: str) -> torch.Tensor:
    if x.ndim:
        _check_range(i, x.shape[dim], wrap=False)
    return x.scatter(dim, i.long(), src) if reduce == "none" else x.scatter_add(dim, i.long(), src)


# a copy of x with x[a, i[a, b]] = src[a, b] (or +=) for dim=1
scatter = declare(
    "scatter",
    infer=_scatter_type,
    evaluate=_scatter,
    arity=(3, 3),
    attrs={"dim": REQUIRED, "reduce": "none"},
    traits={Trait.SCATTER},
    flops=per_element(1),
    normalise=lambda x, i, src, *, dim, reduce: {"dim": axis(dim, x.rank)},
)


def _slice_put_type(x: TensorType, src: TensorType, *, dim: int, start: Dim, step: int) -> TensorType:
    same_dtype("slice_put", (x, src))
    require(x.rank > 0 and isinstance(step, int) and step > 0, f"slice_put: into {x} in steps of {step}")
    others = x.rank == src.rank and all(
        a == b for i, (a, b) in enumerate(zip(x.shape, src.shape, strict=True)) if i != dim
    )
    require(others, f"slice_put: {src} does not fit {x} outside axis {dim}")
    # 0 <= start, and the last element written is inside, as far as it can be told
    for gap in (start, x.shape[dim] - start - (src.shape[dim] - 1) * step - 1):
        short = canonical_dim(gap)
        require(not isinstance(short, int) or short >= 0, f"slice_put: {src} at {start} does not fit {x}")
    return x


def _slice_put(x: torch.Tensor, src: torch.Tensor, *, dim: int, start: int, step: int) -> torch.Tensor:
    out = x.clone()
    where = [slice(None)] * x.ndim
    where[dim] = slice(start, start + step * src.shape[dim], step)
    out[tuple(where)] = src
    return out


# a copy of x with x[start : start + step * len(src) : step] = src along an axis
slice_put = declare(
    "slice_put",
    infer=_slice_put_type,
    evaluate=_slice_put,
    arity=(2, 2),
    attrs={"dim": REQUIRED, "start": 0, "step": 1},
    traits={Trait.SCATTER},
    normalise=lambda x, src, *, dim, **_: {"dim": axis(dim, x.rank)},
)
