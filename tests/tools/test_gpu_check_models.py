"""The models of `make gpu-check` are transformers' models: equal results on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smelt.tools.gpu_check.models.decoder import (
    DECODERS,
    Decoder,
    Prefill,
    RopeScaling,
    Step,
    prompt_flops,
    random_decoder,
    step_bytes,
)
from smelt.tools.gpu_check.models.encoders import BERT_BASE, T5, T5_BASE, VIT_BASE, Bert, EncoderConfig, ViT
from smelt.tools.gpu_check.models.layers import with_random_weights

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
LENGTH = 40  # past the original context of the scaled rotary positions below


def hf_decoder(name: str, decoder: Decoder) -> nn.Module:
    """transformers' model of the same sizes and weights."""
    c = decoder.config
    sizes = {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.theta},
    }
    if c.scaling is not None:
        s = c.scaling
        sizes["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": c.theta,
            "factor": s.factor,
            "low_freq_factor": s.low,
            "high_freq_factor": s.high,
            "original_max_position_embeddings": s.original,
        }
    kind = "Qwen3" if name.startswith("qwen3") else "Llama"
    config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="sdpa")
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    own = dict(decoder.named_parameters())
    given = {}
    for key in model.state_dict():
        plain = key.removeprefix("model.").replace("mlp.", "")
        given[key] = own["embed_tokens.weight"] if plain == "lm_head.weight" and c.tied else own[plain]
    model.load_state_dict(given)
    return model


def small(name: str) -> Decoder:
    config = DECODERS[name].small()
    if config.scaling is not None:
        config = replace(config, scaling=RopeScaling(factor=8.0, original=16))
    return random_decoder(config, LENGTH + 2, torch.float32, CPU)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_decoders(name: str) -> None:
    decoder = small(name)
    model = hf_decoder(name, decoder)
    tokens = torch.randint(0, decoder.config.vocab, (1, LENGTH + 2), generator=torch.Generator().manual_seed(0))
    exact = model(tokens).logits
    close(Prefill(decoder)(tokens[:, :LENGTH]), exact[:, LENGTH - 1 : LENGTH])
    for at in (LENGTH, LENGTH + 1):
        close(Step(decoder)(tokens[:, at : at + 1], torch.tensor([at])), exact[:, at : at + 1])


@pytest.mark.parametrize(("name", "billions"), [("qwen3-0.6b", 0.596), ("llama-3.2-1b", 1.236), ("llama-3-8b", 8.030)])
def test_decoders_have_the_published_sizes(name: str, billions: float) -> None:
    with torch.device("meta"):
        decoder = Decoder(DECODERS[name], context=10)
    assert sum(p.numel() for p in set(decoder.parameters())) / 1e9 == pytest.approx(billions, abs=6e-4)


def test_what_a_step_moves_and_a_prompt_computes() -> None:
    config = DECODERS["llama-3-8b"].small()
    decoder = random_decoder(config, 10, torch.bfloat16, CPU)
    cache = 2 * config.layers * config.kv_heads * config.head * 2
    weights = sum(p.nbytes for n, p in decoder.named_parameters() if n != "embed_tokens.weight")
    assert step_bytes(decoder, 7) == weights + 7 * cache
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64  # queries and results, keys and values, three of the network
    attention = 2 * 4 * 8 * (9 * 10 // 2)  # scores and sums of four heads of eight, for each pair
    assert prompt_flops(config, 9) == 2 * (2 * (9 * layer + attention) + 32 * 101)


# --- encoders ---------------------------------------------------------------------------------------------------------


def random(kind: type[nn.Module], config: EncoderConfig) -> nn.Module:
    with torch.device("meta"):
        made = kind(config)
    return with_random_weights(made, torch.float32, CPU)


def load(model: nn.Module, own: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """transformers' model with our weights; ``names`` are the parts of their names that differ, in order."""
    given, mine = {}, own.state_dict()
    for key in model.state_dict():
        plain = key
        for theirs, ours in names.items():
            plain = plain.replace(theirs, ours)
        if plain in mine:
            given[key] = mine.pop(plain)
    missing, _ = model.load_state_dict(given, strict=False)
    assert not mine
    # of T5, which ties both to its embedding
    assert not [name for name in missing if not name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    return model.eval()


def sizes(config: EncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.positions,
        "layer_norm_eps": config.eps,
    }


@torch.no_grad()
def test_bert() -> None:
    config = BERT_BASE.small()
    own = random(Bert, config)
    names = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types",
        "embeddings.LayerNorm": "norm",
        "encoder.layer.": "layers.",
        "attention.self.": "attention.",
        "attention.output.dense": "attention.output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "intermediate",
        "output.dense": "output",
        "output.LayerNorm": "output_norm",
        "pooler.dense": "pooler",
    }
    model = load(transformers.BertModel(transformers.BertConfig(**sizes(config))), own, names)
    tokens, mask = torch.randint(0, 101, (2, 11)), torch.ones(2, 11, dtype=torch.int64)
    mask[1, 7:] = 0
    found, expected = own(tokens, mask), model(tokens, mask)
    close(found[0], expected.last_hidden_state)
    close(found[1], expected.pooler_output)


@torch.no_grad()
def test_vit() -> None:
    config = VIT_BASE.small()
    own = random(ViT, config)
    names = {
        "vit.embeddings.patch_embeddings.projection": "patches",
        "vit.embeddings.cls_token": "token",
        "vit.embeddings.position_embeddings": "places",
        "vit.encoder.layer.": "layers.",
        "vit.layers.": "layers.",
        "layernorm_before": "before",
        "layernorm_after": "after",
        "attention.attention.": "attention.",
        "attention.output.dense": "attention.output",
        "attention.q_proj": "attention.query",
        "attention.k_proj": "attention.key",
        "attention.v_proj": "attention.value",
        "attention.o_proj": "attention.output",
        "mlp.fc1": "intermediate",
        "mlp.fc2": "output",
        "intermediate.dense": "intermediate",
        "output.dense": "output",
        "vit.layernorm": "norm",
    }
    given = sizes(config) | {"image_size": 32, "patch_size": 8, "num_labels": 10}
    model = load(transformers.ViTForImageClassification(transformers.ViTConfig(**given)), own, names)
    pixels = torch.randn(2, 3, 32, 32)
    close(own(pixels), model(pixels).logits)


@torch.no_grad()
def test_t5() -> None:
    config = T5_BASE.small()
    own = random(T5, config)
    names = {
        "block.": "layers.",
        "layer.0.SelfAttention.relative_attention_bias": "BIAS",
        "layer.0.SelfAttention": "attention",
        "layer.1.EncDecAttention": "cross",
        "layer.1.DenseReluDense.": "",
        "layer.2.DenseReluDense.": "",
        ".layer.0.layer_norm": ".norms.0",
        ".layer.1.layer_norm": ".norms.1",
        ".layer.2.layer_norm": ".norms.2",
        "layers.0.BIAS": "bias",
        "final_layer_norm": "norm",
    }
    given = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 101}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**given))
    load(model, own, names)
    tokens, targets = torch.randint(0, 101, (2, 50)), torch.randint(0, 101, (2, 41))
    close(own(tokens, targets), model(input_ids=tokens, decoder_input_ids=targets).logits)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
