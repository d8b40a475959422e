"""``kv_cache_dtype``: tokens and caches are those of the model in PyTorch with caches that round what is written."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import smelt
from smelt.ir.errors import UnsupportedError
from smelt.runtime.generation.storage import storage_for

pytest.importorskip("transformers")

from transformers import DynamicCache, StaticCache

from . import rounding
from .generative import TOKENS, prompts, tiny, tokens_of
from .rounding import KINDS
from .test_generate import call

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")

rounded = rounding.to_bfloat16


def expected_of(model: Any, inputs: Any, **how: Any) -> Any:
    return rounding.expected_of(model, inputs, rounded, **how)


def reference(model: Any, ids: Tensor, cache: Any) -> Tensor:
    return rounding.reference(model, ids, cache, rounded)


def nearly_equal(found: Tensor, expected: Tensor) -> None:
    """Up to a few numbers in the middle between two of bfloat16, which fall to the other side."""
    assert found.dtype == expected.dtype
    assert torch.equal(found, rounded(found))
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-3)
    assert float((found != expected).float().mean()) < 0.01


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def fast(llama: Any) -> Any:
    return smelt.compile(llama, kv_cache_dtype="bfloat16")


MODES: dict[str, dict[str, Any]] = {**rounding.MODES, "chunks": {"prefill_chunk_size": 4}}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_rounded_caches(llama: Any, fast: Any, mode: str, padded: bool) -> None:
    inputs = prompts("llama", padded=padded)
    before = fast.report().caches.calls if fast.entries else 0
    assert torch.equal(tokens_of(fast, inputs, **MODES[mode])[0], expected_of(llama, inputs, **MODES[mode]))
    assert fast.report().caches.calls - before >= TOKENS - 1
    assert fast.report().caches.passed == {}


def test_rounding_matters(llama: Any) -> None:
    """Or the tests here could not fail."""
    inputs = prompts("llama")
    assert not torch.equal(tokens_of(llama, inputs)[0], expected_of(llama, inputs))


@pytest.mark.parametrize(("name", "kind"), [("gemma2", "dynamic"), ("gemma2", "static"), ("t5", "dynamic")])
def test_windows_and_sources(name: str, kind: str, other_models: dict[str, Any]) -> None:
    """Windows slide over rounded slots; the keys and values of a source stay as the model made them."""
    model, fast = other_models[name]
    inputs = prompts(name, padded=True)
    found = tokens_of(fast, inputs, cache_implementation=kind)[0]
    expected = expected_of(model, inputs, sources=name != "t5", cache_implementation=kind)
    assert torch.equal(found, expected)
    assert fast.report().caches.passed == {}


@pytest.fixture(scope="module")
def other_models() -> dict[str, Any]:
    made = {name: tiny(name) for name in ("gemma2", "t5")}
    return {name: (model, smelt.compile(model, kv_cache_dtype="bfloat16")) for name, model in made.items()}


@pytest.mark.parametrize("how", [{"assistant": True}, {"prompt_lookup_num_tokens": 3}])
def test_assisted_decoding(llama: Any, fast: Any, how: dict[str, Any]) -> None:
    """Several tokens a call, of which some are taken back from the cache."""
    if "assistant" in how:
        how = {"assistant_model": tiny("llama", seed=7)}
    inputs = prompts("llama", batch=1)
    found = tokens_of(fast, inputs, **how)[0]
    assert torch.equal(found, expected_of(llama, inputs, **how))


# --- the cache as others see it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_others_see_is_rounded_and_in_the_dtype_of_the_model(llama: Any, fast: Any, kind: str) -> None:
    how = {"return_dict_in_generate": True, "cache_implementation": kind}
    found = tokens_of(fast, prompts("llama"), **how)[0].past_key_values
    expected = expected_of(llama, prompts("llama"), **how).past_key_values
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert isinstance(ours, type(theirs))
        for name in ("keys", "values"):
            nearly_equal(getattr(ours, name), getattr(theirs, name))


def test_half_the_bytes(llama: Any, fast: Any) -> None:
    """And none is copied, neither between calls nor in them."""
    ids = prompts("llama")["input_ids"]
    call(fast, ids, cache := StaticCache(config=llama.config, max_cache_len=20))
    before = fast.report().caches
    call(fast, ids[:, :1], cache)
    after = fast.report().caches
    assert after.nbytes == 2 * 2 * 2 * 2 * 20 * 8 * 2  # layers, both, sequences, heads, slots, a head, bytes
    assert (after.calls - before.calls, after.copied - before.copied) == (1, 0)
    assert "keys and values, rounded to bfloat16," in " ".join(str(fast.report()).split())
    for entry in fast.entries:
        plan = entry.executable.plan
        assert all(plan.is_in_place(mutation) for mutation in plan.graph.mutations)
        assert entry.executable.fallbacks == ()


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_pytorch_may_take_over_at_any_time(llama: Any, fast: Any, static: bool) -> None:
    """It finds and leaves a cache of transformers' own, which is rounded anew."""
    ids = prompts("llama")["input_ids"]
    ours, theirs = (
        StaticCache(config=llama.config, max_cache_len=80) if static else DynamicCache(config=llama.config)
        for _ in range(2)
    )
    found, expected = call(fast, ids, ours).logits, reference(llama, ids, theirs)
    for at in range(24):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        token = expected[:, -1:].argmax(-1)
        run = reference if at % 7 == 3 else lambda model, *given: call(fast, *given).logits
        found, expected = run(llama, token, ours), reference(llama, token, theirs)
        if at % 7 == 3:
            assert all(type(layer) in KINDS for layer in ours.layers)
    assert ours.get_seq_length() == theirs.get_seq_length()
    nearly_equal(ours.layers[1].values, theirs.layers[1].values)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_is_written_to_a_cache_counts(llama: Any, fast: Any, kind: str) -> None:
    """In place, to what the cache shows, or by giving it other tensors."""
    ids = prompts("llama")["input_ids"]
    for write in (_zero, _replace):
        caches = [
            DynamicCache(config=llama.config) if kind == "dynamic" else StaticCache(llama.config, max_cache_len=20)
            for _ in range(2)
        ]
        call(fast, ids, caches[0]), reference(llama, ids, caches[1])
        for cache in caches:
            write(cache.layers[0])
        found, expected = call(fast, ids[:, :1], caches[0]).logits, reference(llama, ids[:, :1], caches[1])
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@torch.inference_mode()
def test_in_inference_mode(llama: Any, fast: Any) -> None:
    """Where tensors do not say whether they were written to."""
    ids = prompts("llama")["input_ids"]
    ours, theirs = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
    call(fast, ids, ours), reference(llama, ids, theirs)
    nearly_equal(ours.layers[0].keys, theirs.layers[0].keys)
    for cache in (ours, theirs):
        _zero(cache.layers[0])
    found, expected = call(fast, ids[:, :1], ours).logits, reference(llama, ids[:, :1], theirs)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def _zero(layer: Any) -> None:
    layer.keys[:, :, 2:5] = 0


def _replace(layer: Any) -> None:
    layer.values = layer.values.flip(1).contiguous()


@torch.no_grad()
def test_copied_cropped_reordered_reset(llama: Any, fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    ours, theirs = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
    call(fast, ids, ours), reference(llama, ids, theirs)
    copied = copy.deepcopy(ours)
    for change in (
        lambda cache: cache.crop(-3),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_select_indices(torch.tensor([1, 1])),
        lambda cache: cache.reset(),
    ):
        for cache in (ours, theirs):
            change(cache)
        assert ours.get_seq_length() == theirs.get_seq_length()
        found, expected = call(fast, ids[:, 4:7], ours).logits, reference(llama, ids[:, 4:7], theirs)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        nearly_equal(ours.layers[0].keys, theirs.layers[0].keys)
    assert copied.get_seq_length() == ids.shape[1]
    again = DynamicCache(config=llama.config)
    call(fast, ids, again)
    assert torch.equal(call(fast, ids[:, :1], copied).logits, call(fast, ids[:, :1], again).logits)


@torch.no_grad()
def test_a_static_cache_is_reset_in_place(llama: Any, fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    cache, other = (StaticCache(config=llama.config, max_cache_len=20) for _ in range(2))
    call(fast, ids.flip(0), cache)
    cache.reset()
    assert not cache.layers[0].keys.any()
    assert torch.equal(call(fast, ids, cache).logits, call(fast, ids, other).logits)


def test_other_kinds_of_caches_run_in_pytorch(llama: Any, fast: Any) -> None:
    how: dict[str, Any] = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    inputs = prompts("llama", padded=True)
    found, expected = (tokens_of(model, inputs, **how)[0] for model in (fast, llama))
    assert torch.equal(found, expected)
    assert any("QuantizedCache" in reason for reason in fast.report().caches.passed)


# --- verify, and what is refused --------------------------------------------------------------------------------------


def test_verify_holds_it_to_rounded_caches(llama: Any, fast: Any) -> None:
    ids = prompts("llama")["input_ids"]
    found = smelt.verify(fast, ids, attention_mask=torch.ones_like(ids), use_cache=True)
    assert found.reference == "the model with rounded caches, in float64"
    assert "rounding the caches moved logits by" in str(found)
    with torch.no_grad():
        cache = llama(ids, use_cache=True).past_key_values
    smelt.verify(fast, ids[:, :1], past_key_values=cache, use_cache=True)


def test_verify_finds_a_cache_that_is_wrong(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = type(fast)._run

    def spoilt(self: Any, args: Any, kwargs: Any) -> Any:
        found = run(self, args, kwargs)
        found.past_key_values.layers[1].values[0, 0, 0].mul_(1.05)
        return found

    monkeypatch.setattr(type(fast), "_run", spoilt)
    with pytest.raises(smelt.VerifyError, match=r"the worst: past_key_values\[1\].values"):
        smelt.verify(fast, prompts("llama")["input_ids"], use_cache=True)


def test_what_is_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype is 'float8'"):
        smelt.compile(llama, kv_cache_dtype="float8")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no model of transformers with a cache"):
        smelt.compile(torch.nn.Linear(2, 2).eval(), kv_cache_dtype="bfloat16")


def test_a_model_of_that_dtype_needs_no_rounding() -> None:
    assert storage_for("bfloat16", torch.bfloat16) is storage_for(None, torch.float32)
    assert storage_for("bfloat16", torch.float16).narrow
