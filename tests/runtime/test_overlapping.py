"""Which tensors of a call share memory that is written: by sorting, as by comparing all pairs."""

import random

import torch

from smelt.runtime.tensors import overlapping


def test_as_by_comparing_all_pairs() -> None:
    memory = torch.zeros(64)
    found = 0
    for seed in range(300):
        drawn = random.Random(seed)
        spans = [(start, start + drawn.randint(0, 8)) for start in (drawn.randint(0, 56) for _ in range(5))]
        written = [place for place in range(5) if drawn.random() < 0.4]
        pair = overlapping([memory[start:end] for start, end in spans], written)
        expected = any(
            max(spans[a][0], spans[b][0]) < min(spans[a][1], spans[b][1]) for a in written for b in range(5) if a != b
        )
        assert (pair is not None) == expected
        if pair is not None:
            found += 1
            a, b = pair
            assert a in written
            assert max(spans[a][0], spans[b][0]) < min(spans[a][1], spans[b][1])
    assert 50 < found < 250
