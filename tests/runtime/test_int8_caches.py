"""``kv_cache_dtype="int8"``: a scale for each head and position; tokens are those of PyTorch with the same rounding."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import smelt
from smelt.runtime.generation.narrow import parts_as, widen
from smelt.runtime.generation.storage import STORAGES

pytest.importorskip("transformers")

from transformers import DynamicCache, StaticCache

from . import rounding
from .generative import TOKENS, prompts, tiny, tokens_of
from .rounding import MODES, to_int8
from .test_generate import call

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def fast(llama: Any) -> Any:
    return smelt.compile(llama, kv_cache_dtype="int8")


def nearly_equal(found: Tensor, expected: Tensor) -> None:
    """Up to a few numbers in the middle between two, which fall to the other side: by one step of their row."""
    assert found.dtype == expected.dtype
    step = expected.abs().amax(-1, keepdim=True) / 127
    assert bool(((found - expected).abs() <= 1.01 * step).all())
    assert float(((found - expected).abs() > 0.01 * step).float().mean()) < 0.01


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_rounded_caches(llama: Any, fast: Any, mode: str) -> None:
    inputs = prompts("llama", padded=True)
    found = tokens_of(fast, inputs, **MODES[mode])[0]
    assert torch.equal(found, rounding.expected_of(llama, inputs, to_int8, **MODES[mode]))
    assert fast.report().caches.passed == {}


def test_windows() -> None:
    model = tiny("gemma2")
    fast, inputs = smelt.compile(model, kv_cache_dtype="int8"), prompts("gemma2", padded=True)
    assert torch.equal(tokens_of(fast, inputs)[0], rounding.expected_of(model, inputs, to_int8))
    assert fast.report().caches.passed == {}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_others_see(llama: Any, fast: Any, kind: str) -> None:
    how = {"return_dict_in_generate": True, "cache_implementation": kind}
    inputs = prompts("llama", padded=True)
    found = tokens_of(fast, inputs, **how)[0].past_key_values
    expected = rounding.expected_of(llama, inputs, to_int8, **how).past_key_values
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        nearly_equal(ours.keys, theirs.keys)
        nearly_equal(ours.values, theirs.values)


def test_bytes_and_kernels(llama: Any, fast: Any) -> None:
    """A byte for each number and four for each row; all of it written in place, nothing read but by the attention."""
    ids = prompts("llama")["input_ids"]
    call(fast, ids, cache := StaticCache(config=llama.config, max_cache_len=20))
    before = fast.report().caches
    call(fast, ids[:, :1], cache)
    after = fast.report().caches
    assert after.nbytes == 2 * 2 * 2 * 2 * 20 * (8 + 4)  # layers, both, sequences, heads, slots
    assert (after.calls - before.calls, after.copied - before.copied, after.dtype) == (1, 0, "int8")
    for entry in fast.entries:
        plan = entry.executable.plan
        assert len(plan.graph.mutations) == 2 * 4
        assert all(plan.is_in_place(mutation) for mutation in plan.graph.mutations)
        assert entry.executable.fallbacks == ()
    assert "mul, attention" in str(fast.report())


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_pytorch_may_take_over_at_any_time(llama: Any, fast: Any, static: bool) -> None:
    ids = prompts("llama")["input_ids"]
    ours, theirs = (
        StaticCache(config=llama.config, max_cache_len=80) if static else DynamicCache(config=llama.config)
        for _ in range(2)
    )
    found, expected = call(fast, ids, ours).logits, rounding.reference(llama, ids, theirs, to_int8)
    for at in range(12):
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
        token = expected[:, -1:].argmax(-1)
        found = rounding.reference(llama, token, ours, to_int8) if at % 5 == 3 else call(fast, token, ours).logits
        expected = rounding.reference(llama, token, theirs, to_int8)
    nearly_equal(ours.layers[1].values, theirs.layers[1].values)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("others_first", [False, True])
def test_models_of_other_storages_may_take_over(llama: Any, fast: Any, static: bool, others_first: bool) -> None:
    """Each finds what the other one stored in its own way, as it finds the numbers of a plain cache."""
    ids, other = prompts("llama")["input_ids"], smelt.compile(llama, kv_cache_dtype="bfloat16")
    cache = StaticCache(config=llama.config, max_cache_len=20) if static else DynamicCache(config=llama.config)
    models = [other, fast] if others_first else [fast, other]
    for at, part in enumerate((ids[:, :-2], ids[:, -2:-1], ids[:, -1:])):
        plain = copy.deepcopy(cache)
        for layer in plain.layers:
            widen(layer)
        found, expected = call(models[at % 2], part, cache).logits, call(models[at % 2], part, plain).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        name = "int8" if models[at % 2] is fast else "bfloat16"
        assert {layer.storage.name for layer in cache.layers} == {name}
    for layer, like in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(layer.keys, like.keys)
    assert fast.report().caches.passed == other.report().caches.passed == {}


@torch.no_grad()
def test_a_copy_is_not_rounded_again(llama: Any, fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    call(fast, ids, cache := DynamicCache(config=llama.config))
    before, copied = cache.layers[0].parts, fast.report().caches.copied
    other = copy.deepcopy(cache)
    assert parts_as(other.layers[0], STORAGES["int8"]) is other.layers[0].parts
    found, expected = call(fast, ids[:, :1], other).logits, call(fast, ids[:, :1], cache).logits
    assert torch.equal(found, expected)
    assert torch.equal(other.layers[0].parts[0][:, :, : before[0].shape[2]], before[0])
    assert fast.report().caches.copied > copied  # into memory with room


@torch.no_grad()
def test_cropped_and_reordered(llama: Any, fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    ours, theirs = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
    call(fast, ids, ours), rounding.reference(llama, ids, theirs, to_int8)
    for change in (lambda cache: cache.crop(-3), lambda cache: cache.reorder_cache(torch.tensor([1, 0]))):
        for cache in (ours, theirs):
            change(cache)
        call(fast, ids[:, 4:7], ours), rounding.reference(llama, ids[:, 4:7], theirs, to_int8)
        assert ours.get_seq_length() == theirs.get_seq_length()
        for layer, other in zip(ours.layers, theirs.layers, strict=True):
            nearly_equal(layer.keys, other.keys)


def test_verify(fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    found = smelt.verify(fast, ids, attention_mask=torch.ones_like(ids), use_cache=True)
    assert found.reference == "the model with rounded caches, in float64"


@pytest.mark.parametrize("row", [[0.0] * 4, [1e-45, -1e-44, 0.0, 1e-43], [3e38, -3e38, 1.0, 0.0]])
def test_rows_of_any_size(row: list[float]) -> None:
    x = torch.tensor(row).reshape(1, 1, 1, 4)
    storage = STORAGES["int8"]
    found = storage.decode(storage.encode(x), torch.float32)
    assert bool(((found - x).abs() <= x.abs().max() / 250 + 1e-42).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_nan(value: float) -> None:
    x = torch.tensor([1.0, value, 2.0]).reshape(1, 1, 1, 3)
    storage = STORAGES["int8"]
    assert bool(storage.decode(storage.encode(x), torch.float32).isnan().all())


def test_tokens(llama: Any) -> None:
    """Or the tests here could not fail."""
    inputs = prompts("llama", padded=True)
    exact, rounded = tokens_of(llama, inputs)[0], rounding.expected_of(llama, inputs, to_int8)
    assert exact.shape[1] == inputs["input_ids"].shape[1] + TOKENS
    assert not torch.equal(exact, rounded)
