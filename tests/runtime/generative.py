"""Tiny models of transformers that generate, with random weights by which each token depends on many."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

VOCAB = 97
TOKENS = 64
WINDOW = 16
SPECIAL = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = SPECIAL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
NARROW = {"head_dim": 8, "sliding_window": WINDOW}
BART = {f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in
        {"layers": 1, "attention_heads": 4, "ffn_dim": 64}.items()}  # fmt: skip
CONFIGS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER | {"num_hidden_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 8, "num_hidden_layers": 1}),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": WINDOW, "num_hidden_layers": 1}),
    # one layer that slides and one that does not, capped scores, norms of queries and keys
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", DECODER | NARROW | {"query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        DECODER | NARROW | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi": ("PhiForCausalLM", "PhiConfig", DECODER | {"num_hidden_layers": 1}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        SPECIAL | {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 256},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        SPECIAL | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        SPECIAL | BART | {"d_model": 32, "max_position_embeddings": 256, "decoder_start_token_id": 2},
    ),
}
SOURCES = ("t5", "bart")


def tiny(name: str, seed: int = 0) -> Any:
    """A model in eval mode that never ends by itself."""
    model_class, config_class, options = CONFIGS[name]
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = None
    return model


def prompts(name: str, batch: int = 2, length: int = 9, padded: bool = False) -> dict[str, Tensor]:
    """Token ids and a mask [batch, length]; with padding the first one is shorter, on the side that the model wants."""
    torch.manual_seed(1)
    ids = torch.randint(3, VOCAB, (batch, length))
    mask = torch.ones_like(ids)
    if padded:
        where = slice(length - 4, None) if name in SOURCES else slice(4)
        ids[0, where], mask[0, where] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def tokens_of(model: Any, inputs: Mapping[str, Any], seed: int = 3, **how: Any) -> tuple[Any, float]:
    """What a model generates from a fixed state of the random generator, and the next random number."""
    torch.manual_seed(seed)
    found = model.generate(**inputs, **({"max_new_tokens": TOKENS, "do_sample": False} | how))
    return found, float(torch.rand(()))
