"""The architectures that ``smelt coverage`` measures: transformers' own classes, tiny and with random weights.

Every model is built from its config as transformers builds it, with transformers' default attention and experts; only
the sizes are small. Options that change what is computed (windows, soft caps, parallel residuals) are those that
pretrained checkpoints have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..zoo import ZOO, attention_mask, perturb_vectors, require

Kind = Literal["encoder", "decoder", "moe", "encoder-decoder", "speech", "vision", "vision-text", "pytorch"]
Inputs = dict[str, Tensor]

VOCAB = 101
SPECIAL = 3  # ids below are special tokens
IMAGE = 32


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: what the command line calls it.
        kind: what goes in; which of them decode, see :attr:`decodes`.
        auto: the auto class of transformers that makes it, or a name of the zoo for plain PyTorch.
        config: its config class, empty for plain PyTorch.
        options: what differs from that class's defaults.
        needs_mask: whether a step of decoding is given a mask over the cache: without one the model makes one whose
            size is a value of the cache.
    """

    name: str
    kind: Kind
    auto: str
    config: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_mask: bool = False

    @property
    def decodes(self) -> bool:
        """Whether it makes tokens one by one."""
        return self.kind in ("decoder", "moe", "encoder-decoder", "speech")

    def make(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, with seeded random weights; the caller's random state is left untouched.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._build().eval()

    def _build(self) -> nn.Module:
        if not self.config:
            return ZOO[self.auto].make(tiny=True)[0]
        require(("transformers",))
        import transformers

        config = getattr(transformers, self.config)(**self.options)
        auto = getattr(transformers, self.auto)
        model: nn.Module = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
        perturb_vectors(model)
        return model

    def inputs(self, model: nn.Module, batch: int, seq: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call of the model, as (args, kwargs): rows of unequal lengths where there is a mask for that.

        Decoders are padded on the left, as for generation, and encoders on the right. Results hold no cache.
        """
        if not self.config:
            return ZOO[self.auto].inputs(model, batch, seq)
        cache = {"use_cache": False} if self.decodes else {}
        return (), INPUTS[self.kind](model, batch, seq) | cache


# --- inputs -----------------------------------------------------------------------------------------------------------


def tokens(batch: int, seq: int, seed: int = 0) -> Tensor:
    """Token ids [batch, seq] that are no special ones."""
    generator = torch.Generator().manual_seed(1000 * batch + seq + seed)
    return torch.randint(SPECIAL, VOCAB, (batch, seq), generator=generator)


def right_padded(model: nn.Module, batch: int, seq: int) -> Inputs:
    """Ids and mask [batch, seq], ids 0 where padded."""
    mask = attention_mask(batch, seq, "right")
    return {"input_ids": torch.where(mask.bool(), tokens(batch, seq), pad_id(model)), "attention_mask": mask}


def left_padded(model: nn.Module, batch: int, seq: int) -> Inputs:
    """The same, padded on the left."""
    mask = attention_mask(batch, seq, "left")
    return {"input_ids": torch.where(mask.bool(), tokens(batch, seq), pad_id(model)), "attention_mask": mask}


def pad_id(model: nn.Module) -> int:
    """The id of padding, 0 where the config names none."""
    config: Any = model.config
    return int(getattr(config.get_text_config(), "pad_token_id", None) or 0)


def source_and_target(model: nn.Module, batch: int, seq: int) -> Inputs:
    """What the encoder reads, and ids [batch, seq // 2 + 1] for the decoder."""
    return right_padded(model, batch, seq) | {"decoder_input_ids": tokens(batch, seq // 2 + 1, 1)}


def spectrum_and_target(model: nn.Module, batch: int, seq: int) -> Inputs:
    """Mel features [batch, bins, frames], of which there are as many as the model says, and ids for the decoder."""
    config: Any = model.config
    frames = 2 * config.max_source_positions
    return {
        "input_features": normal(batch, config.num_mel_bins, frames),
        "decoder_input_ids": tokens(batch, seq // 2 + 1, 1),
    }


def pixels(model: nn.Module, batch: int, seq: int) -> Inputs:
    """Pixel values [batch, 3, IMAGE, IMAGE]."""
    return {"pixel_values": normal(batch, 3, IMAGE, IMAGE)}


def texts_and_pixels(model: nn.Module, batch: int, seq: int) -> Inputs:
    """Both, one text for each image; a text ends with the token that the model pools at, where it has one."""
    config: Any = model.config
    found = right_padded(model, batch, seq)
    end = getattr(config.text_config, "eos_token_id", None)
    if end is not None:
        found["input_ids"][torch.arange(batch), found["attention_mask"].sum(1) - 1] = end
    return found | pixels(model, batch, seq)


def normal(*shape: int) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


INPUTS: Mapping[Kind, Callable[[nn.Module, int, int], Inputs]] = {
    "encoder": right_padded,
    "decoder": left_padded,
    "moe": left_padded,
    "encoder-decoder": source_and_target,
    "speech": spectrum_and_target,
    "vision": pixels,
    "vision-text": texts_and_pixels,
}

# --- sizes ------------------------------------------------------------------------------------------------------------

SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BODY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}
TEXT = BODY | SPECIALS | {"vocab_size": VOCAB, "max_position_embeddings": 128}
GROUPED = TEXT | {"num_key_value_heads": 2}
GPT = SPECIALS | {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
STACKS = {
    f"{stack}_{name}": value
    for stack in ("encoder", "decoder")
    for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()
}
BOTH = SPECIALS | STACKS | {
    "vocab_size": VOCAB,
    "d_model": 32,
    "max_position_embeddings": 128,
    "init_std": 0.1,
    "decoder_start_token_id": 1,
}  # fmt: skip
T5 = SPECIALS | {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
VISION = BODY | {"image_size": IMAGE, "patch_size": 8}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
CAPPED: dict[str, Any] = {"head_dim": 8, "sliding_window": 8}


def encoder(name: str, config: str, **options: Any) -> Architecture:
    """An encoder of text."""
    return Architecture(name, "encoder", "AutoModel", config, TEXT | options)


def decoder(name: str, config: str, base: Mapping[str, Any] = GROUPED, **options: Any) -> Architecture:
    """A decoder with its language head."""
    return Architecture(name, "decoder", "AutoModelForCausalLM", config, {**base, **options})


def experts(name: str, config: str, **options: Any) -> Architecture:
    """A decoder with experts."""
    return Architecture(name, "moe", "AutoModelForCausalLM", config, GROUPED | options)


def translator(name: str, config: str, base: Mapping[str, Any] = BOTH, **options: Any) -> Architecture:
    """An encoder and a decoder of text."""
    return Architecture(name, "encoder-decoder", "AutoModelForSeq2SeqLM", config, {**base, **options})


def plain(name: str) -> Architecture:
    """A model of the zoo in plain PyTorch."""
    return Architecture(name, "pytorch", name)


_VISION_TEXT = {"text_config": TEXT, "vision_config": VISION}

LIST = (
    encoder("bert", "BertConfig"),
    encoder("roberta", "RobertaConfig"),
    encoder("xlm-roberta", "XLMRobertaConfig"),
    encoder("distilbert", "DistilBertConfig", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    encoder("albert", "AlbertConfig", embedding_size=16),
    encoder("electra", "ElectraConfig", embedding_size=16),
    encoder("deberta-v2", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"],
            position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False,
            type_vocab_size=0),
    encoder("mpnet", "MPNetConfig"),
    encoder("modernbert", "ModernBertConfig"),
    decoder("llama", "LlamaConfig"),
    decoder("qwen2", "Qwen2Config"),
    decoder("qwen3", "Qwen3Config", head_dim=8),
    decoder("mistral", "MistralConfig", sliding_window=8),
    decoder("gemma", "GemmaConfig", head_dim=8),
    decoder("gemma2", "Gemma2Config", **CAPPED),
    decoder("gemma3", "Gemma3TextConfig", layer_types=["sliding_attention", "full_attention"], **CAPPED),
    decoder("gpt2", "GPT2Config", GPT, initializer_range=0.1),
    decoder("gpt-neox", "GPTNeoXConfig", TEXT),
    decoder("gpt-j", "GPTJConfig", GPT, rotary_dim=4),
    replace(decoder("opt", "OPTConfig", TEXT, ffn_dim=64, word_embed_proj_dim=32), needs_mask=True),
    decoder("phi", "PhiConfig", TEXT),
    decoder("phi3", "Phi3Config"),
    decoder("bloom", "BloomConfig", SPECIALS, vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4,
            initializer_range=0.1),
    decoder("falcon", "FalconConfig", TEXT),
    decoder("granite", "GraniteConfig"),
    decoder("olmo2", "Olmo2Config"),
    decoder("starcoder2", "Starcoder2Config"),
    decoder("cohere", "CohereConfig"),
    decoder("glm", "GlmConfig", head_dim=8),
    experts("mixtral", "MixtralConfig", num_local_experts=8, num_experts_per_tok=2),
    experts("qwen2-moe", "Qwen2MoeConfig", moe_intermediate_size=32, shared_expert_intermediate_size=64, **EXPERTS),
    experts("qwen3-moe", "Qwen3MoeConfig", moe_intermediate_size=32, head_dim=8, **EXPERTS),
    experts("olmoe", "OlmoeConfig", **EXPERTS),
    translator("t5", "T5Config", T5),
    translator("flan-t5", "T5Config", T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    translator("bart", "BartConfig"),
    translator("marian", "MarianConfig"),
    translator("pegasus", "PegasusConfig"),
    translator("mbart", "MBartConfig"),
    Architecture("whisper", "speech", "AutoModelForSpeechSeq2Seq", "WhisperConfig",
                 BOTH | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 128}),
    Architecture("vit", "vision", "AutoModelForImageClassification", "ViTConfig", VISION | {"num_labels": 10}),
    Architecture("deit", "vision", "DeiTForImageClassification", "DeiTConfig", VISION | {"num_labels": 10}),
    Architecture("dinov2", "vision", "AutoModel", "Dinov2Config", VISION),
    Architecture("clip", "vision-text", "AutoModel", "CLIPConfig", _VISION_TEXT | {"projection_dim": 16}),
    Architecture("clip-text", "encoder", "CLIPTextModel", "CLIPTextConfig", TEXT),
    Architecture("clip-vision", "vision", "CLIPVisionModel", "CLIPVisionConfig", VISION),
    Architecture("siglip", "vision-text", "AutoModel", "SiglipConfig", _VISION_TEXT),
    plain("nn-transformer"),
    plain("rnn-lm"),
    plain("lstm-lm"),
    plain("gru-lm"),
    plain("mean-classifier"),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {found.name: found for found in LIST}
