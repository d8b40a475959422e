"""Placement of intermediates in the arena."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.rewrites.memory import ALIGNMENT, Interval, lower_bound, place


@st.composite
def intervals(draw: st.DrawFn) -> list[Interval]:
    steps = st.integers(0, 20)
    sizes = st.one_of(st.integers(0, 300), st.integers(0, 1 << 40))
    pairs = draw(st.lists(st.tuples(sizes, steps, steps), max_size=40))
    return [Interval(n, min(a, b), max(a, b)) for n, a, b in pairs]


@given(intervals())
def test_values_that_live_at_once_never_overlap(values: list[Interval]) -> None:
    placement = place(values)
    spans = [(at, at + x.nbytes) for at, x in zip(placement.offsets, values, strict=True)]
    for i, x in enumerate(values):
        assert spans[i][0] % ALIGNMENT == 0
        assert spans[i][1] <= placement.nbytes
        for j in range(i):
            if x.meets(values[j]):
                assert spans[i][1] <= spans[j][0] or spans[j][1] <= spans[i][0]


@given(intervals())
def test_the_arena_is_no_larger_than_all_values_side_by_side(values: list[Interval]) -> None:
    assert place(values).nbytes <= sum(-(-x.nbytes // ALIGNMENT) * ALIGNMENT for x in values)


def test_a_chain_needs_two_buffers() -> None:
    chain = [Interval(1024, i, i + 1) for i in range(50)]
    assert place(chain).nbytes == 2048


def test_a_gap_that_fits_is_used_before_the_arena_grows() -> None:
    stays, goes, late = Interval(4096, 0, 9), Interval(128, 0, 0), Interval(64, 1, 1)
    placement = place([stays, goes, late])
    assert placement.offsets[2] == placement.offsets[1]
    assert placement.nbytes == 4096 + 128


def test_nothing_to_place() -> None:
    assert place([]).nbytes == 0


def plainly(values: list[Interval]) -> list[int]:
    """What ``place`` does, said in the plainest way."""
    offsets: dict[int, int] = {}
    for i in sorted(range(len(values)), key=lambda i: (-values[i].nbytes, i)):
        met = sorted((offsets[j], offsets[j] + aligned(values[j])) for j in offsets if values[j].meets(values[i]))
        tops = [0]
        for _, end in met:
            tops.append(max(tops[-1], end))
        gaps = [(start - top, at) for at, ((start, _), top) in enumerate(zip(met, tops, strict=False))]
        fitting = [(gap, at) for gap, at in gaps if gap >= aligned(values[i])]
        offsets[i] = tops[min(fitting)[1]] if fitting else tops[-1]
    return [offsets[i] for i in range(len(values))]


def aligned(value: Interval) -> int:
    return -(-value.nbytes // ALIGNMENT) * ALIGNMENT


@given(intervals())
def test_the_fast_way_is_the_plain_way(values: list[Interval]) -> None:
    assert list(place(values).offsets) == plainly(values)


def test_the_fast_way_is_the_plain_way_for_many_values() -> None:
    # short and long lives, over many blocks of steps, more of them than are compared one by one
    drawn = random.Random(0)
    starts = [drawn.randrange(500) for _ in range(700)]
    lives = [drawn.choice([0, 1, 5, 100, 400]) for _ in starts]
    values = [
        Interval(drawn.choice([0, 64, drawn.randrange(9999)]), a, a + n) for a, n in zip(starts, lives, strict=True)
    ]
    assert list(place(values).offsets) == plainly(values)


@given(intervals())
def test_the_lower_bound_is_what_lives_at_the_fullest_step(values: list[Interval]) -> None:
    sizes = [-(-x.nbytes // ALIGNMENT) * ALIGNMENT for x in values]
    steps = range(22)
    assert lower_bound(values) == max(
        sum(size for x, size in zip(values, sizes, strict=True) if x.first <= step <= x.last) for step in steps
    )
    assert lower_bound(values) <= place(values).nbytes


@given(intervals())
@settings(derandomize=True, max_examples=300)
def test_the_arena_is_at_most_twice_what_must_live_at_once(values: list[Interval]) -> None:
    assert place(values).nbytes <= 2 * lower_bound(values)


def test_lifetimes_as_layers_have_them_waste_little() -> None:
    # a residual that lives through the layer, and what each kernel hands to the next
    sizes = [(768, 0, 4), (2304, 1, 2), (768, 2, 3), (768, 3, 7), (3072, 5, 6)]
    values = [Interval(4 * 128 * n, 7 * layer + a, 7 * layer + b) for layer in range(12) for n, a, b in sizes]
    assert place(values).nbytes <= 1.25 * lower_bound(values)
