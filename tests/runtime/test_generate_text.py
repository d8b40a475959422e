"""``generate`` from a text with a tokenizer: strings to stop at, streams, and captures that other processes find."""

import copy
import threading
from typing import Any

import pytest
import torch

import smelt
from smelt.runtime.saved.entry import KeptEntry

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from .generative import TOKENS, VOCAB, tiny, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")

CORPUS = (
    "the cat sat on the mat and the dog sat on the cat",
    "a dog and a cat and a mat",
    "once upon a time there was",
    "abcdefghijklmnopqrstuvwxyz",  # by which transformers finds out how tokens are joined
)
TEXTS = ["the cat", "once upon a time there was a dog"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Pairs of bytes, trained here: what they mean together may end within a token."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False)
    made.train_from_iterator(CORPUS * 3, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **names)


@pytest.fixture(scope="module")
def both(tokenizer: Any) -> tuple[Any, Any]:
    """A model compiled and as it is, which choose among the tokens that there are."""
    model = tiny("qwen2")
    model.generation_config.suppress_tokens = [0, 1, 2, 3, *range(len(tokenizer), VOCAB)]
    return smelt.compile(model), model


def within_a_token(tokenizer: Any, tokens: Any) -> str:
    """A letter that a token of several has in its middle or at its end."""
    pieces = [tokenizer.decode(token).strip() for token in tokens]
    return next(piece[1] for piece in pieces if len(piece) > 1)


def test_strings_to_stop_at(both: tuple[Any, Any], tokenizer: Any) -> None:
    """In a batch of unequal prompts, sampled too: each sequence stops where a string that ends within a token is."""
    fast, model = both
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    for how in ({}, {"do_sample": True}, {"cache_implementation": "static"}):
        whole = tokens_of(model, inputs, **how)[0]
        text = within_a_token(tokenizer, whole[0, length + 4 :])
        stop = {"stop_strings": [text, "never written"], "tokenizer": tokenizer}
        found, expected = (tokens_of(called, inputs, **stop, **how)[0] for called in both)
        assert torch.equal(found, expected)
        written = found[0, length:]
        assert text in tokenizer.decode(written)
        assert len(written) < TOKENS or not written[-1]  # what ended is padded
    assert fast.report().caches.passed == {}


def test_a_stream(both: tuple[Any, Any], tokenizer: Any) -> None:
    """Of pieces of text, from another thread."""
    fast, model = both
    inputs = tokenizer(TEXTS[1:], return_tensors="pt")
    expected = tokens_of(model, inputs, max_new_tokens=24)[0]
    streamer = TextIteratorStreamer(tokenizer, timeout=60)
    how = {"max_new_tokens": 24, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=fast.generate, kwargs={**inputs, **how})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(expected[0])
    assert len(pieces) > 1


def test_captures_are_kept_for_other_processes(both: tuple[Any, Any], tokenizer: Any) -> None:
    """A model like this one finds them; one that computes something else does not."""
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    kept = []
    for scaling in (None, None, 0.9):
        model = copy.deepcopy(both[1])
        model.model.layers[0].self_attn.scaling = scaling or model.model.layers[0].self_attn.scaling
        fast = smelt.compile(model)
        found, expected = (tokens_of(called, inputs)[0] for called in (fast, model))
        assert torch.equal(found, expected)
        made = fast._generation.calls.entries
        kept.append([isinstance(entry, KeptEntry) for entry in made])
    assert kept == [[False, False], [True, True], [False, False]]
