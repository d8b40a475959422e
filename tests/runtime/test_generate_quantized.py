"""Layers that ``keep`` names: the same ones stay as they are in plain calls and in calls with a cache."""

import pytest
import torch

import smelt

pytest.importorskip("transformers")

from .generative import prompts, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")


def layer(path: str) -> str:
    """The layer of a weight, by the model's own name: in calls with a cache the model is a part named ``model``."""
    name = path.removesuffix(".weight").removeprefix("model.")
    return name if name == "lm_head" else f"model.{name.removeprefix('model.')}"


@pytest.mark.parametrize("pattern", ["model", "lm_head", "layers.*.mlp"])
def test_keep_means_the_same_with_a_cache(pattern: str) -> None:
    """A Llama's layers are in a part ``model``, and its head is not."""
    model, inputs = tiny("llama"), prompts("llama", 1, 5)
    fast = smelt.compile(model, quantize=smelt.Quantization("int8", keep=("input_layernorm", pattern)))
    with torch.no_grad():
        fast(**inputs, use_cache=False)
        fast.generate(**inputs, max_new_tokens=3, do_sample=False)
    plain, *cached = [
        {layer(k.name) for k in found.quantization.kept if k.reason.startswith("asked for")}
        for found in fast.report().captures
        if found.quantization is not None
    ]
    assert plain
    assert ("lm_head" in plain) == (pattern == "lm_head")
    assert len(cached) >= 1
    assert all(found == plain for found in cached)
