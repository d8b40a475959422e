"""What the examples share: a tokenizer of words and a few seconds of training, so that nothing has to be downloaded."""

import random
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

Batch = dict[str, Tensor]


def word_tokenizer(texts: Sequence[str], more: Sequence[str] = (), ends: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the words in some texts, of which punctuation is one; `ends` puts END after every text."""
    words = sorted({word for text in texts for word in text.split()} - set(more))
    vocabulary = {word: i for i, word in enumerate([PAD, START, END, UNKNOWN, *more, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    special: dict[str, Any] = {"pad_token": PAD, "bos_token": START, "eos_token": END, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special, extra_special_tokens=list(more))


def encode(tokenizer: Any, texts: Sequence[str]) -> Batch:
    """Texts as token ids and their mask, [texts, longest]."""
    found = tokenizer(list(texts), padding=True, return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def labels_of(batch: Batch) -> Tensor:
    """Ids as labels: padding is -100, which the loss leaves out."""
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def train(model: nn.Module, batch: Callable[[random.Random], Batch], steps: int, rate: float = 3e-3) -> None:
    """Train a model for some steps on batches that are made up, and say how it went."""
    made, start = random.Random(0), time.perf_counter()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    model.train()
    loss = torch.zeros(())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and lose much where cores are busy
    for _ in range(steps):
        loss = model(**batch(made)).loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    torch.set_num_threads(threads)
    model.eval()
    seconds = time.perf_counter() - start
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"trained {type(model).__name__} ({size:,} weights): {steps} steps, {seconds:.1f} s, loss {loss:.3f}\n")


def quiet() -> None:
    """Leave out what transformers logs while it loads and generates."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
