"""Regions that the tests of lowering and of kernels share, by name: every kind of value a map or rows kernel has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import Dim, symbol

from .cases import Case, Sizes, operand

B, S, T = symbol("b"), symbol("s"), symbol("t")
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
I64, I32, U8, BOOL = torch.int64, torch.int32, torch.uint8, torch.bool
SIZES: Sequence[Sizes] = tuple({"b": b, "s": s} for b, s in ((2, 3), (1, 1), (3, 17), (2, 0), (0, 5)))
FILLED: Sequence[Sizes] = tuple({"b": b, "s": s} for b, s in ((2, 3), (1, 1), (3, 17), (1, 70)))  # no empty rows


def x(*shape: Dim, dtype: torch.dtype = F32) -> Node:
    """The first operand."""
    return operand(0, shape, dtype)


def y(*shape: Dim, dtype: torch.dtype = F32) -> Node:
    """The second operand."""
    return operand(1, shape, dtype)


def z(*shape: Dim, dtype: torch.dtype = F32) -> Node:
    """The third operand."""
    return operand(2, shape, dtype)


def one(build: Callable[[Node], Node], shape: Sequence[Dim], sizes: Sequence[Sizes] = SIZES, **rest: object) -> Case:
    """A region of one float operand."""
    return Case([x(*shape)], [build(x(*shape))], sizes, **rest)  # type: ignore[arg-type]


def doubled(node: Node) -> Node:
    """Something computed, so that a region is no mere copy."""
    return ops.add(node, node)


# --- views ------------------------------------------------------------------------------------------------------------


def views() -> dict[str, Case]:
    """Permutes, reshapes, slices, flips and expansions, alone and one after another."""
    heads = (B, S, 12)
    return {
        "permute": one(lambda n: doubled(ops.permute(n, dims=(1, 2, 0))), (B, S, 5)),
        "merge": one(lambda n: doubled(ops.reshape(n, shape=(B * S, 12))), heads),
        "merge all": one(lambda n: doubled(ops.reshape(n, shape=(12 * B * S,))), heads),
        "split": one(lambda n: doubled(ops.reshape(n, shape=(B, S, 3, 4))), heads),
        "split first": one(lambda n: doubled(ops.reshape(n, shape=(B, S, 6))), (B * S, 6)),
        "regroup": one(lambda n: doubled(ops.reshape(n, shape=(B, 3, 8, S))), (B, 4, 6, S)),
        "regroup sizes": one(lambda n: doubled(ops.reshape(n, shape=(S, B, 6))), (B, S, 6)),
        "to no axes": one(lambda n: doubled(ops.reshape(n, shape=())), (1, 1), [{}]),
        "units": one(lambda n: doubled(ops.reshape(n, shape=(1, B, 1, S, 1))), (B, S)),
        "nothing": one(lambda n: doubled(ops.reshape(n, shape=(0, 5))), (0,), [{}]),
        "split heads": one(
            lambda n: doubled(ops.permute(ops.reshape(n, shape=(B, S, 3, 4)), dims=(0, 2, 1, 3))), heads
        ),
        "merge heads": one(
            lambda n: doubled(ops.reshape(ops.permute(n, dims=(0, 2, 1, 3)), shape=(B, S, 12))), (B, 3, S, 4)
        ),
        "flatten permuted": one(lambda n: doubled(ops.reshape(ops.permute(n, dims=(1, 0)), shape=(B * S,))), (B, S)),
        "expand": Case([x(B, 1, 4)], [doubled(ops.expand(x(B, 1, 4), shape=(S, B, 3, 4)))], SIZES),
        "slice": one(lambda n: doubled(ops.slice_(n, dim=1, start=1, stop=9, step=3)), (B, 11)),
        "slice to a size": one(lambda n: doubled(ops.slice_(n, dim=0, start=S, stop=S + B)), (B + S, 3)),
        "flip": one(lambda n: doubled(ops.flip(n, dims=(0, 2))), (B, S, 5)),
        "flip slice": one(lambda n: doubled(ops.slice_(ops.flip(n, dims=(0,)), dim=0, start=2, stop=7)), (9, S)),
        "flip split": one(lambda n: doubled(ops.reshape(ops.flip(n, dims=(1,)), shape=(B, 3, 4))), (B, 12)),
        "flip of merged": one(
            lambda n: ops.sum(ops.exp(ops.flip(ops.reshape(n, shape=(B, 4 * S)), dims=(1,))), dims=(1,)), (B, S, 4)
        ),
        "slice of merged": one(
            lambda n: doubled(ops.slice_(ops.reshape(n, shape=(B, 12)), dim=1, start=1, stop=12, step=2)), (B, 3, 4)
        ),
        "transpose plus itself": one(lambda n: ops.add(n, ops.permute(n, dims=(1, 0))), (S, S)),
        "corner plus whole": one(
            lambda n: ops.add(n, ops.slice_(ops.slice_(n, dim=0, start=0, stop=1), dim=1, start=2, stop=3)), (6, 7)
        ),
    }


# --- side by side -----------------------------------------------------------------------------------------------------


def pieces() -> dict[str, Case]:
    """Concatenations, padding, slices written into: at the root of a region, and below it."""
    a, b = x(B, S, 4), y(B, 3, 4)
    cat = ops.concat(a, b, dim=1)
    below = ops.permute(ops.concat(a, ops.exp(a), dim=2), dims=(1, 0, 2))
    inner = ops.concat(cat, ops.neg(b), dim=1)
    return {
        "concat": Case([a, b], [cat], SIZES),
        "concat last": one(lambda n: ops.concat(n, ops.neg(n), n, dim=2), (B, S, 5)),
        "concat of concat": Case([a, b], [ops.neg(inner)], SIZES),
        "concat in a sum": Case([a, b], [ops.add(cat, ops.exp(cat))], SIZES),
        "concat below a view": Case([a], [ops.add(below, below)], SIZES),
        "concat below a reduction": Case([a, b], [ops.sum(cat, dims=(1,))], SIZES),
        "concat of a computed value below a view": Case(
            [a, b], [ops.permute(ops.concat(ops.tanh(a), b, dim=1), dims=(2, 1, 0))], SIZES
        ),
        "pad": one(lambda n: ops.pad(n, low=(1, 0, 2), high=(0, 3, 1), value=0.5), (B, S, 4)),
        "pad by a size": one(lambda n: ops.neg(ops.pad(n, low=(0, S), high=(B, 0), value=-1.0)), (B, S)),
        "crop": one(lambda n: doubled(ops.pad(n, low=(-1, 2), high=(1, -2))), (5, 6), [{}]),
        "pad below a reduction": one(lambda n: ops.amax(ops.pad(n, low=(0, 1), high=(0, 2)), dims=(1,)), (B, S)),
        "pad integers": Case([x(B, 3, dtype=I64)], [ops.pad(x(B, 3, dtype=I64), low=(0, 1), high=(1, 0))], SIZES),
        "slice_put": Case([x(B, 9), y(B, 4)], [ops.slice_put(x(B, 9), y(B, 4), dim=1, start=3)], SIZES),
        "slice_put in steps": Case(
            [x(B, 9), y(B, 3)], [ops.exp(ops.slice_put(x(B, 9), y(B, 3), dim=1, start=1, step=3))], SIZES
        ),
        "slice_put at a size": Case(
            [x(B + S + 2, 3), y(S, 3)], [ops.slice_put(x(B + S + 2, 3), y(S, 3), dim=0, start=B)], SIZES
        ),
        "slice_put below a view": Case(
            [x(B, 9), y(B, 4)],
            [doubled(ops.permute(ops.slice_put(x(B, 9), y(B, 4), dim=1, start=3), dims=(1, 0)))],
            SIZES,
        ),
        "rope": _rope(lambda n: n),
        "rope of heads": _rope(
            lambda n: ops.permute(ops.reshape(n, shape=(B, S, 3, 8)), dims=(0, 2, 1, 3)), (B, S, 24)
        ),
        "rope of pairs": _rope(lambda n: n, interleaved=True),
        "rope of pairs of heads": _rope(
            lambda n: ops.permute(ops.reshape(n, shape=(B, S, 3, 8)), dims=(0, 2, 1, 3)), (B, S, 24), interleaved=True
        ),
        "rope and more": _rope(lambda n: n, after=lambda n, turned: ops.mul(ops.neg(turned), n)),
        "rope below a view": _rope(
            lambda n: n, after=lambda n, turned: doubled(ops.permute(turned, dims=(0, 3, 1, 2)))
        ),
    }


def _rope(
    before: Callable[[Node], Node],
    shape: Sequence[Dim] = (B, 3, S, 8),
    after: Callable[[Node, Node], Node] = lambda n, turned: turned,
    interleaved: bool = False,
) -> Case:
    cos, sin = y(S, 8), z(S, 8)
    n = before(x(*shape))
    return Case([x(*shape), cos, sin], [after(n, ops.rope(n, cos, sin, interleaved=interleaved))], SIZES)


# --- addressed by data ------------------------------------------------------------------------------------------------


def lookups() -> dict[str, Case]:
    """Embeddings, indices and gathers; every size fills the axes that are chosen from."""
    table, ids, more = x(7, 6), y(B, S, dtype=I64), z(S, dtype=I32)
    near = {"high": 7, "low": 0}
    both = {"high": 5, "low": -5}
    return {
        "embedding": Case([table, ids], [ops.embedding(table, ids)], SIZES, **near),  # type: ignore[arg-type]
        "embedding scaled": Case([table, ids], [ops.exp(ops.embedding(table, ids))], SIZES, **near),  # type: ignore[arg-type]
        "embedding of one row": Case(
            [x(1, 6), y(B, dtype=I64)], [ops.embedding(x(1, 6), y(B, dtype=I64))], SIZES, high=1, low=0
        ),
        "index wraps": Case(
            [x(B, 7, 3), y(S, dtype=I64)], [ops.index(x(B, 7, 3), y(S, dtype=I64), dim=1)], SIZES, **both
        ),  # type: ignore[arg-type]
        "index by two": Case(
            [x(7, 5, S), y(B, 1, dtype=I64), z(4, dtype=I32)],
            [ops.index(x(7, 5, S), y(B, 1, dtype=I64), z(4, dtype=I32), dim=0)],
            SIZES,
            **both,  # type: ignore[arg-type]
        ),
        "index along the last axis": Case(
            [x(B, 7), y(S, dtype=I64)],
            [doubled(ops.index(x(B, 7), y(S, dtype=I64), dim=1))],
            SIZES,
            **both,  # type: ignore[arg-type]
        ),
        "index of a merged view": Case(
            [x(3, 4, 5), y(S, dtype=I64)],
            [ops.index(ops.reshape(x(3, 4, 5), shape=(12, 5)), y(S, dtype=I64), dim=0)],
            SIZES,
            high=12,
            low=-12,
        ),
        "index of a split view": Case(
            [x(12, 5), y(S, dtype=I64)],
            [ops.index(ops.reshape(x(12, 5), shape=(3, 4, 5)), y(S, dtype=I64), dim=1)],
            SIZES,
            high=4,
            low=-4,
        ),
        "index of a slice": Case(
            [x(12, 5), y(S, dtype=I64)],
            [
                ops.index(
                    ops.flip(ops.slice_(x(12, 5), dim=0, start=2, stop=11, step=3), dims=(0,)), y(S, dtype=I64), dim=0
                )
            ],
            SIZES,
            high=3,
            low=-3,
        ),
        "index by an index": Case(
            [x(7, 3), y(5, dtype=I64), z(S, dtype=I64)],
            [ops.index(x(7, 3), ops.index(y(5, dtype=I64), z(S, dtype=I64), dim=0), dim=0)],
            SIZES,
            **both,  # type: ignore[arg-type]
        ),
        "gather": Case(
            [x(B, 7, S), y(B, 4, S, dtype=I64)],
            [ops.gather(x(B, 7, S), y(B, 4, S, dtype=I64), dim=1)],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "gather along the last axis": Case(
            [x(B, 7), y(B, S, dtype=I64)],
            [ops.gather(x(B, 7), y(B, S, dtype=I64), dim=1)],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "gather of log_softmax below": Case(
            [x(B, 7), y(B, 1, dtype=I64)],
            [ops.neg(ops.gather(ops.exp(x(B, 7)), y(B, 1, dtype=I64), dim=1))],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "embedding beside something": Case(
            [table, ids],
            [ops.concat(ops.embedding(table, ids), ops.exp(ops.embedding(table, ids)), dim=2)],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "embedding under padding": Case(
            [table, ids],
            [ops.permute(ops.pad(ops.embedding(table, ids), low=(0, 1, 0), high=(1, 0, 2)), dims=(2, 0, 1))],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "mean of embeddings": Case([table, ids], [ops.mean(ops.embedding(table, ids), dims=(1,))], FILLED, **near),  # type: ignore[arg-type]
        **{
            f"{op.name} over {dims} of embeddings of {width}": Case(
                [x(7, width), y(B, S, 3, dtype=I32)],
                [op(ops.embedding(x(7, width), y(B, S, 3, dtype=I32)), dims=dims)],
                FILLED,
                **near,  # type: ignore[arg-type]
            )
            for op, dims, width in (
                (ops.mean, (2,), 16),
                (ops.sum, (1, 2), 100),
                (ops.amax, (1,), 5),
                (ops.var, (2,), 32),
            )
        },
        "cumsum of embeddings": Case(
            [x(7, 16), ids],
            [ops.cumsum(ops.embedding(x(7, 16), ids), dim=1)],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "softmax of embeddings where data says so": Case(
            [x(7, 16), ids, z(B, S, 1, dtype=BOOL)],
            [
                ops.softmax(
                    ops.where(
                        z(B, S, 1, dtype=BOOL),
                        ops.embedding(x(7, 16), ids),
                        ops.full(value=-2.0, shape=(1,), dtype=F32),
                    ),
                    dim=1,
                )
            ],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "layer_norm of embeddings": Case(
            [table, ids, more],
            [ops.layer_norm(ops.add(ops.embedding(table, ids), ops.embedding(table, more)), eps=1e-5)],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
    }


def scatters() -> dict[str, Case]:
    """Writes to places that data chooses. Where they repeat, the last one wins."""
    cache, new, at = x(B, 9, 4), y(B, S, 4), z(S, dtype=I64)
    rows, where, src = x(B, 9, 3), y(B, S, 3, dtype=I64), z(B, S, 3)
    both, near = {"high": 9, "low": -9}, {"high": 9, "low": 0}

    def add(node: Node, dtype: torch.dtype) -> Case:
        values, places = y(S, 3, dtype=dtype), z(S, dtype=I64)
        target = x(9, 3, dtype=dtype)
        put = ops.index_put(target, values, places, dim=0, accumulate=True)
        return Case([target, values, places], [put], SIZES, high=5, low=-5)

    return {
        "index_put": Case([cache, new, at], [ops.index_put(cache, new, at, dim=1)], SIZES, **both),  # type: ignore[arg-type]
        "index_put of a number": Case(
            [cache, y(dtype=F32), at],
            [ops.index_put(cache, y(dtype=F32), at, dim=1)],
            SIZES,
            **both,  # type: ignore[arg-type]
        ),
        "index_put by two": Case(
            [x(7, 5, S), y(B, 4, S), operand(2, (B, 1), I64), operand(3, (4,), I32)],
            [ops.index_put(x(7, 5, S), y(B, 4, S), operand(2, (B, 1), I64), operand(3, (4,), I32), dim=0)],
            SIZES,
            high=5,
            low=-5,
        ),
        "index_put into zeros": Case(
            [x(S, 3), y(S, dtype=I64)],
            [ops.index_put(ops.full(shape=(9, 3), value=0.0, dtype=F32), x(S, 3), y(S, dtype=I64), dim=0)],
            SIZES,
            **both,  # type: ignore[arg-type]
        ),
        "index_put of a view": Case(
            [cache, y(S, B, 4), at],
            [ops.index_put(cache, ops.permute(y(S, B, 4), dims=(1, 0, 2)), at, dim=1)],
            SIZES,
            **both,  # type: ignore[arg-type]
        ),
        **{f"index_put adds {dtype}": add(cache, dtype) for dtype in (F32, BF16, I64, U8, BOOL)},
        "scatter": Case([rows, where, src], [ops.scatter(rows, where, src, dim=1)], SIZES, **near),  # type: ignore[arg-type]
        "scatter adds": Case([rows, where, src], [ops.scatter(rows, where, src, dim=1, reduce="add")], SIZES, **near),  # type: ignore[arg-type]
        "scatter along the last axis": Case(
            [x(B, 9), y(B, S, dtype=I64), z(B, S)],
            [ops.scatter(x(B, 9), y(B, S, dtype=I64), z(B, S), dim=1)],
            SIZES,
            **near,  # type: ignore[arg-type]
        ),
        "scatter of one": Case(
            [x(), y(dtype=I64), z()], [ops.scatter(x(), y(dtype=I64), z(), dim=0)], [{}], high=1, low=0
        ),
    }


# --- numbers from sizes -----------------------------------------------------------------------------------------------


def creations() -> dict[str, Case]:
    """Values that come from attributes and sizes."""
    i = ops.arange(size=S, start=B, step=2)
    return {
        "arange": Case([], [i], SIZES),
        "arange of floats": Case([], [ops.arange(size=S, start=0.5, step=0.25, dtype=F32)], SIZES),
        "arange down": Case([], [ops.arange(size=S, start=B, step=-1, dtype=I32)], SIZES),
        "arange of half": Case([], [ops.arange(size=S, start=1, dtype=BF16)], SIZES),
        "full": Case([], [ops.full(shape=(B, S), value=-2.5, dtype=F32)], SIZES),
        "full of a size": Case([], [ops.full(shape=(3, S), value=2 * B + S, dtype=F32)], SIZES),
        "full of an integer size": Case([], [ops.full(shape=(S,), value=B * S, dtype=I64)], SIZES),
        "full of infinity": Case([], [ops.full(shape=(S, 2), value=float("-inf"), dtype=BF16)], SIZES),
        "causal mask": Case([], [ops.causal_mask(S, T)], [{"s": 4, "t": 6}, {"s": 17, "t": 1}, {"s": 0, "t": 3}]),
        "positions": Case(
            [x(B, S, 4)], [ops.add(x(B, S, 4), ops.reshape(ops.cast(i, dtype=F32), shape=(S, 1)))], SIZES
        ),
        "empty": Case([], [ops.full(shape=(0, 3), value=1.0, dtype=F32)], [{}]),
    }


# --- several results, layouts -----------------------------------------------------------------------------------------


def results() -> dict[str, Case]:
    """Several results, and results and operands whose axes lie in another order."""
    a, b, w = x(B, S, 6), y(B, S, 6), z(6)
    total = ops.add(a, b)
    norm = ops.layer_norm(total, w, eps=1e-5)
    heads = x(B, S, 3, 4)
    return {
        "two results": Case([a, b], [total, ops.mul(total, a)], SIZES),
        "results of other shapes": Case([a, y(S)], [ops.neg(a), ops.exp(y(S))], SIZES),
        "one result twice": Case([a, b], [total, total], SIZES),
        "an operand as it is": Case([a], [a], SIZES),
        "norm and what it is of": Case([a, b, w], [norm, total], SIZES),
        "norm and its statistics": Case(
            [a], [ops.sub(a, ops.mean(a, dims=(2,), keepdim=True)), ops.mean(a, dims=(2,))], SIZES
        ),
        "permuted result": Case([heads], [doubled(heads)], SIZES, layouts=[(0, 2, 1, 3)]),
        "column major": Case([x(B, S)], [doubled(x(B, S))], SIZES, layouts=[(1, 0)]),
        "permuted operand": Case([heads], [doubled(heads)], SIZES, operands={0: (0, 2, 1, 3)}),
        "permuted both": Case([heads], [doubled(heads)], SIZES, layouts=[(2, 0, 1, 3)], operands={0: (2, 0, 1, 3)}),
        "norm to a permuted result": Case([a, b, w], [norm], SIZES, layouts=[(1, 0, 2)]),
        "norm of a permuted operand": Case([a, b, w], [norm], SIZES, operands={0: (2, 0, 1)}),
        "sum to a permuted result": Case(
            [heads], [ops.sum(heads, dims=(1,))], SIZES, layouts=[(2, 0, 1)], operands={0: (3, 0, 1, 2)}
        ),
        "broadcasts": Case([x(B, 1, 6), y(S, 1), z(6)], [ops.add(ops.mul(x(B, 1, 6), y(S, 1)), z(6))], SIZES),
        "no axes": Case([x(), y()], [ops.add(x(), y())], [{}]),
        "mask": Case(
            [x(B, S, S), y(B, S, dtype=BOOL)],
            [
                ops.where(
                    ops.bit_and(ops.reshape(y(B, S, dtype=BOOL), shape=(B, 1, S)), ops.causal_mask(S, S)),
                    x(B, S, S),
                    ops.scalar(float("-inf"), F32),
                )
            ],
            SIZES,
        ),
    }


def all_regions() -> dict[str, Case]:
    """Every region here."""
    groups = (views, pieces, lookups, scatters, creations, results)
    found: dict[str, Case] = {}
    for group in groups:
        for name, case in group().items():
            assert name not in found, name
            found[name] = case
    return found
