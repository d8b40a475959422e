"""Several threads that generate: each gets its own tokens, and nobody sees a model that is being traced."""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import smelt
from smelt.runtime.stateful import kept_of, share_kept

pytest.importorskip("transformers")

from .generative import prompts, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")
HOW: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
FORMS = ((2, 9, False), (1, 5, False), (3, 17, False), (2, 9, True))  # batch, length, with a mask


def asked() -> list[dict[str, Any]]:
    found = []
    for batch, length, masked in FORMS:
        inputs: dict[str, Any] = prompts("llama", batch=batch, length=length)
        found.append(inputs if masked else {"input_ids": inputs["input_ids"]})
    return found


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returns, or raises, all of them in threads that begin together."""
    found: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(place: int) -> None:
        barrier.wait()
        try:
            found[place] = calls[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("compiled", [1, 2])
def test_threads_get_their_own_tokens(compiled: int) -> None:
    model = tiny("llama")
    expected = [model.generate(**inputs, **HOW) for inputs in asked()]
    fast: list[Any] = [smelt.compile(model) for _ in range(compiled)]
    calls = [
        lambda inputs=inputs, place=place: fast[place % compiled].generate(**inputs, **HOW)
        for place, inputs in enumerate(asked())
    ]
    for _ in range(2):  # while it is captured, and afterwards
        for ours, eager in zip(at_once(calls), expected, strict=True):
            assert isinstance(ours, torch.Tensor), ours
            assert torch.equal(ours, eager)
    assert all(not f.report().caches.passed for f in fast)


def test_copies_generate() -> None:
    model = tiny("llama")
    fast: Any = smelt.compile(model)
    inputs = asked()[0]
    expected = model.generate(**inputs, **HOW)
    assert torch.equal(fast.generate(**inputs, **HOW), expected)
    other = copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in other.original.parameters():
            parameter.mul_(0.7)
    assert torch.equal(other.generate(**inputs, **HOW), other.original.generate(**inputs, **HOW))
    assert torch.equal(fast.generate(**inputs, **HOW), expected)


def test_a_model_has_one_lock() -> None:
    model, part = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert kept_of(model).lock is kept_of(model).lock
    assert kept_of(part).lock is not kept_of(model).lock
    share_kept(part, model)
    assert kept_of(part).lock is kept_of(model).lock
    assert kept_of(abs).lock is not kept_of(abs).lock
