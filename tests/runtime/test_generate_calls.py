"""Calls of one's own with a cache: the output as the model's, and calls that do not fit leave nothing behind."""

from contextlib import suppress
from typing import Any

import pytest
import torch

import smelt
from smelt.ir.errors import CaptureError, UnsupportedError
from smelt.runtime.generation.caches import _room
from smelt.tools.zoo import build_t5

pytest.importorskip("transformers")

from transformers.cache_utils import DynamicCache, StaticCache

from .decoder import IDS, model

__all__ = ["model"]  # which the tests here have


def kinds(found: Any) -> list[str]:
    return [type(value).__name__ for value in found]


def test_outputs_are_in_the_order_of_the_models(model: Any) -> None:
    fast = smelt.compile(model)
    with torch.no_grad():
        for more in ({"output_hidden_states": True}, {"return_dict": False}):
            ours, eager = fast(IDS, **more), model(IDS, **more)
            assert type(ours) is type(eager)
            both = [x if isinstance(x, tuple) else x.to_tuple() for x in (ours, eager)]
            assert kinds(both[0]) == kinds(both[1])
    # transformers installs hooks for the first one, which is no state that anything reads
    assert fast.report().caches.passed == {}  # type: ignore[union-attr]


@torch.no_grad()
def test_calls_after_one_that_pytorch_ran(model: Any) -> None:
    """It may have set something that settles what the model is, and calls after it are captured as it is then."""
    fast = smelt.compile(model)
    for _ in range(2):
        fast(IDS, output_attentions=True, past_key_values=DynamicCache(config=model.config))
        torch.testing.assert_close(fast(IDS).logits, model(IDS).logits)
    caches = fast.report().caches
    assert caches is not None
    assert (caches.calls, sum(caches.passed.values())) == (2, 2)


def test_outputs_of_an_encoder_and_a_decoder() -> None:
    torch.manual_seed(0)
    model: Any = build_t5(True).eval()
    fast = smelt.compile(model)
    with torch.no_grad():
        given = {"input_ids": IDS, "decoder_input_ids": IDS[:, :2], "use_cache": True}
        assert list(fast(**given)) == list(model(**given))


def test_a_call_that_is_refused_does_not_refuse_others(model: Any) -> None:
    fast = smelt.compile(model)
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask).logits
        for wrong in (mask[:1, :2], mask[:, :3]):
            with suppress(Exception):  # as PyTorch takes it
                fast(IDS, attention_mask=wrong)
        torch.testing.assert_close(fast(IDS, attention_mask=mask).logits, expected)
        caches = fast.report().caches
        assert caches is not None
        assert caches.calls >= 1


def test_the_length_of_generate_is_not_that_of_later_calls(model: Any) -> None:
    fast, mask, held = smelt.compile(model), torch.ones_like(IDS), []
    for generated in (None, 100):
        if generated is not None:
            fast.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=generated, do_sample=False)
        with torch.no_grad():
            cache = fast(IDS, attention_mask=mask).past_key_values
        held.append(cache.layers[0].keys.untyped_storage().nbytes())
    assert held[0] == held[1]


def test_a_static_cache_is_as_it_was_where_pytorch_runs_the_call(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.runtime.generation.caches import Unfit
    from smelt.runtime.generation.calls import CachedCalls

    def refuse(self: Any, *args: Any) -> Any:
        raise Unfit("for the test")

    monkeypatch.setattr(CachedCalls, "_run", refuse)
    fast, cache = smelt.compile(model), StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        ours = fast(IDS, past_key_values=cache).logits
        torch.testing.assert_close(ours, model(IDS).logits)
    assert cache.get_seq_length() == IDS.shape[1]


@torch.no_grad()
def test_a_cache_of_other_sequences_is_refused_as_in_eager_and_left_as_it_was(model: Any) -> None:
    """Where the cache has to grow for it: one row would be repeated, and more of them stop half way."""
    fast = smelt.compile(model)
    for rows in (1, 2):
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for cache, called in zip(caches, (fast, model), strict=True):
            called(IDS[:rows], past_key_values=cache)
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                called(torch.full((3, 100), 5), past_key_values=cache)
        found, expected = (
            called(torch.full((rows, 90), 7), past_key_values=cache).logits
            for cache, called in zip(caches, (fast, model), strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_mask_of_one_row_is_for_all(model: Any) -> None:
    fast, mask = smelt.compile(model), torch.ones_like(IDS[:1])
    torch.testing.assert_close(fast(IDS, attention_mask=mask).logits, model(IDS, attention_mask=mask).logits)


def test_room_for_long_texts() -> None:
    """What is said to be needed is made at once up to a bound, and by half from there on: never token by token."""
    needed, asked, made, room = 100, 20_000, 0, 0
    while needed < asked:
        if needed > room:
            room = _room(needed, asked)
            made += 1
        assert needed <= room <= asked
        needed += 1
    assert made < 8
    assert [_room(10, 0), _room(5000, 0), _room(9, 10)] == [64, 7500, 10]


@torch.no_grad()
def test_a_config_that_does_not_say_what_caches_are(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch runs the first call, and tells."""

    def refuse(config: Any) -> Any:
        raise ValueError("it differs from layer to layer")

    monkeypatch.setattr("smelt.runtime.generation.shapes._heads_and_width", refuse)
    fast, cache = smelt.compile(model), DynamicCache(config=model.config)
    for _ in range(2):
        found = fast(IDS, past_key_values=cache).logits
    torch.testing.assert_close(found, model(torch.cat((IDS, IDS), 1)).logits[:, 4:], rtol=1e-3, atol=1e-3)
    caches = fast.report().caches
    assert caches is not None
    assert (caches.calls, sum(caches.passed.values())) == (1, 1)


def test_what_takes_one_capture_says_that_a_cache_is_in_the_way(model: Any) -> None:
    """For export, explain, tune, bisect: by the argument that helps, and it does."""
    fast = smelt.compile(model)
    for refused in (lambda: fast.explain((IDS,)), lambda: smelt.export(model, (IDS,))):
        with pytest.raises(UnsupportedError, match=r'returns a cache.*give use_cache=False.*{"use_cache": False}'):
            refused()
    assert fast.entry_for((IDS,), {"use_cache": False})[0].capture.graph.inputs


@torch.no_grad()
def test_what_an_encoder_returned_besides_is_passed_on() -> None:
    torch.manual_seed(0)
    model: Any = build_t5(True).eval()
    encoded = model.get_encoder()(IDS, output_hidden_states=True)
    given = {"encoder_outputs": encoded, "decoder_input_ids": IDS[:, :2], "use_cache": True}
    found, expected = smelt.compile(model)(**given), model(**given)
    assert list(found) == list(expected)
    assert found.encoder_hidden_states is encoded.hidden_states


@torch.no_grad()
@pytest.mark.parametrize("error", [IndexError("a mask of slots"), CaptureError("it branches on values")])
def test_calls_that_cannot_be_captured_run_in_pytorch(
    model: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they begin a text or go on with one."""

    def refuse(self: Any, *args: Any) -> Any:
        raise error

    monkeypatch.setattr("smelt.runtime.generation.running.Form.find", refuse)
    fast, found, expected = smelt.compile(model), None, None
    for _ in range(2):
        found, expected = (
            called(IDS, past_key_values=before and before.past_key_values)
            for called, before in ((fast, found), (model, expected))
        )
        assert torch.equal(found.logits, expected.logits)
    caches = fast.report().caches
    assert caches is not None
    assert (caches.calls, sum(caches.passed.values())) == (0, 2)


def test_a_mask_of_three_axes_runs_in_pytorch(model: Any) -> None:
    fast = smelt.compile(model)
    mask = torch.ones(*IDS.shape, IDS.shape[1])
    with torch.no_grad():
        ours, eager = (m(IDS, attention_mask=mask, use_cache=True).logits for m in (fast, model))
        torch.testing.assert_close(ours, eager)
    assert fast.report().caches.passed == {"the attention mask has 3 axes": 1}  # type: ignore[union-attr]
    assert not fast.is_split


@torch.no_grad()
def test_a_mask_of_three_axes_without_a_cache(model: Any) -> None:
    """Dynamo, which would split the model there, fails at it."""
    fast: Any = smelt.compile(model)
    mask = torch.ones(*IDS.shape, IDS.shape[1])
    with pytest.warns(UserWarning, match="no one graph in such a call.* run in PyTorch"):
        ours = fast(IDS, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(ours, model(IDS, attention_mask=mask, use_cache=False).logits)
    with pytest.raises(NotImplementedError, match="for 'Float'"):  # the model's own error
        fast(IDS, attention_mask=mask.tril(), use_cache=False)
    assert not fast.is_split
