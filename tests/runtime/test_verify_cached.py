"""``smelt.verify`` of quantised models called with a cache: prompts and tokens, held to the quantised model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import smelt

pytest.importorskip("transformers")

from transformers.cache_utils import DynamicCache, StaticCache

from smelt.runtime.verify import VerifyResult
from smelt.runtime.verify_caches import copied

from .generative import VOCAB, prompts, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")

STEPS = 2
KINDS = [
    ("int8", "int8", torch.int8),
    ("int4", None, torch.int32),
    ("fp8", "bfloat16", torch.uint8),
    ("int8-dynamic", "bfloat16", torch.int8),
    ("fp8-dynamic", None, torch.uint8),
]
CACHES: dict[str, Callable[[Any], Any]] = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=20),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def small(name: str) -> Any:
    """A model whose numbers are small: what float32 loses of them is far within the contract."""
    model = tiny(name)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.3)
    return model


def text(fast: Any, cache: Any, **more: Any) -> Iterator[dict[str, Any]]:
    """The arguments of the calls of one text, a prompt and ``STEPS`` tokens, each call made after it was yielded."""
    ids = prompts("qwen2")["input_ids"]
    mask = torch.ones_like(ids)
    for _ in range(1 + STEPS):
        given = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True, **more}
        yield given
        ids = fast(**given).logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)


@pytest.mark.parametrize(("kind", "kept", "packed"), KINDS)
def test_a_text_and_a_wrong_weight(kind: Any, kept: Any, packed: torch.dtype) -> None:
    """Two captures serve both kinds of caches; in the end each of them reads a weight that is wrong."""
    model = small("qwen2")
    fast = smelt.compile(model, quantize=kind, kv_cache_dtype=kept)
    for make in CACHES.values():
        for given in text(fast, make(model)):
            _check(smelt.verify(fast, **given), kept is not None)
    prompt, token, *_ = [
        {**given, "past_key_values": copied(given["past_key_values"])} for given in text(fast, make(model))
    ]
    assert len(fast.entries) == 2
    every = (
        t for entry in fast.entries for t in entry.executable._packed.values() if t.dtype == packed and t.ndim == 4
    )
    for weight in {t.data_ptr(): t for t in every}.values():  # captures share some
        weight[0, 0, :4] = weight[0, 1, 4:8] ^ 128 if kind.startswith("fp8") else weight[0, 1, 4:8] + 9
    for given in (prompt, token):
        with pytest.raises(smelt.VerifyError, match="times eager's"):
            smelt.verify(fast, **given)


def _check(result: VerifyResult, is_rounded: bool) -> None:
    """What a result says besides that it passes."""
    paths = [output.path for output in result.outputs]
    assert paths == ["logits", "past_key_values[0].keys", "past_key_values[0].values"]
    moved = {(how_far.by, how_far.path): how_far.rmse for how_far in result.moved}
    assert moved[("quantisation", "logits")] > 1e-4
    assert (moved.get(("rounding the caches", "logits"), 0) > 1e-5) == is_rounded
    assert "quantised weights" in result.reference
    assert ("rounded caches" in result.reference) == is_rounded


def test_a_source() -> None:
    model, inputs = small("bart"), prompts("bart", padded=True)
    fast = smelt.compile(model, quantize="int8", kv_cache_dtype="int8")
    tokens = torch.tensor([[2], [2]])
    cache = model(**inputs, decoder_input_ids=tokens, use_cache=True).past_key_values
    given = {
        "encoder_outputs": model.get_encoder()(**inputs),
        "attention_mask": inputs["attention_mask"],
        "decoder_input_ids": tokens,
        "past_key_values": cache,
    }
    for more in ({}, {"return_dict": False}):  # a tuple has other paths
        paths = [output.path for output in smelt.verify(fast, **given, use_cache=True, **more).outputs]
        assert len(paths) == 6
        assert sum("cross_attention_cache[0]" in path for path in paths) == 2


def test_windows_that_slide() -> None:
    """A step's tensors have more slots than a layer shows."""
    model = small("mistral")
    fast = smelt.compile(model, quantize="int8", kv_cache_dtype="int8")
    ids = torch.randint(3, VOCAB, (2, 30), generator=torch.Generator().manual_seed(0))
    cache = model(ids, use_cache=True).past_key_values
    for _ in range(2):
        result = smelt.verify(fast, ids[:, :1], past_key_values=cache, use_cache=True)
        assert result.outputs[1].shape == (2, 2, 15, 8)
        cache = fast(ids[:, :1], past_key_values=cache, use_cache=True).past_key_values


# --- what it catches --------------------------------------------------------------------------------------------------


def test_a_wrong_scale_is_found() -> None:
    fast = smelt.compile(small("qwen2"), quantize="int8", kv_cache_dtype="int8")
    given = next(text(fast, None))
    smelt.verify(fast, **given)
    executable = fast.entries[0].executable
    scale = next(t for t in executable._packed.values() if t.dtype == torch.float32 and t.shape == (97, 1))
    known = executable.values._values  # which may be the tensors that kernels read
    known.update({name: value.clone() for name, value in known.items()})
    scale.mul_(1.05)
    with pytest.raises(smelt.VerifyError, match="times eager's"):
        smelt.verify(fast, **given)


def test_a_wrong_weight_before_quantising_is_found() -> None:
    model = small("qwen2")
    fast = smelt.compile(model, quantize="int8")
    given = next(text(fast, None))
    fast(**given)
    (entry,) = fast.entries
    other = dict(entry.executable.weights)
    other["model.lm_head.weight"] = other["model.lm_head.weight"] * 1.1
    entry.executable.refresh(other)
    with pytest.raises(smelt.VerifyError, match="changed before its weights were quantised: logits"):
        smelt.verify(fast, **given)


def test_a_wrong_cache_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = smelt.compile(small("qwen2"), quantize="int8", kv_cache_dtype="int8")
    run = type(fast)._run

    def spoilt(self: Any, args: Any, kwargs: Any) -> Any:
        found = run(self, args, kwargs)
        layer = found.past_key_values.layers[0]
        layer.keys = torch.cat([layer.keys[:, :, :1] * 1.05, layer.keys[:, :, 1:]], 2)
        return found

    monkeypatch.setattr(type(fast), "_run", spoilt)
    with pytest.raises(smelt.VerifyError, match=r"the worst: past_key_values\[0\].keys"):
        smelt.verify(fast, **next(text(fast, None)))


def test_a_call_that_pytorch_runs_is_held_to_the_model_as_it_is() -> None:
    model = small("qwen2")
    model.set_attn_implementation("eager")
    fast = smelt.compile(model, quantize="int8")
    found = smelt.verify(fast, **next(text(fast, DynamicCache(config=model.config), output_attentions=True)))
    assert found.reference.endswith("PyTorch ran the call: attention weights were asked for")
    assert not found.moved


def test_rounded_values_in_a_wide_evaluation() -> None:
    """The float64 reference has caches that are rounded to bfloat16, as the kernels do."""
    from smelt.frontend.export import capture
    from smelt.ir.interpret import interpret

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16().float() * 3

    x = torch.randn(5)
    graph = capture(Model().eval(), (x,)).graph
    plain = interpret(graph, [x], {}, dtype=torch.float64).outputs[0]
    assert torch.equal(plain, x.double() * 3)
    rounded = interpret(graph, [x], {}, dtype=torch.float64, rounded={torch.bfloat16}).outputs[0]
    assert torch.equal(rounded, x.bfloat16().double() * 3)
