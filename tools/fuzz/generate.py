"""Random whole programs of 5 to 40 operators."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .builder import FLOATS, INTEGERS, Builder, Skip, recorded
from .contractions import CONTRACTIONS
from .pointwise import POINTWISE
from .program import Program
from .shapes import SHAPES

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

FEWEST, MOST = 5, 40
MOST_OUTPUTS = 6
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16)
STEPS = (*POINTWISE, *SHAPES, *CONTRACTIONS)
KINDS = ("normal",) * 12 + ("whole",) * 4 + ("positive",) * 2 + ("edge", "large", "tiny")

Size = tuple[int, ...]  # one size for each call


def program_of(seed: int, number: int) -> Program:
    """Program ``number`` of a seed: always the same one."""
    return generate(random.Random(f"{seed}/{number}"))


def programs() -> SearchStrategy[Program]:
    """The strategy of random programs, for tests with hypothesis."""
    from hypothesis import strategies

    return strategies.randoms(use_true_random=False).map(generate)


def generate(rng: random.Random) -> Program:
    """A random program: of any sizes, with two calls that differ in them, or of fixed ones, with one call."""
    b = Builder(rng, 2 if rng.random() < 0.4 else 1)
    sources(b)
    wanted = rng.randint(FEWEST, MOST) if rng.random() < 0.3 else rng.randint(FEWEST, 16)
    weights, makers = zip(*STEPS, strict=True)
    for _ in range(8 * wanted):
        if len(b.steps) >= wanted or b.raising:
            break
        try:
            rng.choices(makers, weights)[0](b)
        except Skip:
            continue
    program = b.program(outputs(b))
    return program if attends_to_finite(program) else replace(program, calls=program.calls[:1])


def attends_to_finite(program: Program) -> bool:
    """Whether attention is of finite values in the second call too, which finds buffers as the first left them."""
    if len(program.calls) < 2 or not program.buffers or not any(s.op == "attention" for s in program.steps):
        return True
    values = recorded(program)
    return len(values) > 1 and all(bool(t.isfinite().all()) for t in values[1].values() if t.dtype in FLOATS)


def sources(b: Builder) -> None:
    """Inputs and buffers whose sizes go together."""
    calls = len(b.envs)
    batch, rows = (tuple(b.rng.sample(SIZES, calls)) for _ in range(2))
    width = (b.rng.choice((1, 2, 3, 4, 4, 6, 8, 8, 16)),) * calls
    other = (b.rng.choice((1, 2, 3, 4, 5, 8)),) * calls
    one = (1,) * calls
    main: tuple[tuple[Size, ...], ...] = ((rows, width), (batch, rows, width), (batch, other, rows, width))
    small = ((rows, width), (width,), (rows, one), (one, width), (width, width), (other, width), (), (batch, rows))
    give(b, "x0", b.rng.choice(main), b.usual)
    for i in range(1, b.rng.randint(2, 5)):
        whole = b.rng.random() < 0.2
        kind = b.rng.choice(INTEGERS) if whole else torch.bool if b.rng.random() < 0.1 else b.usual
        dtype = b.rng.choice(FLOATS) if kind == b.usual and b.rng.random() < 0.1 else kind
        give(b, f"x{i}", b.rng.choice((*main, *small, *small)), dtype)
    for i in range(b.rng.choice((0, 0, 1, 1, 2))):
        shapes = ((width, width), (width,), (other, width), (one, other, width))
        give(b, f"b{i}", b.rng.choice(shapes), b.usual, shared=True)


def give(b: Builder, name: str, shape: tuple[Size, ...], dtype: torch.dtype, shared: bool = False) -> None:
    """One source; a ``shared`` one has the same values in all calls, as buffers do."""
    kind = b.rng.choice(KINDS)
    calls = range(len(b.envs))
    if shared:
        value = b.values([size[0] for size in shape], dtype, kind)
        b.give(name, [value for _ in calls])
    else:
        b.give(name, [b.values([size[i] for size in shape], dtype, kind) for i in calls])


def outputs(b: Builder) -> list[str]:
    """What nothing else reads, and now and then an input, a value that is read too, a view of one, or one twice."""
    if b.raising:
        return [*b.names[-1:], b.raising]
    made = [t for step in b.steps for t in step.targets]
    unread = [t for t in made if t not in b.read]
    chosen = unread if len(unread) <= MOST_OUTPUTS else b.rng.sample(unread, MOST_OUTPUTS)
    if not chosen:
        chosen = [b.names[-1]]
    if b.rng.random() < 0.3:
        chosen = [*chosen, b.rng.choice(b.names)]
    if b.rng.random() < 0.15:
        name = b.rng.choice(chosen)
        rank = len(b.shape(name))
        chosen = [*chosen, b.rng.choice((name, f"{name}.transpose(0, -1)" if rank > 1 else f"{name}.unsqueeze(0)"))]
    return chosen
