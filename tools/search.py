"""Semantic search: sentences and questions become vectors, and the nearest ones are the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ir.errors import SmeltError
from .zoo import MINILM_PACKAGE, minilm_folder, require

Batch = dict[str, Tensor]


class LoadError(SmeltError, RuntimeError):
    """A model for the demo cannot be loaded; the message says why."""


class SentenceEncoder(nn.Module):
    """A transformer with mean pooling: a unit vector for each sentence."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors [batch, width] of length 1 for tokens and their mask [batch, seq]."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)  # [B, S, 1]
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def load_encoder(name: str | None) -> tuple[SentenceEncoder, Any, str]:
    """An encoder with its tokenizer and what it is called; by default all-MiniLM-L6-v2 as installed.

    Raises:
        MissingExtraError: transformers, or the package with the default model, is not installed.
        LoadError: there is no such model, or it is none for sentences.
    """
    require(("transformers",) if name else ("transformers", MINILM_PACKAGE))
    import transformers

    source = name or str(minilm_folder())
    shown = name or "all-MiniLM-L6-v2"
    transformers.utils.logging.disable_progress_bar()
    # The default is a folder of this machine: nothing is to be looked for elsewhere.
    where = {"local_files_only": name is None}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
        transformer = transformers.AutoModel.from_pretrained(source, attn_implementation="sdpa", **where)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{shown} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return SentenceEncoder(transformer).float().eval(), tokenizer, shown


def batches_of(tokenizer: Any, sentences: Sequence[str], size: int) -> list[Batch]:
    """Sentences as batches of tokens, each padded to the longest in it."""
    found = []
    for start in range(0, len(sentences), size):
        chosen = list(sentences[start : start + size])
        made = tokenizer(chosen, padding=True, truncation=True, max_length=256, return_tensors="pt")
        found.append({name: made[name] for name in ("input_ids", "attention_mask")})
    return found


def embed(encoder: Callable[..., Tensor], batches: Sequence[Batch]) -> Tensor:
    """The vectors of all batches, [sentences, width]."""
    with torch.no_grad():
        return torch.cat([encoder(**batch) for batch in batches])


def rank(queries: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
    """For each query the sentences by similarity, nearest first: scores and places, [queries, sentences]."""
    scores, places = (queries @ sentences.T).sort(dim=1, descending=True, stable=True)
    return scores, places
