"""Random steps that move values: views, slices, concatenations, and writes in place."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .builder import FLOATS, Builder, Skip


def reshaped(b: Builder) -> None:
    """Axes joined, split, or of another number."""
    x = b.pick(fits=lambda shape: len(shape) >= 1)
    sizes = b.sizes(x)
    at = b.rng.randrange(len(sizes))
    ways = [f"{x}.reshape(-1)", f"{x}.flatten()", f"{x}.reshape({', '.join([*sizes, '1'])})"]
    if len(sizes) > 1:
        j = min(at, len(sizes) - 2)
        ways += [f"{x}.flatten({j}, {j + 1})"] * 3
        ways += [f"{x}.reshape({', '.join([*sizes[:j], '-1', *sizes[j + 2 :]])})"] * 2
    for part in (2, 4):
        if all(env[x].shape[at] % part == 0 for env in b.envs):
            ways += [f"{x}.unflatten({at}, ({part}, -1))", f"{x}.unflatten({at}, (-1, {part}))"] * 2
    b.add("reshape", b.rng.choice(ways))


def permuted(b: Builder) -> None:
    """Axes in another order."""
    x = b.pick(fits=lambda shape: len(shape) >= 2)
    rank = len(b.shape(x))
    dims = list(range(rank))
    b.rng.shuffle(dims)
    name = b.rng.choice(("permute", "transpose", "transpose", "movedim", "mT"))
    i, j = b.axis(x), b.axis(x)
    made = {"permute": f"{x}.permute({dims})", "mT": f"{x}.mT", "movedim": f"{x}.movedim({i}, {j})"}
    b.add(name, made.get(name, f"{x}.transpose({i}, {j})"))


def axes(b: Builder) -> None:
    """Axes of size 1 come and go, or grow."""
    x = b.pick()
    rank = len(b.shape(x))
    at = b.rng.randrange(rank + 1)
    ones = [i for i, d in enumerate(b.shape(x)) if d == 1]
    ways = [("unsqueeze", f"{x}.unsqueeze({at})"), ("expand", f"{x}.expand({b.rng.choice((2, 3))}, *{x}.shape)")]
    if ones:
        one = b.rng.choice(ones)
        wide = ["-1"] * rank
        wide[one] = b.rng.choice(("3", "4", *(b.size(n, 0) for n in b.names[:3] if len(b.shape(n)))))
        ways += [("squeeze", f"{x}.squeeze({one})"), ("expand", f"{x}.expand({', '.join(wide)})")]
    b.add(*b.rng.choice(ways))


def sliced(b: Builder) -> None:
    """A part of an axis, with a step now and then, or one place of it."""
    x = b.pick(fits=lambda shape: len(shape) >= 1)
    at = b.axis(x) % len(b.shape(x))
    size = b.least(x, at)
    if not size:
        raise Skip
    colons = ":, " * at
    start, step = b.rng.randrange(size), b.rng.choice((1, 1, 1, 2, 3))
    stop = b.rng.randint(start + 1, size)
    ways = (
        ("slice", f"{x}[{colons}{start}:{stop}]"),
        ("slice", f"{x}[{colons}{start}:]"),
        ("slice", f"{x}[{colons}:-1]" if size > 1 else f"{x}[{colons}0:]"),
        ("slice", f"{x}[{colons}-{b.rng.randint(1, size)}:]"),
        ("slice", f"{x}[{colons}{start}::{step}]"),
        ("slice", f"{x}[..., :{b.rng.randint(1, b.least(x, -1) or 1)}]"),
        ("select", f"{x}[{colons}{start}]"),
        ("select", f"{x}.select({at}, -{b.rng.randint(1, size)})"),
        ("narrow", f"{x}.narrow({at}, {start}, {stop - start})"),
    )
    b.add(*b.rng.choice(ways))


def joined(b: Builder) -> None:
    """Values one after the other, or on a new axis."""
    x = b.pick(fits=lambda shape: len(shape) >= 1)
    at = b.axis(x) % len(b.shape(x))
    parts = [x]
    for _ in range(b.rng.randint(1, 2)):
        y = b.partner(x)
        same = len(b.shape(y)) == len(b.shape(x))
        parts.append(y if same and _alike(b, x, y, at) else b.rng.choice((x, f"{x} * 2", f"-{x}", f"{x}.flip({at})")))
    if b.dtype(x) == torch.bool:
        parts = [p if p in b.names else x for p in parts]
    b.rng.shuffle(parts)
    equal = all(b.shape(p) == b.shape(x) for p in parts if p in b.names)
    name = "stack" if equal and b.rng.random() < 0.3 else "cat"
    b.add(name, f"torch.{name}([{', '.join(parts)}], {at})")


def _alike(b: Builder, x: str, y: str, at: int) -> bool:
    shapes = [(list(env[x].shape), list(env[y].shape)) for env in b.envs]
    return all(p[:at] + p[at + 1 :] == q[:at] + q[at + 1 :] for p, q in shapes)


def parts(b: Builder) -> None:
    """An axis in several parts, all of them results."""
    x = b.pick(fits=lambda shape: any(1 < d <= 8 for d in shape))
    at = b.rng.choice([i for i, d in enumerate(b.shape(x)) if 1 < d <= 8])
    size = b.size(x, at)
    if not size.isdigit():
        raise Skip
    count = int(size)
    first = b.rng.randint(1, count - 1)
    b.add(*b.rng.choice((
        ("split", f"{x}.split([{first}, {count - first}], {at})", 2),
        ("chunk", f"{x}.chunk(2, {at})", 2),
        ("unbind", f"{x}.unbind({at})", count),
        ("split", f"{x}.split({-(-count // 2)}, {at})", 2),
    )))  # fmt: skip


def moved(b: Builder) -> None:
    """Places changed, repeated, padded or emptied."""
    x = b.pick(fits=lambda shape: len(shape) >= 1)
    at, two = b.axis(x), len(b.shape(x)) > 1
    ways = [
        ("flip", f"{x}.flip({at})"),
        ("roll", f"{x}.roll({b.rng.choice((1, -1, 2))}, {at})"),
        ("repeat", f"{x}.repeat({', '.join(b.rng.choice(('1', '2')) for _ in b.shape(x))})"),
        ("repeat_interleave", f"{x}.repeat_interleave(2, {at})"),
        ("pad", f"F.pad({x}, ({b.rng.choice((0, 1, 2))}, {b.rng.choice((0, 1))}))"),
        ("contiguous", f"{x}.contiguous()"),
        ("clone", f"{x}.clone()"),
    ]
    if two:
        ways += [("tril", f"{x}.tril({b.rng.choice((0, 1, -1))})"), ("triu", f"{x}.triu({b.rng.choice((0, 1, -1))})")]
        ways += [("diagonal", f"{x}.diagonal(0, -2, -1)")]
    b.add(*b.rng.choice(ways))


def created(b: Builder) -> None:
    """Values that come from sizes alone."""
    x = b.pick(fits=lambda shape: len(shape) >= 1)
    n = b.size(x, b.axis(x))
    dtype = b.rng.choice(("f32", "i64", "i64", b.short(x)))
    if dtype == "boolean":
        dtype = "i64"
    b.add(*b.rng.choice((
        ("arange", f"torch.arange({n}, dtype={dtype})"),
        ("zeros_like", f"torch.zeros_like({x})"),
        ("ones", f"torch.ones({n}, {n}, dtype=boolean).tril()"),
        ("full", f"torch.full(({n},), 0.5, dtype=f32)"),
        ("arange", f"torch.arange({n}) <= torch.arange({n})[:, None]"),
        ("eye", f"torch.eye({n}, dtype=f32)"),
    )))  # fmt: skip


def written(b: Builder) -> None:
    """A write in place: to a value, a part of it, an input or a buffer."""
    owned = [n for n in b.names if b.dtype(n) in FLOATS]
    if not owned:
        raise Skip
    buffers = [n for n in owned if n.startswith("b")]
    x = b.rng.choice(buffers if buffers and b.rng.random() < 0.5 else owned[-6:])
    if b.rng.random() < 0.3:
        b.add("clone", f"{x}.clone()")
        x = b.names[-1]
    part = _part(b, x)
    y = b.partner(x) if part == x else "0.5"
    ways = [
        ("add_", f"{part}.add_({y})"),
        ("mul_", f"{part}.mul_({b.number()})"),
        ("copy_", f"{part}.copy_({y})" if part == x else f"{part}.zero_()"),
        ("fill_", f"{part}.fill_(0.25)"),
        ("sub_", f"{part}.sub_({y}, alpha=2)"),
        ("relu_", f"{part}.relu_()"),
    ]
    if part != x:
        ways += [("setitem", f"{part} = {b.rng.choice(('1.0', '-0.5', f'{part} * 2', f'{part}.sum()'))}")] * 3
        ways += [("setitem", f"{part} += 1")]
    b.add(*b.rng.choice(ways), results=0)


def _part(b: Builder, x: str) -> str:
    rank = len(b.shape(x))
    if not rank or b.rng.random() < 0.3:
        return x
    at = b.rng.randrange(rank)
    size = b.least(x, at)
    if not size:
        raise Skip
    colons, start = ":, " * at, b.rng.randrange(size)
    ways = [f"{x}[{colons}{start}]", f"{x}[{colons}{start}:]", f"{x}[{colons}:{start + 1}]", f"{x}[{colons}::2]"]
    return b.rng.choice([*ways, f"{x}[..., 0]", f"{x}[..., -1:]"])


SHAPES: tuple[tuple[int, Callable[[Builder], None]], ...] = (
    (4, reshaped),
    (4, permuted),
    (3, axes),
    (5, sliced),
    (3, joined),
    (2, parts),
    (3, moved),
    (2, created),
    (3, written),
)
