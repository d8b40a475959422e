"""Lowerings of ATen's operators that move or readdress elements."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.dims import normal_form
from ..ir.node import Node
from ..ir.ops.base import axis
from ..ir.types import Dim, Shape
from .sizes import Sizes
from .table import Call, NeedsFixed, NotLowered, Scalar, cast, expand, full, lowers, permute, plain, reshape


@lowers(
    "view.default", "reshape.default", "_unsafe_view.default", "_reshape_alias.default", "_reshape_copy.default",
    "flatten.using_ints", "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default",
    "atleast_1d.default", "atleast_2d.default", "atleast_3d.default", "view_as.default", "reshape_as.default",
    "ravel.default", "view_copy.default", "squeeze_copy.dims", "unsqueeze_copy.default",
)  # fmt: skip
def _to_shape(call: Call, x: Node, *_: Any, **__: Any) -> Node:
    return reshape(x, call.shape)


@lowers("view.dtype")
def _view_dtype(call: Call, x: Node, dtype: Any) -> Node:
    if x.dtype != dtype:
        raise NotLowered("elements read as another dtype")
    return x


@lowers("expand.default", "expand_as.default", "broadcast_to.default", "expand_copy.default")
def _expand(call: Call, x: Node, *_: Any, **__: Any) -> Node:
    return expand(x, call.shape)


@lowers("broadcast_tensors.default", "meshgrid.default", "meshgrid.indexing")
def _expand_all(call: Call, xs: Sequence[Node], *, indexing: str = "ij") -> tuple[Node, ...]:
    if call.name.startswith("aten.broadcast"):
        return tuple(expand(x, t.shape) for x, t in zip(xs, call.types, strict=True))
    order = list(range(len(xs)))
    if indexing == "xy" and len(xs) > 1:
        order[0], order[1] = 1, 0
    grids = []
    for x, at, type_ in zip(xs, order, call.types, strict=True):
        line = [x.tensor_type.numel if i == at else 1 for i in range(len(xs))]
        grids.append(expand(reshape(x, line), type_.shape))
    return tuple(grids)


@lowers("permute.default", "permute_copy.default")
def _permute(call: Call, x: Node, dims: Sequence[int]) -> Node:
    return permute(x, dims)


@lowers("transpose.int", "swapaxes.default", "swapdims.default", "transpose_copy.int")
def _transpose(call: Call, x: Node, a: int, b: int) -> Node:
    return ops.transpose(x, a, b) if x.tensor_type.rank else x


@lowers(
    "t.default", "numpy_T.default", "mT.default", "matrix_H.default", "mH.default", "adjoint.default", "t_copy.default"
)
def _t(call: Call, x: Node) -> Node:
    rank = x.tensor_type.rank
    if call.name == "aten.numpy_T.default":
        return permute(x, range(rank)[::-1])
    return x if rank < 2 else ops.transpose(x, -2, -1)


@lowers("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
def _movedim(call: Call, x: Node, source: Any, destination: Any) -> Node:
    rank = x.tensor_type.rank
    sources = [axis(d, rank) for d in ([source] if isinstance(source, int) else source)]
    targets = [axis(d, rank) for d in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(d for d in range(rank) if d not in sources)
    placed = dict(zip(targets, sources, strict=True))
    return permute(x, [placed[d] if d in placed else next(rest) for d in range(rank)])


# --- parts ------------------------------------------------------------------------------------------------------------


def position(bound: Dim | None, size: Dim, sizes: Sizes, default: Dim) -> Dim:
    """A slice's bound, counted from the end where negative and clamped to [0, size].

    Raises:
        NotLowered: a bound that depends on sizes may be negative or not.
    """
    if bound is None:
        return default
    if isinstance(bound, int) and isinstance(size, int):
        return min(max(bound + size if bound < 0 else bound, 0), size)
    if isinstance(bound, int) and bound >= sys.maxsize:
        return size
    if isinstance(bound, int) and bound < 0:
        bound = normal_form(sympy.sympify(size + bound))
        negative = not _is_position(bound, sizes)
    elif _is_position(bound, sizes):
        negative = False
    else:
        raise NotLowered(f"a slice with the bound {bound}, which may be negative or not")
    clamped = sympy.Max(0, bound) if negative else bound
    return normal_form(sizes.simplify(sympy.Min(clamped, size)))


def _is_position(bound: Dim, sizes: Sizes) -> bool:
    """Whether a bound is known not to be negative."""
    low, _ = sizes.bounds(bound)
    return low is not None and low >= 0


def part(x: Node, dim: int, start: Dim, length: Dim, step: int = 1) -> Node:
    """Elements start, start + step … along an axis, ``length`` of them; the node itself where these are all."""
    if length == x.shape[dim] and step == 1:
        return x
    stop = normal_form(sympy.sympify(start + length * step if step == 1 else start + (length - 1) * step + 1))
    if length == 0:
        stop = start
    return ops.slice_(x, dim=dim, start=start, stop=stop, step=step)


@lowers("slice.Tensor", "slice_copy.Tensor")
def _slice(call: Call, x: Node, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1) -> Node:
    at = axis(dim, x.tensor_type.rank)
    first = position(start, x.shape[at], call.sizes, 0)
    return part(x, at, first, call.shape[at], step)


@lowers("narrow.default", "narrow_copy.default")
def _narrow(call: Call, x: Node, dim: int, start: Dim, length: Dim) -> Node:
    at = axis(dim, x.tensor_type.rank)
    return part(x, at, _wrapped(start, x.shape[at]), length)


def _wrapped(index: Dim, size: Dim) -> Dim:
    return normal_form(sympy.sympify(size + index)) if isinstance(index, int) and index < 0 else index


def pick(x: Node, dim: int, index: Dim) -> Node:
    """One position along an axis, which goes."""
    at = axis(dim, x.tensor_type.rank)
    one = part(x, at, _wrapped(index, x.shape[at]), 1)
    return reshape(one, (*x.shape[:at], *x.shape[at + 1 :]))


@lowers("select.int", "select_copy.int")
def _select(call: Call, x: Node, dim: int, index: Dim) -> Node:
    if not isinstance(index, int) and not _is_position(index, call.sizes):
        raise NotLowered(f"the position {index}, which may be negative or not")
    return pick(x, dim, index)


@lowers("unbind.int", "unbind_copy.int")
def _unbind(call: Call, x: Node, dim: int = 0) -> tuple[Node, ...]:
    return tuple(pick(x, dim, i) for i in range(len(call.types)))


@lowers(
    "split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "tensor_split.sections",
    "tensor_split.indices", "split_copy.Tensor", "split_with_sizes_copy.default", "unsafe_split.Tensor",
    "unsafe_chunk.default", "unsafe_split_with_sizes.default",
)  # fmt: skip
def _split(call: Call, x: Node, _: Any, dim: int = 0) -> tuple[Node, ...]:
    at = axis(dim, x.tensor_type.rank)
    parts, start = [], sympy.Integer(0)
    for type_ in call.types:
        parts.append(part(x, at, normal_form(start), type_.shape[at]))
        start = start + type_.shape[at]
    return tuple(parts)


@lowers("as_strided.default", "as_strided_copy.default")
def _as_strided(
    call: Call, x: Node, size: Sequence[Dim], stride: Sequence[Dim], storage_offset: Dim | None = None
) -> Node:
    # of a dense tensor: element by element out of its memory
    rank = len(size)
    places = full((), storage_offset or 0, torch.int64)
    for axis_, (length, step) in enumerate(zip(size, stride, strict=True)):
        if not isinstance(step, int):
            raise NeedsFixed([step], "a stride")
        line = ops.arange(size=length, step=step)
        places = ops.add(places, reshape(line, (*[1] * axis_, length, *[1] * (rank - axis_ - 1))))
    return ops.index(reshape(x, (x.tensor_type.numel,)), places, dim=0, wrap=False)


@lowers("diagonal.default")
def _diagonal(call: Call, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    rank = x.tensor_type.rank
    a, b = axis(dim1, rank), axis(dim2, rank)
    length = call.shape[-1]
    rows = ops.arange(size=length, start=max(-offset, 0))
    columns = ops.arange(size=length, start=max(offset, 0))
    # the two axes first, so that their common positions are one axis in front
    front = permute(x, (a, b, *(d for d in range(rank) if d not in (a, b))))
    picked = ops.index(front, rows, columns, dim=0, wrap=False)
    return permute(picked, (*range(1, rank - 1), 0))


# --- several ----------------------------------------------------------------------------------------------------------


@lowers("cat.default", "concat.default", "concatenate.default")
def _cat(call: Call, xs: Sequence[Node], dim: int = 0) -> Node:
    rank = len(call.shape)
    # PyTorch leaves out tensors of shape [0], whatever the rank of the others
    kept = [cast(x, call.dtype) for x in xs if x.shape != (0,) or rank == 1]
    return kept[0] if len(kept) == 1 else ops.concat(*kept, dim=axis(dim, rank))


@lowers("stack.default")
def _stack(call: Call, xs: Sequence[Node], dim: int = 0) -> Node:
    at = axis(dim, len(call.shape))
    return ops.concat(*(ops.unsqueeze(cast(x, call.dtype), at) for x in xs), dim=at)


@lowers("hstack.default", "vstack.default", "dstack.default", "column_stack.default")
def _stack_along(call: Call, xs: Sequence[Node]) -> Node:
    kind = call.name.split(".")[1]
    rank = {"vstack": 2, "dstack": 3}.get(kind, 1)
    lifted = []
    for x in xs:
        if kind == "column_stack" and x.tensor_type.rank < 2:
            x = reshape(x, (x.tensor_type.numel, 1))
        while x.tensor_type.rank < rank:
            x = ops.unsqueeze(x, 0 if x.tensor_type.rank < 2 else -1)
        lifted.append(cast(x, call.dtype))
    at = {"vstack": 0, "dstack": 2}.get(kind, 0 if lifted[0].tensor_type.rank == 1 else 1)
    return ops.concat(*lifted, dim=at)


@lowers("repeat.default", "tile.default")
def _repeat(call: Call, x: Node, repeats: Sequence[Dim]) -> Node:
    rank = max(len(repeats), x.tensor_type.rank)
    times = [*[1] * (rank - len(repeats)), *repeats]
    shape: list[Dim] = [*[1] * (rank - x.tensor_type.rank), *x.shape]
    apart = [d for size in shape for d in (1, size)]
    wide = [d for n, size in zip(times, shape, strict=True) for d in (n, size)]
    return reshape(expand(reshape(x, apart), wide), call.shape)


@lowers("repeat_interleave.self_int")
def _repeat_interleave(
    call: Call, x: Node, repeats: Dim, dim: int | None = None, *, output_size: Dim | None = None
) -> Node:
    if dim is None:
        x, dim = reshape(x, (x.tensor_type.numel,)), 0
    at = axis(dim, x.tensor_type.rank)
    apart: Shape = (*x.shape[: at + 1], 1, *x.shape[at + 1 :])
    wide: Shape = (*x.shape[: at + 1], repeats, *x.shape[at + 1 :])
    return reshape(expand(reshape(x, apart), wide), call.shape)


@lowers("roll.default")
def _roll(call: Call, x: Node, shifts: Any, dims: Any = ()) -> Node:
    by = list(shifts) if isinstance(shifts, list | tuple) else [shifts]
    if not dims:
        return reshape(_rolled(reshape(x, (x.tensor_type.numel,)), 0, by[0]), x.shape)
    for shift, dim in zip(by, dims if isinstance(dims, list | tuple) else [dims], strict=True):
        x = _rolled(x, axis(dim, x.tensor_type.rank), shift)
    return x


def _rolled(x: Node, dim: int, shift: Dim) -> Node:
    size = x.shape[dim]
    if not isinstance(size, int) or not isinstance(shift, int):
        length = ops.scalar(size, torch.int64)
        return ops.index(x, ops.remainder(ops.arange(size=size, start=-shift), length), dim=dim, wrap=False)
    start = -shift % size if size else 0
    return ops.concat(part(x, dim, start, size - start), part(x, dim, 0, start), dim=dim) if start else x


@lowers("flip.default", "fliplr.default", "flipud.default")
def _flip(call: Call, x: Node, dims: Sequence[int] | None = None) -> Node:
    along = {"aten.fliplr.default": (1,), "aten.flipud.default": (0,)}.get(call.name, dims)
    return ops.flip(x, dims=tuple(along)) if along else x


@lowers("constant_pad_nd.default", "pad.default")
def _pad(call: Call, x: Node, widths: Sequence[Dim], *rest: Any, **named: Any) -> Node:
    mode, value = _padding(call, *rest, **named)
    if mode != "constant":
        raise NotLowered(f"padding by {mode}")
    rank = x.tensor_type.rank
    missing = [0] * (rank - len(widths) // 2)
    low = (*missing, *reversed(widths[0::2]))
    high = (*missing, *reversed(widths[1::2]))
    return ops.pad(x, low=low, high=high, value=plain(value or 0, x.dtype))


def _padding(call: Call, *rest: Any, mode: str = "constant", value: Scalar | None = None) -> tuple[str, Any]:
    if call.name == "aten.constant_pad_nd.default":
        return "constant", rest[0] if rest else value
    return (rest[0] if rest else mode), (rest[1] if len(rest) > 1 else value)


# --- triangles --------------------------------------------------------------------------------------------------------


def below(rows: Dim, columns: Dim, diagonal: Dim) -> Node:
    """[rows, columns] bool: where column - row is at most ``diagonal``."""
    i = reshape(ops.arange(size=rows, start=diagonal), (rows, 1))
    j = reshape(ops.arange(size=columns), (1, columns))
    return ops.le(j, i)


@lowers("tril.default", "triu.default")
def _triangle(call: Call, x: Node, diagonal: Dim = 0) -> Node:
    lower = call.name == "aten.tril.default"
    mask = below(x.shape[-2], x.shape[-1], diagonal if lower else diagonal - 1)
    zero = full((), 0, x.dtype)
    return expand(ops.where(mask, x, zero) if lower else ops.where(mask, zero, x), x.shape)


@lowers("diag_embed.default")
def _diag_embed(call: Call, x: Node, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Node:
    rank = len(call.shape)
    a, b = axis(dim1, rank), axis(dim2, rank)
    size = call.shape[a]
    on_diagonal = ops.eq(
        reshape(ops.arange(size=size), (size, 1)),
        reshape(ops.arange(size=size, start=-offset), (1, size)),
    )
    before, after = max(-offset, 0), max(offset, 0)
    pad = [0] * (rank - 2)
    rows = ops.pad(x, low=(*pad, before), high=(*pad, after), value=plain(0, x.dtype))
    spread = ops.where(on_diagonal, reshape(rows, (*rows.shape, 1)), full((), 0, x.dtype))
    others = iter(range(rank - 2))
    return permute(spread, [rank - 2 if d == a else rank - 1 if d == b else next(others) for d in range(rank)])
