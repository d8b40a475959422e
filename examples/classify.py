"""Sentence classification, scored before and after compilation: `python examples/classify.py [--model NAME]`.

Without `--model` a small BERT learns in seconds to tell good reviews from bad ones. It is scored in PyTorch, compiled,
and compiled with weights of eight bits, by accuracy, precision, recall and F1; needs scikit-learn:
`pip install 'smelt[examples]'`.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from tiny import Batch, encode, quiet, train, word_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

import smelt

THINGS = ("the food", "the room", "the film", "the service", "the music", "the view", "the price", "the book")
GOOD = ("good", "great", "lovely", "perfect", "excellent", "charming", "fresh", "superb")
BAD = ("bad", "awful", "dull", "poor", "terrible", "dirty", "boring", "weak")
JOINTS = (("and", False), ("but", True))
NOISE = 0.04  # the share of labels that are wrong, as in data of people


def clause(made: random.Random, good: bool) -> str:
    """A thing and what it is like, denied sometimes."""
    denied = made.random() < 0.3
    word = made.choice(GOOD if good != denied else BAD)
    return f"{made.choice(THINGS)} was {'not ' if denied else ''}{made.choice(['', 'very ', 'really '])}{word}"


def review(made: random.Random) -> tuple[str, int]:
    """A review and whether it is good: what comes after a "but" is what counts."""
    good = made.random() < 0.5
    text = clause(made, good)
    if made.random() < 0.7:
        joint, turns = made.choice(JOINTS)
        good = good != turns
        text = f"{text} {joint} {clause(made, good)}"
    return f"{text} .", int(good != (made.random() < NOISE))


def tiny_model(steps: int) -> tuple[Any, Any]:
    """A small BERT that has learned the reviews, and its tokenizer."""
    made = random.Random(1)
    tokenizer = word_tokenizer([review(made)[0] for _ in range(4000)])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)

    def batch(made: random.Random) -> Batch:
        texts, labels = zip(*(review(made) for _ in range(48)), strict=True)
        return encode(tokenizer, texts) | {"labels": torch.tensor(labels)}

    train(model, batch, steps, rate=2e-3)
    return model, tokenizer


def predict(model: Any, batches: Sequence[Batch]) -> tuple[Tensor, float]:
    """The logits of all batches [reviews, classes], and the seconds that they took."""
    start = time.perf_counter()
    with torch.no_grad():
        logits = torch.cat([model(**batch).logits for batch in batches])
    return logits, time.perf_counter() - start


def score(name: str, labels: Sequence[int], logits: Tensor, seconds: float) -> Tensor:
    """Print how a model does; what it predicts."""
    found = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, found, average="binary", zero_division=0.0)
    accuracy = accuracy_score(labels, found)
    numbers = "  ".join(f"{number:9.4f}" for number in (accuracy, precision, recall, f1))
    print(f"{name:12}  {numbers}  {seconds * 1e3:7.1f} ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a classifier of two classes on the Hugging Face hub, the second being good")
    parser.add_argument("--steps", type=int, default=250, help="training steps of the small model")
    parser.add_argument("--reviews", type=int, default=400, help="how many reviews to score on")
    given = parser.parse_args()
    quiet()
    if given.model:
        model = AutoModelForSequenceClassification.from_pretrained(given.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(given.model)
    else:
        model, tokenizer = tiny_model(given.steps)
    made = random.Random("held out")
    texts, labels = zip(*(review(made) for _ in range(given.reviews)), strict=True)
    batches = [encode(tokenizer, texts[i : i + 32]) for i in range(0, len(texts), 32)]
    runs = {"eager": model, "smelt": smelt.compile(model), "smelt int8": smelt.compile(model, quantize="int8")}
    print(f"{len(texts)} reviews    accuracy  precision     recall         F1")
    found = {}
    for name, run in runs.items():
        predict(run, batches[:1])  # compiles
        found[name] = score(name, labels, *predict(run, batches))
    differ = int((found["smelt"] != found["eager"]).sum())
    moved = int((found["smelt int8"] != found["eager"]).sum())
    print(f"\npredictions other than eager's: {differ} compiled, {moved} with weights of eight bits")
    print(smelt.verify(runs["smelt"], **batches[0]))
    if differ:
        sys.exit("the compiled model's predictions are not eager's")


if __name__ == "__main__":
    main()
