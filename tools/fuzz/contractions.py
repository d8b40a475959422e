"""Random steps that combine values: reductions, products, attention, and reads and writes by index."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .builder import FLOATS, INTEGERS, Builder, Skip


def reduced(b: Builder) -> None:
    """A reduction over one axis, several or all."""
    x = b.float(1) if b.rng.random() < 0.85 else b.pick(*INTEGERS, fits=lambda shape: len(shape) >= 1)
    name = b.rng.choice(("sum", "sum", "mean", "mean", "amax", "amin", "prod", "var", "std", "logsumexp", "norm"))
    dim = str(b.axis(x))
    if len(b.shape(x)) > 1 and name not in ("prod",) and b.rng.random() < 0.3:
        dim = b.rng.choice(("(-2, -1)", "(0, -1)"))
    keep = b.rng.choice(("", ", keepdim=True", ", keepdim=True"))
    made = f"torch.{name}({x}, {dim}{keep})"
    if name in ("var", "std"):
        made = f"{x}.{name}({dim}, correction={b.rng.choice((0, 1))}{keep})"
    if name == "norm":
        made = f"torch.linalg.vector_norm({x}, {b.rng.choice(('2', '1', 'inf'))}, {dim}{keep})"
    if name in ("sum", "mean", "amax", "amin") and b.rng.random() < 0.15:
        made = f"{x}.{name}()"
    b.add(name, made)


def found(b: Builder) -> None:
    """Where a value is largest, whether any is true, how many are."""
    x = b.pick(fits=lambda shape: len(shape) >= 1)
    dim = b.axis(x)
    if b.dtype(x) == torch.bool:
        b.add(*b.rng.choice((
            ("any", f"{x}.any({dim})"),
            ("all", f"{x}.all({dim}, keepdim=True)"),
            ("any", f"{x}.any()"),
            ("sum", f"{x}.sum({dim})"),
            ("cumsum", f"{x}.cumsum({dim})"),
        )))  # fmt: skip
        return
    b.add(*b.rng.choice((
        ("argmax", f"{x}.argmax({dim})", 1),
        ("argmin", f"{x}.argmin({dim}, keepdim=True)", 1),
        ("max", f"{x}.max({dim})", 2),
        ("min", f"{x}.min({dim}, keepdim=True)", 2),
        ("count_nonzero", f"torch.count_nonzero({x}, {dim})", 1),
    )))  # fmt: skip


def row(b: Builder) -> None:
    """Work on whole rows: softmax, norms, running sums."""
    x = b.float(1)
    dim, n = b.axis(x), b.size(x, -1)
    ways = [
        ("softmax", f"torch.softmax({x}, {dim})"),
        ("softmax", f"{x}.softmax(-1)"),
        ("log_softmax", f"F.log_softmax({x}, {dim})"),
        ("cumsum", f"{x}.cumsum({dim})"),
        ("layer_norm", f"F.layer_norm({x}, ({n},))"),
        ("rms_norm", f"F.rms_norm({x}, ({n},), eps=1e-5)"),
        ("normalize", f"F.normalize({x}, dim={dim})"),
        ("softmax", f"torch.softmax({x}, {dim}, dtype=f32)"),
    ]
    scales = [v for v in b.names if b.dtype(v) == b.dtype(x) and len(b.shape(v)) == 1 and _last(b, v) == _last(b, x)]
    if scales:
        w, c = b.rng.choice(scales), b.rng.choice(scales)
        ways += [("layer_norm", f"F.layer_norm({x}, ({n},), {w}, {c})"), ("rms_norm", f"F.rms_norm({x}, ({n},), {w})")]
    b.add(*b.rng.choice(ways))


def _last(b: Builder, name: str) -> list[int]:
    return [env[name].shape[-1] for env in b.envs]


def product(b: Builder) -> None:
    """A matrix product, written in one of PyTorch's ways."""
    x = b.float(2)
    inner = _last(b, x)
    mates = [v for v in b.names if b.dtype(v) == b.dtype(x) and len(b.shape(v)) >= 2]
    right = [v for v in mates if [env[v].shape[-2] for env in b.envs] == inner]
    turned = [v for v in mates if _last(b, v) == inner]
    ways = [("matmul", f"{x} @ {b.rng.choice(turned)}.transpose(-1, -2)")]
    if right:
        y = b.rng.choice(right)
        ways += [("matmul", f"{x} @ {y}"), ("matmul", f"torch.matmul({x}, {y})")]
        ranks = (len(b.shape(x)), len(b.shape(y)))
        ways += [("mm", f"torch.mm({x}, {y})")] * 2 if ranks == (2, 2) else []
        ways += [("bmm", f"torch.bmm({x}, {y})")] * 2 if ranks == (3, 3) else []
    weights = [v for v in turned if len(b.shape(v)) == 2]
    if weights:
        w = b.rng.choice(weights)
        biases = [v for v in b.names if b.dtype(v) == b.dtype(x) and len(b.shape(v)) == 1]
        fitting = [v for v in biases if _last(b, v) == [env[w].shape[0] for env in b.envs]]
        ways += [("linear", f"F.linear({x}, {w}{''.join([', ', b.rng.choice(fitting)] if fitting else [])})")] * 2
    vectors = [v for v in b.names if b.dtype(v) == b.dtype(x) and len(b.shape(v)) == 1 and _last(b, v) == inner]
    if vectors:
        ways += [("mv", f"{x} @ {b.rng.choice(vectors)}")]
    ways += [("einsum", f"torch.einsum('...ij,...kj->...ik', {x}, {b.rng.choice(turned)})")]
    b.add(*b.rng.choice(ways))


def attention(b: Builder) -> None:
    """Scaled dot product attention of what a value is split into.

    Of finite values only: which of PyTorch's kernels runs, and in what blocks, decides where a NaN goes.
    """
    x = b.pick(*FLOATS, fits=lambda shape: len(shape) >= 3 and shape[-1] <= 32)
    if not _finite(b, x):
        raise Skip
    if len(b.shape(x)) == 3:
        split = b.least(x, -1) % 2 == 0 and b.size(x, -1).isdigit()
        heads = f"{x}.unflatten(-1, (2, -1)).transpose(1, 2)" if split else f"{x}.unsqueeze(1)"
        b.add("transpose" if split else "unsqueeze", heads)
        x = b.names[-1]
    n = b.size(x, -2)
    alike = [v for v in b.names if b.dtype(v) == b.dtype(x) and _same_sizes(b, v, x) and _finite(b, v)]
    k, v = b.rng.choice(alike), b.rng.choice(alike)
    short = b.short(x)
    future = f"torch.ones({n}, {n}, dtype=boolean).triu(1)"
    ways = [
        "",
        ", is_causal=True",
        f", attn_mask=torch.ones({n}, {n}, dtype=boolean).tril()",
        f", attn_mask=torch.zeros({n}, {n}, dtype={short}).masked_fill({future}, -inf)",
        f", attn_mask=torch.arange({n}) < 2",
        f", attn_mask=-(torch.arange({n}, dtype={short}) - 1).abs()",
        ", scale=0.5",
    ]
    heads = b.size(x, 1) if len(b.shape(x)) == 4 else "1"
    if heads.isdigit() and int(heads) > 1 and b.rng.random() < 0.4:
        k, v = f"{k}[:, :1]", f"{v}[:, :1]"
        ways = [f"{w}, enable_gqa=True" for w in ways]
    if b.rng.random() < 0.2:
        k, v = f"{k}[..., :1, :]", f"{v}[..., :1, :]"
        ways = ways[:1] + ways[-1:]
    b.add("attention", f"F.scaled_dot_product_attention({x}, {k}, {v}{b.rng.choice(ways)})")


def _same_sizes(b: Builder, left: str, right: str) -> bool:
    return all(env[left].shape == env[right].shape for env in b.envs)


def _finite(b: Builder, name: str) -> bool:
    return all(bool(env[name].isfinite().all()) for env in b.envs)


def by_hand(b: Builder) -> None:
    """Attention, rotary embedding, norms and gates as models write them."""
    x = b.float(2)
    n, d = b.size(x, -2), b.size(x, -1)
    gate = b.partner(x)
    scores, weights = f"({x} @ {x}.transpose(-1, -2))", f"({x} - {x}.amax(-1, keepdim=True)).exp()"
    ways = [
        ("attention", f"torch.softmax({x} @ {x}.transpose(-1, -2) * 0.5, -1) @ {x}"),
        (
            "attention",
            f"torch.softmax({scores}.masked_fill(~torch.ones({n}, {n}, dtype=boolean).tril(), -inf), -1) @ {x}",
        ),
        ("rms_norm", f"{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-6)"),
        ("layer_norm", f"({x} - {x}.mean(-1, keepdim=True)) / ({x}.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()"),
        ("silu", f"F.silu({x}) * {gate}"),
        ("gelu", f"0.5 * {x} * (1 + torch.erf({x} / 2 ** 0.5))"),
        (
            "softmax",
            f"{weights} / {weights}.sum(-1, keepdim=True)",
        ),
    ]
    if not _finite(b, x):  # as in attention: recognised attention keeps no NaN of keys that a mask hides
        ways = ways[2:]
    if b.least(x, -1) % 2 == 0 and d.isdigit():
        half = int(d) // 2
        turned = f"torch.cat([-{x}[..., {half}:], {x}[..., :{half}]], -1)"
        ways += [("rope", f"{x} * {gate}.cos() + {turned} * {gate}.sin()")] * 2
    b.add(*b.rng.choice(ways))


def indexed(b: Builder) -> None:
    """Reads by integer tensors. One in thirty leaves the range of its indices to chance."""
    i = b.pick(*INTEGERS, fits=lambda shape: len(shape) >= 1)  # one of rank 0 is read as a Python number
    x = b.pick(fits=lambda shape: len(shape) >= 1 and shape[0] > 0)
    at = b.axis(x) % len(b.shape(x))
    n = b.size(x, at)
    raw = b.rng.random() < 0.03
    safe = i if raw else f"({i} % {n})"
    line = f"{safe}.reshape(-1)"
    long = safe if b.dtype(i) == torch.int64 else f"{safe}.to(i64)"
    ways = [
        ("index", f"{x}[{':, ' * at}{safe}]"),
        ("index_select", f"{x}.index_select({at}, {line})"),
        (
            "take_along_dim",
            f"torch.take_along_dim({x}, {long}.reshape(-1)[:1].reshape({', '.join(['1'] * len(b.shape(x)))}), {at})",
        ),
    ]
    if b.shape(i) == b.shape(x):
        ways += [("gather", f"torch.gather({x}, {at}, {long})")] * 4
    if len(b.shape(x)) == 2 and b.dtype(x) in FLOATS:
        rows = i if safe == i else f"({i} % {b.size(x, 0)})"
        ways += [("embedding", f"F.embedding({rows}, {x})")] * 4
    b.add(*b.rng.choice(ways), may_raise=raw)


def scattered(b: Builder) -> None:
    """Writes by integer tensors, in place and not."""
    x = b.float(1)
    i = b.pick(*INTEGERS, fits=lambda shape: len(shape) >= 1)
    at = b.axis(x) % len(b.shape(x))
    if not b.least(x, at):
        raise Skip
    n = b.size(x, at)
    line = f"({i} % {n}).reshape(-1)[:2]"
    ways = [
        ("index_fill", f"{x}.index_fill({at}, {line}.to(i64), 0.5)"),
        ("index_add", f"{x}.index_add({at}, {line}, {x}.index_select({at}, {line}))"),
        (
            "index_put",
            f"{x}.index_put(({line},), torch.ones((), dtype={b.short(x)}), accumulate={b.rng.choice((True, False))})",
        ),
        ("slice_scatter", f"torch.slice_scatter({x}, {x}.narrow({at}, 0, 1) * 2, {at}, 0, 1)"),
        ("select_scatter", f"torch.select_scatter({x}, {x}.select({at}, 0) + 1, {at}, 0)"),
    ]
    if b.shape(i) == b.shape(x):
        long = f"({i} % {n}).to(i64)"
        ways += [("scatter_add", f"torch.scatter_add({x}, {at}, {long}, {x})")] * 3
        ways += [("scatter", f"torch.scatter({x}, {at}, {long}, 0.5)")] * 3
    if at:
        ways = [w for w in ways if w[0] != "index_put"]
    b.add(*b.rng.choice(ways))


def masked(b: Builder) -> None:
    """A write under a mask."""
    x = b.float(1)
    mask = b.partner(x, torch.bool)
    if mask == x or not b.shape(mask):  # a mask of rank 0 is a number to torch.export, which splits the model there
        raise Skip
    b.add("clone", f"{x}.clone()")
    y = b.names[-1]
    b.add(
        *b.rng.choice((("masked_fill_", f"{y}.masked_fill_({mask}, -1.0)"), ("setitem", f"{y}[{mask}] = 0.5"))),
        results=0,
    )


CONTRACTIONS: tuple[tuple[int, Callable[[Builder], None]], ...] = (
    (6, reduced),
    (3, found),
    (6, row),
    (7, product),
    (4, attention),
    (4, by_hand),
    (4, indexed),
    (3, scattered),
    (1, masked),
)
