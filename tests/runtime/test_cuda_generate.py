"""``generate`` for a GPU that is played: prompts and tokens by graphs, caches written where they are."""

import copy

import pytest
import torch

import smelt

from .fake_gpu import TARGET, executable_of, playing
from .generative import prompts, tiny


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_tokens_are_eagers_and_each_is_one_replay(cache: str) -> None:
    model, given = tiny("llama"), prompts("llama", padded=True)
    eager = copy.deepcopy(model)
    options = {"max_new_tokens": 24, "do_sample": False, "cache_implementation": cache}
    with playing():
        fast = smelt.compile(model, target=TARGET)
        for _ in range(2):
            assert torch.equal(fast.generate(**given, **options), eager.generate(**given, **options))
        prompt, token = (executable_of(fast, number).graph_report() for number in range(2))
        assert token.replays + token.launched == 2 * 23
        assert token.launched == 4  # two of each cache
        assert (token.graphs, token.beside) == (1, 0)
        assert prompt.launched == 2
        caches = fast.report().caches
        assert caches is not None
        assert caches.rewritten == 0
