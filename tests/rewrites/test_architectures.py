"""Attention, norms and activations are found in the architectures of transformers, written out as they are there.

A pattern that no longer matches after an upgrade fails here.
"""

import warnings
from collections import Counter
from typing import Any

import pytest
import torch

from smelt.frontend.export import capture
from smelt.rewrites.context import Context
from smelt.rewrites.pipeline import run_pipeline

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
FLAT = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32}
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}

# config class, its options, and what must be found
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "LlamaConfig": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 5, "swiglu": 2}),
    "MistralConfig": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 5, "swiglu": 2}),
    "Qwen2Config": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 5, "swiglu": 2}),
    "Qwen3Config": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 9, "swiglu": 2}),
    "Gemma2Config": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 9, "gelu": 2}),
    "Gemma3TextConfig": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 13, "gelu": 2}),
    "Phi3Config": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 5, "swiglu": 2}),
    "GraniteConfig": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 5, "swiglu": 2}),
    "Olmo2Config": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 9, "swiglu": 2}),
    "Starcoder2Config": (GROUPED, {"attention": 2, "rope": 4, "layer_norm": 5, "gelu": 2}),
    "GPTNeoXConfig": (SMALL, {"attention": 2, "rope": 4, "layer_norm": 5, "gelu": 2}),
    "PhiConfig": (SMALL, {"attention": 2, "rope": 4, "layer_norm": 3, "gelu": 2}),
    "GPTJConfig": (FLAT | {"rotary_dim": 4}, {"attention": 2, "rope": 4, "layer_norm": 3, "gelu": 2}),
    "CohereConfig": (GROUPED, {"attention": 2, "rope": 4, "layer_norm": 3, "swiglu": 2}),
    "GlmConfig": (GROUPED, {"attention": 2, "rope": 4, "rms_norm": 5, "swiglu": 2}),
    "BloomConfig": (FLAT | {"hidden_size": 32}, {"attention": 2, "layer_norm": 6, "gelu": 2}),
    "FalconConfig": (SMALL, {"attention": 2, "rope": 4, "layer_norm": 3, "gelu": 2}),
    "OPTConfig": (SMALL | OPT, {"attention": 2, "layer_norm": 5}),
    "GPTNeoConfig": (SMALL | LOCAL, {"attention": 2, "layer_norm": 5, "gelu": 2}),
    "RobertaConfig": (SMALL, {"attention": 2, "layer_norm": 5, "gelu": 2}),
    "ElectraConfig": (SMALL | {"embedding_size": 32}, {"attention": 2, "layer_norm": 5, "gelu": 2}),
    "AlbertConfig": (SMALL | {"embedding_size": 32}, {"attention": 2, "layer_norm": 5, "gelu": 2}),
    "ModernBertConfig": (SMALL, {"attention": 2, "rope": 4, "layer_norm": 5, "gelu": 2}),
}
ENCODERS = ("Roberta", "Electra", "Albert", "ModernBert")


def make(name: str, options: dict[str, Any]) -> torch.nn.Module:
    """A model with attention written out in PyTorch, not as one function."""
    auto = "AutoModel" if name.startswith(ENCODERS) else "AutoModelForCausalLM"
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, name)(**options, **tokens, use_cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: torch.nn.Module = getattr(transformers, auto).from_config(config, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str) -> None:
    options, expected = ARCHITECTURES[name]
    ids = torch.randint(3, 100, (2, 9))
    captured = capture(make(name, options), (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    graph = run_pipeline(captured.graph, Context())
    left = Counter(node.op.name for node in graph.nodes)
    assert {op: left[op] for op in expected} == expected
    assert not left["softmax"] + left["matmul"]
    assert captured.fallbacks == ()
