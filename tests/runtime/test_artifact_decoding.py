"""Prefill and decode of a language model as one artifact, over one copy of the weights and one static cache."""

import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import smelt
from smelt.tools.decoding import DecoderStep
from smelt.tools.zoo import ZOO


class Prefill(nn.Module):
    """The model called for a whole prompt; keys and values go to the cache of the step."""

    def __init__(self, step: DecoderStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, input_ids: Tensor) -> Tensor:
        """The logits [1, vocab] that follow a prompt [1, S]."""
        positions = torch.arange(input_ids.shape[1])
        model: Any = self.step.model
        cache = self.step.cache(positions)
        found = model(input_ids=input_ids, position_ids=positions[None], past_key_values=cache, use_cache=True)
        logits: Tensor = found.logits[:, -1]
        return logits


def test_a_language_model_that_generates(tmp_path: Path) -> None:
    step, args, kwargs = ZOO["llama-decode"].make(tiny=True)
    prefill = Prefill(step).eval()
    prompt = torch.randint(50, (1, 7))
    path = tmp_path / "llama.smelt"
    artifact = smelt.export({"prefill": (prefill, prompt), "decode": (step, args, kwargs)})
    artifact.save(path)

    parameters = sum(p.nbytes for p in step.parameters())
    held = safetensors.torch.load(zipfile.ZipFile(path).read("weights.safetensors"))
    caches = sum(b.nbytes for b in step.buffers(recurse=False))
    assert sum(t.nbytes for t in held.values()) < 1.1 * parameters + caches

    loaded = smelt.load(path)
    state = loaded.state
    assert sum(t.nbytes for t in state.values()) == caches
    for length in (7, 3):
        loaded.reset()
        ids = torch.randint(50, (1, length))
        generate(loaded, step.model, ids)
    loaded.reset()
    buffers = dict(step.named_buffers())
    assert all(torch.equal(tensor, find(buffers, name)) for name, tensor in state.items())


def generate(loaded: smelt.LoadedArtifact, model: Any, ids: Tensor) -> None:
    """Eight greedy tokens, each held to the model called without a cache."""
    logits = loaded.entry_points["prefill"](ids)
    for _ in range(8):
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits[:, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        logits = loaded.entry_points["decode"](ids[:, -1:], torch.tensor([ids.shape[1] - 1]))[:, -1]


def find(buffers: dict[str, Tensor], name: str) -> Tensor:
    return buffers[name.removeprefix("step.")]
