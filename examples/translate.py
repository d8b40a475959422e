"""Translation with an encoder and a decoder: `python examples/translate.py [--model NAME] [SENTENCE ...]`.

Without `--model` a small BART learns English to German in seconds, from sentences that a grammar makes; it is scored on
sentences that it has not seen.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from tiny import SPECIAL, Batch, encode, labels_of, quiet, train, word_tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

import smelt

# a noun with its articles: nominative, accusative
NOUNS = {
    "dog": ("der", "den", "Hund"),
    "man": ("der", "den", "Mann"),
    "king": ("der", "den", "König"),
    "cat": ("die", "die", "Katze"),
    "woman": ("die", "die", "Frau"),
    "mouse": ("die", "die", "Maus"),
    "horse": ("das", "das", "Pferd"),
    "child": ("das", "das", "Kind"),
    "girl": ("das", "das", "Mädchen"),
}
ADJECTIVES = {"big": "groß", "small": "klein", "old": "alt", "young": "jung", "quiet": "still"}
VERBS = {"sees": "sieht", "hears": "hört", "loves": "liebt", "seeks": "sucht", "finds": "findet", "calls": "ruft"}
ADVERBS = {"today": "heute", "often": "oft", "never": "nie", "now": "jetzt"}


def phrase(made: random.Random, accusative: bool) -> tuple[str, str]:
    """A noun with its article, and an adjective or none, in both languages."""
    english = made.choice(list(NOUNS))
    article, noun = NOUNS[english][accusative], NOUNS[english][2]
    if made.random() < 0.4:
        return f"the {english}", f"{article} {noun}"
    adjective = made.choice(list(ADJECTIVES))
    ending = "en" if article == "den" else "e"
    return f"the {adjective} {english}", f"{article} {ADJECTIVES[adjective]}{ending} {noun}"


def pair(made: random.Random) -> tuple[str, str]:
    """A sentence in both languages; German puts an adverb first, and then the verb before the subject."""
    (who, wer), (whom, wen) = phrase(made, False), phrase(made, True)
    verb = made.choice(list(VERBS))
    if made.random() < 0.5:
        return f"{who} {verb} {whom} .", f"{wer} {VERBS[verb]} {wen} ."
    adverb = made.choice(list(ADVERBS))
    return f"{who} {verb} {whom} {adverb} .", f"{ADVERBS[adverb]} {VERBS[verb]} {wer} {wen} ."


def tiny_model(steps: int) -> tuple[Any, Any]:
    """A small BART that has learned the grammar, and its tokenizer of both languages."""
    made = random.Random(1)
    tokenizer = word_tokenizer([text for _ in range(4000) for text in pair(made)])
    torch.manual_seed(0)
    stacks = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=64, max_position_embeddings=64, dropout=0.0, decoder_start_token_id=1,
        forced_eos_token_id=None, init_std=0.1,
        **{f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in stacks.items()}, **SPECIAL,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)

    def batch(made: random.Random) -> Batch:
        sources, targets = zip(*(pair(made) for _ in range(48)), strict=True)
        return encode(tokenizer, sources) | {"labels": labels_of(encode(tokenizer, targets))}

    train(model, batch, steps)
    return model, tokenizer


def translate(model: Any, tokenizer: Any, sentences: Sequence[str], most: int = 40) -> tuple[list[str], float]:
    """Translations, and the seconds that they took."""
    inputs = encode(tokenizer, sentences)
    start = time.perf_counter()
    found = model.generate(**inputs, max_new_tokens=most, do_sample=False, num_beams=1)
    seconds = time.perf_counter() - start
    return tokenizer.batch_decode(found, skip_special_tokens=True), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*")
    parser.add_argument("--model", help="a translation model on the Hugging Face hub, such as a Marian one")
    parser.add_argument("--steps", type=int, default=160, help="training steps of the small model")
    given = parser.parse_args()
    quiet()
    pairs = [pair(random.Random(f"held out {i}")) for i in range(100)]
    if given.model:
        model = AutoModelForSeq2SeqLM.from_pretrained(given.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(given.model)
    else:
        model, tokenizer = tiny_model(given.steps)
    sentences = given.sentences or [english for english, _ in pairs]
    fast = smelt.compile(model)
    translate(fast, tokenizer, sentences)  # compiles
    ours, seconds = translate(fast, tokenizer, sentences)
    theirs, eager_seconds = translate(model, tokenizer, sentences)
    for english, german in list(zip(sentences, ours, strict=True))[:6]:
        print(f"{english}\n  {german}")
    if not given.sentences and not given.model:
        right = sum(found == german for found, (_, german) in zip(ours, pairs, strict=True))
        print(f"\n{right} of {len(pairs)} sentences that it has not seen are translated without a fault")
    print(f"smelt {seconds * 1e3:.0f} ms, eager {eager_seconds * 1e3:.0f} ms for {len(sentences)} sentences")
    if ours != theirs:
        sys.exit("the compiled model's translations are not eager's")


if __name__ == "__main__":
    main()
