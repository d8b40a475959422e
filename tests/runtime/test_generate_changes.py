"""A model that is changed after it was compiled: texts that begin afterwards are those of the changed model."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.generation.unchanged import Change, Watch

pytest.importorskip("transformers")

from transformers import GenerationConfig

from .generative import prompts, tiny, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(3))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_nothing_changed() -> None:
    model = Pair()
    watch = Watch(model)
    model(torch.ones(1, 8))
    assert [watch.change() for _ in range(2)] == [Change.NOTHING] * 2


def replaced(model: Pair) -> None:
    model.one.weight = model.two.weight = nn.Parameter(torch.zeros(8, 8))


def written(model: Pair) -> None:
    with torch.no_grad():
        model.one.weight[3, 5] += 1


def written_everywhere(model: Pair) -> None:
    with torch.no_grad():
        model.one.weight.mul_(0.5)


def written_as_data(model: Pair) -> None:
    model.one.weight.data.mul_(0.5)


def written_in_bfloat16(model: Pair) -> None:
    model.to(torch.bfloat16)


def other_memory(model: Pair) -> None:
    model.one.bias.data = torch.randn(8)


def other_buffer(model: Pair) -> None:
    model.scale = torch.zeros(3)


WEIGHTS = (replaced, written, written_everywhere, written_as_data, written_in_bfloat16, other_memory, other_buffer)


def other_module(model: Pair) -> None:
    model.one = nn.Linear(8, 8)


def hook(model: Pair) -> None:
    model.one.register_forward_hook(lambda module, args, found: found + 1)


def other_forward(model: Pair) -> None:
    model.one.forward = lambda x: x  # type: ignore[method-assign]


def training(model: Pair) -> None:
    model.one.train(not model.one.training)


def untied(model: Pair) -> None:
    """A name that a capture does not know, because both were one."""
    model.two.weight = nn.Parameter(torch.zeros(8, 8))


MODULES = (other_module, hook, other_forward, training, untied)


@pytest.mark.parametrize("change", [*WEIGHTS, *MODULES])
def test_a_change_is_seen_once(change: Callable[[Pair], None]) -> None:
    model = Pair()
    watch = Watch(model)
    change(model)
    assert watch.change() is (Change.WEIGHTS if change in WEIGHTS else Change.MODULES)
    assert watch.change() is Change.NOTHING


def test_what_calls_write_to_is_no_change() -> None:
    model = Pair()
    watch, scale = Watch(model), model.scale
    assert isinstance(scale, Tensor)
    scale.add_(1)
    scale.data.add_(1)
    assert watch.change({scale.data_ptr()}) is Change.NOTHING
    scale.add_(1)
    assert watch.change() is Change.WEIGHTS


# --- of a model that generates ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """A model compiled, which has generated, and the model, which the tests change one after the other."""
    model = tiny("qwen2")
    fast = smelt.compile(model)
    tokens_of(fast, prompts("qwen2"), max_new_tokens=4)
    return fast, model


def same_tokens(both: tuple[Any, Any]) -> Tensor:
    found, expected = (tokens_of(model, prompts("qwen2"), max_new_tokens=16)[0] for model in both)
    assert torch.equal(found, expected)
    return expected  # type: ignore[no-any-return]


def test_weights(both: tuple[Any, Any]) -> None:
    """Kernels take them as they are now, without another capture."""
    fast, model = both
    seen = [same_tokens(both)]
    other = tiny("qwen2", seed=5)
    model.load_state_dict(other.state_dict())
    seen.append(same_tokens(both))
    for weight in model.parameters():
        weight.data.copy_(weight.flip(0))
    seen.append(same_tokens(both))
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.randn(64, 32))
    seen.append(same_tokens(both))
    assert len({tuple(tokens.flatten().tolist()) for tokens in seen}) == len(seen)
    assert len(fast.entries) == 2
    # calls of one's own too, where they begin a text
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        ids = prompts("qwen2")["input_ids"]
        found, expected = (called(ids, logits_to_keep=1).logits for called in (fast, model))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_modules(both: tuple[Any, Any]) -> None:
    before = same_tokens(both)
    hook = both[1].model.layers[0].mlp.register_forward_hook(lambda module, args, found: found * 2)
    assert not torch.equal(same_tokens(both), before)
    hook.remove()


def test_settings(both: tuple[Any, Any]) -> None:
    """Attributes that are set are the model's, as those that are read are."""
    fast, model = both
    before = same_tokens(both)
    config = copy.deepcopy(model.generation_config)
    config.repetition_penalty = 1.8
    fast.generation_config = config
    assert model.generation_config is config
    assert not torch.equal(same_tokens(both), before)
    assert isinstance(fast.generation_config, GenerationConfig)


def test_outputs_that_the_config_asks_for(both: tuple[Any, Any]) -> None:
    fast, model = both
    ids = prompts("qwen2")["input_ids"]
    with torch.no_grad():
        assert list(fast(ids)) == list(model(ids))
        model.config.output_hidden_states = True
        found, expected = fast(ids), model(ids)
        model.config.output_hidden_states = False
    assert list(found) == list(expected)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states, rtol=1e-3, atol=1e-3)
