"""Models that return a cache, or are given one: what it holds is compared, and the caller's is left alone."""

from typing import Any

import pytest
import torch

import smelt
from smelt.runtime.verify_caches import copied, is_cache, tensors_of

pytest.importorskip("transformers")

from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from .decoder import IDS, model

__all__ = ["model"]  # which the tests here have


def test_what_a_returned_cache_holds_is_compared(model: Any) -> None:
    found = smelt.verify(smelt.compile(model), IDS)
    paths = [output.path for output in found.outputs]
    assert [p for p in paths if p.endswith((".keys", ".values"))] == [
        f"past_key_values[{layer}].{name}" for layer in range(2) for name in ("keys", "values")
    ]
    assert all(output.rmse is not None for output in found.outputs)
    assert found.reference == "the model in float64"


def test_a_cache_of_the_caller_is_left_as_it_was(model: Any) -> None:
    with torch.no_grad():
        cache = model(IDS).past_key_values
    kept = [layer.keys.clone() for layer in cache.layers]
    smelt.verify(smelt.compile(model), IDS[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == IDS.shape[1]
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, kept, strict=True))


def test_a_cache_that_differs_is_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = smelt.compile(model)
    run = type(fast)._run

    def spoilt(self: Any, args: Any, kwargs: Any) -> Any:
        found = run(self, args, kwargs)
        found.past_key_values.layers[1].values.add_(1.0)
        return found

    monkeypatch.setattr(type(fast), "_run", spoilt)
    with pytest.raises(smelt.VerifyError, match=r"the worst: past_key_values\[1\].values"):
        smelt.verify(fast, IDS)


def test_both_parts_of_a_cache(model: Any) -> None:
    with torch.no_grad():
        own = model(IDS).past_key_values
    both = EncoderDecoderCache(own, DynamicCache())
    assert is_cache(both)
    assert not is_cache(IDS)
    names = [name for name, _ in tensors_of("cache", both)]
    assert names[0] == "cache.self_attention_cache[0].keys"
    wide = copied(both, wide=True)
    assert wide.self_attention_cache.layers[0].keys.dtype == torch.float64
    assert own.layers[0].keys.dtype == torch.float32


def test_faults_in_generate_are_no_reason_to_run_in_pytorch(model: Any) -> None:
    fast = smelt.compile(model, expect={"attention": 99})
    with pytest.raises(smelt.ExpectationError):
        fast.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)


def test_a_call_that_is_no_single_graph_says_why(model: Any) -> None:
    with pytest.raises(smelt.UnsupportedError, match="use_cache=False"):
        smelt.compile(model).explain((IDS,))
