"""Summaries scored by BLEU before and after compilation: `python examples/summarise.py [--model NAME]`.

Without `--model` a small T5 learns in seconds to write headlines for reports that are made up here; needs sacrebleu:
`pip install 'smelt[examples]'`.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import sacrebleu
import torch
from tiny import Batch, encode, labels_of, quiet, train, word_tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

import smelt

WHO = ("the mayor", "a student", "the minister", "a farmer", "the museum", "a bakery", "the choir", "the school")
PLACES = ("Lyon", "Turin", "Bergen", "Porto", "Ghent", "Graz", "Krakow", "Cork")
# what happened, and the words that headlines have for it
DID = {
    "opened": ("opens", "unveils"),
    "sold": ("sells",),
    "painted": ("paints",),
    "saved": ("saves", "rescues"),
    "lost": ("loses",),
    "found": ("finds", "discovers"),
}
WHAT = ("an old bridge", "a library", "a boat", "a garden", "two paintings", "a tower", "the clock", "a violin")
WHEN = ("on Monday", "last week", "this morning", "yesterday", "in May", "on Friday")
FILLERS = (
    "it rained for most of the day .",
    "many people came to see it .",
    "the local paper was there too .",
    "nobody was hurt .",
    "it cost more than was planned .",
    "children sang and a band played .",
    "the police had no comment .",
)


def report(made: random.Random) -> tuple[str, str]:
    """A report of a few sentences, one of which is the news, and its headline."""
    who, where, did, what, when = (made.choice(list(kind)) for kind in (WHO, PLACES, DID, WHAT, WHEN))
    news = made.choice([f"{when} {who} in {where} {did} {what} .", f"{who} in {where} {did} {what} {when} ."])
    sentences = [news, *made.sample(FILLERS, made.randrange(1, 4))]
    made.shuffle(sentences)
    return " ".join(sentences), f"{where} : {who} {made.choice(DID[did])} {what}"


def tiny_model(steps: int) -> tuple[Any, Any]:
    """A small T5 that has learned to write headlines, and its tokenizer."""
    made = random.Random(1)
    tokenizer = word_tokenizer([text for _ in range(4000) for text in report(made)])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)

    def batch(made: random.Random) -> Batch:
        texts, headlines = zip(*(report(made) for _ in range(32)), strict=True)
        return encode(tokenizer, texts) | {"labels": labels_of(encode(tokenizer, headlines))}

    train(model, batch, steps, rate=6e-3)
    return model, tokenizer


def summarise(model: Any, tokenizer: Any, texts: Sequence[str], most: int) -> tuple[list[str], float]:
    """Headlines, and the seconds that they took."""
    found, start = [], time.perf_counter()
    for i in range(0, len(texts), 16):
        inputs = encode(tokenizer, texts[i : i + 16])
        made = model.generate(**inputs, max_new_tokens=most, do_sample=False, num_beams=1)
        found += tokenizer.batch_decode(made, skip_special_tokens=True)
    return found, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a summarisation model on the Hugging Face hub")
    parser.add_argument("--steps", type=int, default=220, help="training steps of the small model")
    parser.add_argument("--reports", type=int, default=96, help="how many reports to score on")
    given = parser.parse_args()
    quiet()
    if given.model:
        model = AutoModelForSeq2SeqLM.from_pretrained(given.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(given.model)
    else:
        model, tokenizer = tiny_model(given.steps)
    made = random.Random("held out")
    texts, headlines = zip(*(report(made) for _ in range(given.reports)), strict=True)
    fast = smelt.compile(model)
    summarise(fast, tokenizer, texts[:16], 24)  # compiles
    found = {}
    for name, run in {"eager": model, "smelt": fast}.items():
        found[name], seconds = summarise(run, tokenizer, texts, 24)
        bleu = sacrebleu.corpus_bleu(found[name], [list(headlines)])
        print(f"{name:6} BLEU {bleu.score:6.2f}  {seconds * 1e3:7.0f} ms for {len(texts)} reports")
    for text, headline in list(zip(texts, found["smelt"], strict=True))[:3]:
        print(f"\n{text}\n  {headline}")
    if found["smelt"] != found["eager"]:
        sys.exit("the compiled model's summaries are not eager's")


if __name__ == "__main__":
    main()
