"""Models that keep something on themselves between calls, which a captured step would hold as a constant."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.frontend.export import capture
from smelt.frontend.untouched import WritesStateError, untouched, watched
from smelt.ir.errors import CaptureError

pytest.importorskip("transformers")

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from .generative import DECODER, VOCAB, prompts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
STEPS = 3


class KeepsTensor(LlamaForCausalLM):  # type: ignore[misc]
    """The forward of a prompt stores what that of a token reads, as in Qwen2-VL."""

    kept: Any = 0

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        out = super().forward(input_ids=input_ids, past_key_values=past_key_values, **more)
        if input_ids.shape[1] > 1:
            self.kept = self.seen(input_ids)
        else:
            out.logits = out.logits + self.kept * torch.arange(VOCAB) * 0.1
        return out

    def seen(self, input_ids: Tensor) -> Any:
        return input_ids[:, :1, None] * 0.5


class KeepsNumber(KeepsTensor):
    def seen(self, input_ids: Tensor) -> Any:
        return input_ids.shape[1]


def made(model_class: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(LlamaConfig(**DECODER | {"num_hidden_layers": 1})).eval()
    model.generation_config.eos_token_id = None
    return model


def loop(model: Any, ids: Tensor) -> Tensor:
    """The logits of some tokens after a prompt [B, S], each the likeliest one."""
    out = model(ids, use_cache=True)
    found = [out.logits[:, -1]]
    for _ in range(STEPS):
        out = model(found[-1].argmax(-1)[:, None], past_key_values=out.past_key_values)
        found.append(out.logits[:, -1])
    return torch.stack(found)


class KeepsOnce(KeepsTensor):
    """A tensor that the first call computes, as the frequencies of Phi-3's long contexts."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **more: Any) -> Any:
        out = LlamaForCausalLM.forward(self, input_ids=input_ids, past_key_values=past_key_values, **more)
        if self.kept is None:
            self.kept = torch.arange(VOCAB) * 0.1
        self.kept = self.kept.to(out.logits.device)
        out.logits = out.logits + self.kept
        return out

    kept: Any = None


def test_a_tensor_that_is_computed_once() -> None:
    reference, model = made(KeepsOnce), made(KeepsOnce)
    fast: Any = smelt.compile(model)
    for length in (9, 5):
        ids = prompts("llama", length=length)["input_ids"]
        with torch.no_grad():
            torch.testing.assert_close(loop(fast, ids), loop(reference, ids))
    assert not fast.report().caches.passed


@pytest.mark.parametrize("model_class", [KeepsTensor, KeepsNumber])
def test_what_a_prompt_stored_is_read(model_class: Any) -> None:
    reference, model = made(model_class), made(model_class)
    fast: Any = smelt.compile(model)
    for length in (9, 5):
        ids = (prompts("llama", length=length)["input_ids"] + length) % VOCAB
        how = {"input_ids": ids, "max_new_tokens": STEPS, "do_sample": False}
        assert torch.equal(fast.generate(**how), reference.generate(**how))
        with torch.no_grad():
            torch.testing.assert_close(loop(fast, ids), loop(reference, ids))
    (reason,) = fast.report().caches.passed
    assert reason == "it cannot be captured: it keeps kept from call to call"
    assert not fast.entries


def test_a_prompt_that_pytorch_ran_is_looked_at() -> None:
    """Attention weights were asked for, so that nothing of it is traced."""
    model = made(KeepsNumber)
    fast: Any = smelt.compile(model)
    with torch.no_grad():
        for length in (9, 5):
            ids = prompts("llama", length=length)["input_ids"]
            out = fast(ids, past_key_values=DynamicCache(config=model.config), output_attentions=True)
            ours = fast(ids[:, :1], past_key_values=out.past_key_values).logits
            out = model(ids, use_cache=True)
            torch.testing.assert_close(ours, model(ids[:, :1], past_key_values=out.past_key_values).logits)


def test_it_is_an_error_where_fallbacks_are() -> None:
    fast: Any = smelt.compile(made(KeepsNumber), fallback="error")
    for _ in range(2):
        with pytest.raises(CaptureError, match="keeps kept from call to call"):
            fast.generate(**prompts("llama"), max_new_tokens=2)


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.seen: list[Any] = []
        self.limits = {"least": (0, 1)}

    def forward(self, x: Tensor, what: str) -> Tensor:
        if what == "appends":
            self.seen.append(x)
        elif what == "sets":
            self.inner.last = x  # type: ignore[assignment]
        elif what == "repeats":
            self.limits = {"least": (0, 1)}
        return x + 1


@pytest.mark.parametrize(("what", "names"), [("appends", ["seen"]), ("sets", ["inner.last"]), ("repeats", [])])
def test_attributes_that_are_set_are_told(what: str, names: list[str]) -> None:
    model, x = Keeping().eval(), torch.ones(2)
    with untouched(model) as written:
        model(x, what)
    assert written == names
    with watched(model) as written:
        model(x, what)
    assert written == names
    model = Keeping().eval()
    if names:
        with pytest.raises(WritesStateError, match=names[0]):
            capture(model, (x, what), stateless=True)
    else:
        capture(model, (x, what), stateless=True)
    assert capture(model, (x, what)).graph.outputs
