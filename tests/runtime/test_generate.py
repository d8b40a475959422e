"""``generate`` of a compiled model: eager's tokens in every mode, caches written in place, the model left alone."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch

import smelt
from smelt.ir.errors import UnsupportedError

pytest.importorskip("transformers")

from transformers import DynamicCache, StaticCache, StoppingCriteria

from .generative import TOKENS, prompts, tiny, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def fast(llama: Any) -> Any:
    return smelt.compile(llama)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "static sampling": {"do_sample": True, "top_p": 0.9, "cache_implementation": "static"},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "static beams": {"num_beams": 3, "cache_implementation": "static"},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "chunks": {"prefill_chunk_size": 4},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_eager(llama: Any, fast: Any, mode: str, padded: bool) -> None:
    """And the generator of random numbers is left in the same state."""
    inputs = prompts("llama", padded=padded)
    before = fast.report().caches.calls if fast.entries else 0
    found, expected = (tokens_of(model, inputs, **MODES[mode]) for model in (fast, llama))
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert fast.report().caches.calls - before >= TOKENS - 1
    assert fast.report().caches.passed == {}


def test_one_capture_serves_prompts_and_one_each_token(fast: Any) -> None:
    """With a mask and without: two and two, for all modes, lengths and batches of the tests before."""
    for batch, length in ((1, 5), (3, 17)):
        tokens_of(fast, prompts("llama", batch, length), max_new_tokens=9)
    queries = sorted(entry.capture.graph.inputs[0].type.shape[1] == 1 for entry in fast.entries)
    assert queries == [False, False, True, True]
    assert all(entry.executable.fallbacks == () for entry in fast.entries)


ASSISTED: dict[str, dict[str, Any]] = {
    "assistant": {},
    "sampling": {"do_sample": True},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("mode", ASSISTED)
def test_assisted_decoding(llama: Any, fast: Any, mode: str) -> None:
    """Several tokens a call, of which some are taken back from the cache."""
    how = dict(ASSISTED[mode])
    helper = {} if mode == "lookup" else {"assistant_model": tiny("llama", seed=7)}
    inputs = prompts("llama", batch=1)
    found, expected = (tokens_of(model, inputs, **how, **helper) for model in (fast, llama))
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_a_compiled_assistant(llama: Any, fast: Any) -> None:
    """The model assists itself, so that every candidate is taken."""
    inputs = prompts("llama", batch=1)
    expected = tokens_of(llama, inputs)
    assert torch.equal(tokens_of(fast, inputs, assistant_model=fast)[0], expected[0])


class StopAt(StoppingCriteria):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] == self.token


def test_stopping(llama: Any, fast: Any) -> None:
    """At a token for the end, and at a criterion of the caller's."""
    inputs = prompts("llama")
    whole = tokens_of(llama, inputs)[0]
    end = int(whole[0, 30])
    for how in ({"eos_token_id": end}, {"stopping_criteria": [StopAt(end)], "pad_token_id": 0}):
        found, expected = (tokens_of(model, inputs, **how)[0] for model in (fast, llama))
        assert torch.equal(found, expected)
        assert found.shape[1] < whole.shape[1] or int(whole[1, -1]) != end


def test_what_is_returned_besides_tokens(llama: Any, fast: Any) -> None:
    """Scores, and a cache that holds what eager's does, in the same shapes."""
    how = {"return_dict_in_generate": True, "output_scores": True}
    for kind in ("static", "dynamic"):
        found, expected = (
            tokens_of(model, prompts("llama"), cache_implementation=kind, **how)[0] for model in (fast, llama)
        )
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
        same_cache(found.past_key_values, expected.past_key_values)


def same_cache(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.get_seq_length() == theirs.get_seq_length()
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-3, atol=1e-4)


def call(model: Any, ids: Any, cache: Any) -> Any:
    """A call as generate makes it, of tokens that follow what a cache holds."""
    past = 0 if cache is None else int(cache.get_seq_length())
    positions = torch.arange(past, past + ids.shape[1]).expand(ids.shape).contiguous()
    return model(ids, past_key_values=cache, position_ids=positions, use_cache=True, logits_to_keep=1)


# --- caches -----------------------------------------------------------------------------------------------------------


def test_no_byte_of_a_cache_is_copied(fast: Any) -> None:
    """Calls write to the layers' tensors where they are, and nothing is copied between calls."""
    inputs = prompts("llama")
    tokens_of(fast, inputs)
    before = fast.report().caches
    for kind in ("static", "dynamic"):
        tokens_of(fast, inputs, cache_implementation=kind)
    after = fast.report().caches
    assert after.copied == before.copied
    assert after.rewritten == 0
    assert after.calls == before.calls + 2 * TOKENS
    assert "bytes of keys and values in place" in " ".join(str(fast.report()).split())
    for entry in fast.entries:
        plan = entry.executable.plan
        assert len(plan.graph.mutations) == 4
        assert all(plan.is_in_place(mutation) for mutation in plan.graph.mutations)


def test_a_static_cache_keeps_its_tensors(llama: Any, fast: Any) -> None:
    cache = StaticCache(config=llama.config, max_cache_len=32)
    ids = prompts("llama")["input_ids"]
    call(fast, ids, cache)
    tensors = [(layer.keys, layer.values) for layer in cache.layers]
    for position in range(9, 20):
        call(fast, ids[:, :1], cache)
        assert cache.get_seq_length() == position + 1
    for layer, (keys, values) in zip(cache.layers, tensors, strict=True):
        assert layer.keys is keys
        assert layer.values is values
        assert bool((keys[:, :, :20] != 0).any(-1).all())
        assert not keys[:, :, 20:].any()


def test_a_position_beyond_a_static_cache(llama: Any, fast: Any) -> None:
    cache = StaticCache(config=llama.config, max_cache_len=10)
    ids = prompts("llama")["input_ids"]
    call(fast, ids, cache)
    call(fast, ids[:, :1], cache)
    with pytest.raises(IndexError):
        call(fast, ids[:, :1], cache)


@torch.no_grad()
def test_a_loop_of_ones_own(llama: Any, fast: Any) -> None:
    """The first call makes a cache, as in eager, those after it extend it; PyTorch may take over at any time."""
    ids = prompts("llama")["input_ids"]
    ours, theirs = call(fast, ids, None), call(llama, ids, None)
    for at in range(TOKENS):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-3, atol=1e-3)
        token = theirs.logits[:, -1:].argmax(-1)
        ours = call(llama if at % 7 == 3 else fast, token, ours.past_key_values)
        theirs = call(llama, token, theirs.past_key_values)
    same_cache(ours.past_key_values, theirs.past_key_values)


@torch.no_grad()
def test_a_cache_that_is_shared_copied_or_cropped(llama: Any, fast: Any) -> None:
    """A prompt's cache is used again: what one continuation writes, no other one sees, nor does an older view."""
    ids = prompts("llama")["input_ids"]
    prompt = call(fast, ids, None).past_key_values
    other = copy.deepcopy(prompt)
    seen = prompt.layers[0].keys
    kept = seen.clone()
    first = call(fast, ids[:, 3:6], prompt).logits
    again = call(fast, ids[:, 3:6], other).logits
    assert torch.equal(first, again)
    prompt.crop(-3)
    before = prompt.layers[0].keys  # held, so that it may not change
    other_tokens = call(fast, ids[:, 6:9], prompt).logits
    assert torch.equal(seen, kept)
    assert torch.equal(before, kept)
    expected = llama(ids, use_cache=True).past_key_values
    torch.testing.assert_close(other_tokens, call(llama, ids[:, 6:9], expected).logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_cropped_cache_that_is_held_elsewhere_is_not_overwritten(llama: Any, fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    cache = DynamicCache()
    call(fast, ids, cache)
    held = cache.layers[0].keys
    kept = held.clone()
    cache.crop(-4)
    call(fast, ids[:, :2], cache)
    assert torch.equal(held, kept)
    assert cache.get_seq_length() == 7


@torch.no_grad()
def test_a_growing_cache_grows(llama: Any, fast: Any) -> None:
    """Without knowing how long it will be: by half at a time, so that few bytes are copied."""
    ids = prompts("llama", batch=1)["input_ids"]
    before = fast.report().caches.moved
    ours, theirs = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
    for _ in range(20):
        found, expected = call(fast, ids, ours).logits, call(llama, ids, theirs).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    caches = fast.report().caches
    assert 0 < caches.moved - before < 3 * caches.nbytes


def test_kinds_that_kernels_do_not_write(llama: Any, fast: Any) -> None:
    """They run in PyTorch, and the report says so."""
    how: dict[str, Any] = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    inputs = prompts("llama", padded=True)
    found, expected = (tokens_of(model, inputs, **how)[0] for model in (fast, llama))
    assert torch.equal(found, expected)
    assert any("QuantizedCache" in reason for reason in fast.report().caches.passed)
    assert "64 calls with a cache ran in PyTorch" in " ".join(str(fast.report()).split())


def test_caches_are_not_kept_alive(llama: Any, fast: Any) -> None:
    cache = DynamicCache(config=llama.config)
    call(fast, prompts("llama")["input_ids"], cache)
    alive = weakref.ref(cache)
    del cache
    gc.collect()
    assert alive() is None


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_model_is_left_alone(llama: Any, fast: Any) -> None:
    """Its class, its methods, and what it generates are its own."""
    kind, names = type(llama), set(vars(llama))
    tokens_of(fast, prompts("llama"))
    assert type(llama) is kind
    assert "forward" not in vars(llama)
    assert set(vars(llama)) - names <= {"_previous_max_cache_length"}


def test_new_weights(llama: Any) -> None:
    """Captures for calls with caches are refreshed as all others."""
    model = copy.deepcopy(llama)
    fast = smelt.compile(model)
    inputs = prompts("llama")
    before = tokens_of(fast, inputs)[0]
    fast.load_state_dict(tiny("llama", seed=4).state_dict())
    after = tokens_of(fast, inputs)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, tokens_of(model, inputs)[0])


def test_training_mode(llama: Any) -> None:
    model = copy.deepcopy(llama).train()
    with pytest.raises(UnsupportedError, match="training mode"):
        smelt.compile(model).generate(**prompts("llama"))
