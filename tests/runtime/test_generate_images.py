"""Prompts with images in loops of one's own: captured where that is possible, and tried once where it is not."""

from typing import Any

import pytest
import torch
from torch import Tensor

import smelt
from smelt.runtime.captures import Captures

pytest.importorskip("transformers")

import transformers

from .generative import DECODER, VOCAB

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
IMAGE, PATCHES, STEPS = 90, 4, 2


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was captured, or tried to be."""
    found: list[str] = []
    make = Captures._make

    def counted(self: Any, *args: Any) -> Any:
        found.append(self.name)
        return make(self, *args)

    monkeypatch.setattr(Captures, "_make", counted)
    return found


def prompt(length: int) -> dict[str, Any]:
    torch.manual_seed(length)
    ids = torch.randint(3, IMAGE, (1, length))
    ids[:, 1 : 1 + PATCHES] = IMAGE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 16, 16)}


def loop(model: Any, given: dict[str, Any]) -> Tensor:
    """The logits of a prompt's last token, and of some tokens after it, each the likeliest one."""
    out = model(**given, use_cache=True)
    found = [out.logits[:, -1]]
    for _ in range(STEPS):
        out = model(found[-1].argmax(-1)[:, None], past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.stack(found)


def llava() -> Any:
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=16, patch_size=8),
        text_config=transformers.LlamaConfig(**DECODER | {"num_hidden_layers": 1}),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


@torch.no_grad()
def test_prompts_with_images_are_compiled(tries: list[str]) -> None:
    """LLaVA asks its vision tower for hidden states, for which transformers installs hooks in the first call."""
    reference, fast = llava(), smelt.compile(llava(), cache=False)
    for length in (9, 11, 10):
        torch.testing.assert_close(loop(fast, prompt(length)), loop(reference, prompt(length)), rtol=1e-4, atol=1e-5)
    caches = fast.report().caches
    assert caches is not None
    assert (caches.calls, caches.passed) == (3 * (1 + STEPS), {})
    assert len(tries) == 2


class TakesTokens(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """What Qwen2-VL does with a mask of as many positions as there are tokens, where a step's is of all slots."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        pixel_values: Any = None,
        **more: Any,
    ) -> Any:
        more |= {"attention_mask": attention_mask, "past_key_values": past_key_values}
        out = super().forward(input_ids=input_ids, **more)
        if pixel_values is not None:
            out.logits = out.logits + input_ids[attention_mask == 1].sum() / VOCAB
        return out


@torch.no_grad()
def test_prompts_that_cannot_be_captured_are_tried_once(tries: list[str]) -> None:
    torch.manual_seed(0)
    model = TakesTokens(transformers.LlamaConfig(**DECODER | {"num_hidden_layers": 1})).eval()
    fast: Any = smelt.compile(model, cache=False)
    for length in (9, 11, 10):
        torch.testing.assert_close(loop(fast, prompt(length)), loop(model, prompt(length)), rtol=1e-4, atol=1e-5)
    assert len(tries) == 2
    passed = fast.report().caches.passed
    assert list(passed.values()) == [3]
    assert "cannot be captured: The shape of the mask" in next(iter(passed))


@torch.no_grad()
def test_an_index_of_one_call_that_is_out_of_range_is_its_own_fault(tries: list[str]) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER | {"num_hidden_layers": 1})).eval()
    fast: Any = smelt.compile(model, cache=False)
    with pytest.raises(IndexError):
        fast(torch.tensor([[3, VOCAB + 5]]), use_cache=True)
    out = fast(torch.tensor([[3, 5]]), use_cache=True)
    torch.testing.assert_close(out.logits, model(torch.tensor([[3, 5]])).logits, rtol=1e-4, atol=1e-5)
    assert fast.report().caches.calls == 1
