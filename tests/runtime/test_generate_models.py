"""``generate`` of compiled models: 64 tokens as in eager, for each family and kind of cache, padded and not."""

from functools import cache
from typing import Any

import pytest
import torch

import smelt

pytest.importorskip("transformers")

from .generative import CONFIGS, SOURCES, TOKENS, prompts, tiny, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")

# Llama has a file of its own
FAMILIES = [name for name in CONFIGS if name != "llama"]


@cache
def both(name: str) -> tuple[Any, Any]:
    """A family compiled, and as it is."""
    model = tiny(name)
    return smelt.compile(model), model


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_eager(name: str) -> None:
    """From one capture for the prompt and one for each token, without a fallback, and no byte of a cache copied.

    Windows of 16 tokens fill up, and slide by far more than once.
    """
    fast, model = both(name)
    for kind in ("static", "dynamic"):
        # padded first: a mask is then always given, so that there are no captures without one
        inputs = prompts(name, padded=True)
        found, expected = (tokens_of(x, inputs, cache_implementation=kind)[0] for x in (fast, model))
        assert torch.equal(found, expected)
        assert len(set(found[0].tolist())) > 5
    caches = fast.report().caches
    assert caches is not None
    assert (caches.calls, dict(caches.passed), caches.copied) == (2 * TOKENS, {}, 0)
    assert len(fast.entries) == (3 if name in SOURCES else 2)
    assert all(entry.executable.fallbacks == () for entry in fast.entries)


def test_beams_and_lookup_in_a_sliding_window() -> None:
    """Sequences change places in a cache that slides; tokens are taken back from it."""
    fast, model = both("mistral")
    inputs = prompts("mistral", padded=True)
    for how in ({"num_beams": 3}, {"num_beams": 3, "cache_implementation": "static"}):
        assert torch.equal(tokens_of(fast, inputs, **how)[0], tokens_of(model, inputs, **how)[0])
    alone = prompts("mistral", batch=1)
    how = {"prompt_lookup_num_tokens": 3}
    assert torch.equal(tokens_of(fast, alone, **how)[0], tokens_of(model, alone, **how)[0])


def test_beams_with_a_source() -> None:
    """The cache of the source changes places as well."""
    fast, model = both("t5")
    inputs = prompts("t5", padded=True)
    for how in ({"num_beams": 3}, {"num_beams": 3, "cache_implementation": "static"}):
        assert torch.equal(tokens_of(fast, inputs, **how)[0], tokens_of(model, inputs, **how)[0])
