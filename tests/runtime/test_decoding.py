"""One-token decoding with a static cache: tokens and caches as in eager, caches in place, few kernels, few bytes."""

import copy
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.codegen.machine import Machine
from smelt.frontend.export import capture
from smelt.ir.cost import reads_of, work_of, written_by
from smelt.ir.graph import Graph
from smelt.ir.types import TensorType
from smelt.rewrites.context import Context
from smelt.rewrites.fusion import fuse
from smelt.rewrites.pipeline import run_pipeline
from smelt.runtime.build import kernel_infos
from smelt.runtime.kernels import KernelTable, finalise
from smelt.runtime.plan import KernelStep, Place, Plan, make_plan
from smelt.tools.zoo import ZOO, build_gpt2, build_llama, build_t5

pytest.importorskip("transformers")

from transformers.cache_utils import StaticCache

from smelt.tools.decoding import decoder_step

TOKENS = 64
STEPS = ["llama-decode", "gpt2-decode", "t5-decode"]


def step(name: str, batch: int, context: int) -> nn.Module:
    torch.manual_seed(0)
    build = {"llama-decode": build_llama, "gpt2-decode": build_gpt2, "t5-decode": build_t5}[name]
    return decoder_step(build(True), batch, context, 7 if name == "t5-decode" else None)


def greedy(model: Any, batch: int) -> list[list[int]]:
    """Tokens chosen one after another, the first ones given, at positions from 0 on."""
    tokens, found = torch.arange(5, 5 + batch)[:, None], []
    with torch.no_grad():
        for position in range(TOKENS):
            tokens = model(tokens, torch.tensor([position]))[:, -1].argmax(-1, keepdim=True)
            found.append(tokens[:, 0].tolist())
    return found


def plan_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph, Plan]:
    """The captured graph and the plan, without native code."""
    captured = capture(model, args, kwargs, dynamic=False, fallback="error").graph
    graph = fuse(run_pipeline(captured, Context()))
    table = KernelTable(Machine(), frozenset(m.target for m in graph.mutations))
    graph = finalise(graph, table)
    return captured, make_plan(graph, table)


@pytest.mark.parametrize(("name", "batch"), list(zip(STEPS, (1, 3, 2), strict=True)))
def test_greedy_tokens_and_caches_are_those_of_eager(name: str, batch: int) -> None:
    """64 tokens from one capture, over a cache that the compiled model and eager fill each for itself."""
    eager = step(name, batch, TOKENS + 5)
    fast = smelt.compile(copy.deepcopy(eager), dynamic=False, cache=False)
    assert greedy(fast, batch) == greedy(eager, batch)
    for (buffer, ours), (_, theirs) in zip(fast.named_buffers(), eager.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=buffer)
    assert len(fast.entries) == 1
    assert fast.entries[0].executable.fallbacks == ()


@pytest.mark.parametrize("name", STEPS)
def test_no_kernel_copies_a_cache(name: str) -> None:
    """Each cache is the very memory that one kernel writes one position of; nothing else is as large as a cache."""
    model = step(name, 2, 512)
    _, plan = plan_of(model, (torch.tensor([[5], [6]]), torch.tensor([3])), {})
    smallest = min(m.target.tensor_type.nbytes for m in plan.graph.mutations)
    for mutation in plan.graph.mutations:
        assert plan.is_in_place(mutation)
        home = plan.home[mutation.target]
        writers = [s for s in plan.steps if isinstance(s, KernelStep) and home.position in outputs_of(s)]
        assert len(writers) == 1
    others = [b for b in plan.buffers if b.place in (Place.ARENA, Place.OUTPUT, Place.TORCH)]
    assert all(nbytes(b.type) < smallest / 4 for b in others)
    scatters = {s.kernel.name: s.kernel for s in plan.steps if isinstance(s, KernelStep) and s.kernel.in_place}
    for kernel in scatters.values():
        size = max(a.size for store in kernel.program.stores for a in store.axes)
        assert size < 512, "a loop over the cache"


def outputs_of(step_: KernelStep) -> tuple[int, ...]:
    """The table positions that a kernel writes, the error cell aside."""
    count = len(step_.kernel.program.outputs)
    return step_.buffers[-1 - count : -1]


def nbytes(type_: TensorType) -> int:
    assert isinstance(type_.nbytes, int)
    return type_.nbytes


LAYER = {  # kernels of one layer, by what they compute
    "llama-decode": {
        "rms_norm linear": 2,
        "rope index_put index_put": 1,
        "rope attention": 1,
        "linear add": 1,
        "swiglu linear add": 1,
    },
    "gpt2-decode": {
        "layer_norm linear": 1,
        "index_put index_put": 1,
        "attention": 1,
        "linear add": 2,
        "layer_norm linear gelu": 1,
    },
    "t5-decode": {
        "rms_norm linear": 2,
        "index_put index_put": 1,
        "attention": 2,
        "linear add": 3,
        "rms_norm linear relu": 1,
    },
}


@cache
def tiny_plan(name: str) -> Plan:
    model, args, kwargs = ZOO[name].make(tiny=True)
    return plan_of(model, args, kwargs)[1]


@pytest.mark.parametrize("name", STEPS)
def test_kernels_of_a_layer(name: str) -> None:
    """Keys and values are turned and written by one kernel, queries where attention reads them; nothing is copied."""
    steps = [s for s in tiny_plan(name).steps if isinstance(s, KernelStep)]
    labels = [" ".join(operators(s)) for s in steps]
    assert "copy" not in " ".join(s.kernel.name for s in steps)
    last = max(i for i, label in enumerate(labels) if "index_put" in label)
    # from a write to the next one: after the last write the product of the logits follows, with its norm
    assert Counter(labels[last:]) == Counter(LAYER[name])


def operators(step_: KernelStep) -> list[str]:
    return [n.op.name for n in work_of(step_.kernel.region)]


@pytest.mark.parametrize("name", STEPS)
def test_masks_by_position_are_no_tensors(name: str) -> None:
    """No kernel makes a mask of keys; T5 makes one for all layers, since it adds a bias to each."""
    masks = [s for s in tiny_plan(name).steps if isinstance(s, KernelStep) and "le" in operators(s)]
    assert len(masks) == (1 if name == "t5-decode" else 0)


@pytest.mark.parametrize("name", ["llama-decode", "gpt2-decode"])
def test_bytes_over_the_least(name: str) -> None:
    """At context 1024: inputs, weights and caches read once, logits and one position of each cache written."""
    captured, plan = plan_of(*ZOO[name].make())
    infos = kernel_infos(plan)
    moved = sum(info.bytes * info.calls for info in infos)
    caches = {m.target for m in captured.mutations}
    reads = reads_of(captured)
    read = sum(n.tensor_type.nbytes if n in caches else reads[n] for n in captured.weights())
    written = sum(written_by(m.value) for m in captured.mutations)
    ends = sum(n.tensor_type.nbytes for n in (*captured.inputs, *captured.outputs))
    assert 1 <= moved / (ends + read + written) <= 1.15


class OwnCache(nn.Module):
    """A model with transformers' own static cache, each layer of which counts positions in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model: Any = build_llama(True)
        config = self.model.config
        self.cache: Any = StaticCache(config=config, max_cache_len=20)
        width = config.hidden_size // config.num_attention_heads
        self.cache.early_initialization(1, config.num_key_value_heads, width, torch.float32, torch.device("cpu"))
        for i, layer in enumerate(self.cache.layers):
            for name in ("keys", "values", "cumulative_length"):
                self.register_buffer(f"{name}_{i}", getattr(layer, name))

    def forward(self, input_ids: Tensor) -> Tensor:
        for i, layer in enumerate(self.cache.layers):
            for name in ("keys", "values", "cumulative_length"):
                setattr(layer, name, getattr(self, f"{name}_{i}"))
        logits: Tensor = self.model(input_ids=input_ids, past_key_values=self.cache, use_cache=True).logits
        return logits


def test_the_static_cache_of_transformers() -> None:
    """It counts positions as it writes: the counts are copied, the keys and values are not."""
    eager, model = OwnCache().eval(), OwnCache().eval()
    fast = smelt.compile(model, dynamic=False, cache=False)
    tokens = torch.tensor([[5]])
    with torch.no_grad():
        for _ in range(8):
            expected, found = eager(tokens), fast(tokens)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            tokens = expected[:, -1].argmax(-1, keepdim=True)
    for (name, ours), (_, theirs) in zip(model.named_buffers(), eager.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    plan = fast.entries[0].executable.plan
    in_place = {str(m.target.attrs["name"]) for m in plan.graph.mutations if plan.is_in_place(m)}
    assert in_place == {"keys_0", "values_0", "keys_1", "values_1"}


# --- caches of all kinds ----------------------------------------------------------------------------------------------


class Store(nn.Module):
    """A cache [rows, width] that a call writes one row of and sums."""

    cache: Tensor

    def __init__(self, cache: Tensor) -> None:
        super().__init__()
        self.register_buffer("cache", cache)

    def forward(self, row: Tensor, place: Tensor) -> Tensor:
        self.cache.index_copy_(0, place, row)
        return self.cache.sum(1)


def unaligned() -> Tensor:
    return torch.zeros(9 * 8 + 1)[1:].view(9, 8)


def strided() -> Tensor:
    return torch.zeros(8, 9).T


@pytest.mark.parametrize("make", [unaligned, strided])
def test_a_cache_that_kernels_cannot_write_to_is_kept_up_to_date(make: Any) -> None:
    model, reference = Store(make()).eval(), Store(make()).eval()
    fast = smelt.compile(model, cache=False)
    for place in (3, 0, 8):
        row = torch.full((1, 8), float(place + 1))
        assert torch.equal(fast(row, torch.tensor([place])), reference(row, torch.tensor([place])))
        assert torch.equal(model.cache, reference.cache)


def test_a_place_out_of_range_is_an_error_and_changes_nothing() -> None:
    model = Store(torch.zeros(9, 8)).eval()
    fast = smelt.compile(model, cache=False)
    row = torch.ones(1, 8)
    fast(row, torch.tensor([2]))
    before = model.cache.clone()
    with pytest.raises(IndexError, match="out of range"):
        fast(row + 1, torch.tensor([9]))
    assert torch.equal(model.cache, before)
    assert fast(row, torch.tensor([8])).tolist() == [0, 0, 8, 0, 0, 0, 0, 0, 8]


class Peek(nn.Module):
    """Returns what the cache was before, what it is now, and the cache itself."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(9, 8))

    def forward(self, row: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = self.cache.exp().sum()
        self.cache.index_copy_(0, place, row)
        return before, self.cache.exp().sum(), self.cache


def test_what_was_there_before_can_be_read_and_results_are_the_callers() -> None:
    model, reference = Peek().eval(), Peek().eval()
    fast = smelt.compile(model, cache=False)
    for place in (1, 1, 4):
        row = torch.full((1, 8), 0.5 * place)
        ours, theirs = (m(row, torch.tensor([place])) for m in (fast, reference))
        torch.testing.assert_close(ours, theirs)
    ours[2].zero_()
    assert torch.equal(model.cache, reference.cache)


def written(cache: Tensor, row: Tensor, place: Tensor) -> Tensor:
    cache.index_copy_(0, place, row)
    return cache.sum(1)


def test_a_cache_among_the_arguments() -> None:
    fast = smelt.compile(written, cache=False)
    for store in (torch.zeros(9, 8), unaligned(), strided()):
        for place in (2, 7):
            mine = store.clone(memory_format=torch.contiguous_format)
            row, at = torch.full((1, 8), 3.0), torch.tensor([place])
            assert torch.equal(fast(store, row, at), written(mine, row, at))
            assert torch.equal(store, mine)
    plan = fast.entries[0].executable.plan
    assert all(plan.is_in_place(m) for m in plan.graph.mutations)


class State(nn.Module):
    """Counts its calls, and remembers the last inputs at a fixed place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.last[1:3] = x
        return x * 2


def test_other_state_in_place() -> None:
    model, reference = State().eval(), State().eval()
    fast = smelt.compile(model, cache=False)
    for i in range(3):
        x = torch.full((2, 8), float(i))
        torch.testing.assert_close(fast(x), reference(x))
    plan = fast.entries[0].executable.plan
    assert [plan.is_in_place(m) for m in plan.graph.mutations] == [True, True]


@pytest.mark.parametrize("strided", [False, True], ids=["dense", "strided"])
def test_a_cache_that_the_caller_empties_is_empty(strided: bool) -> None:
    """Kernels may work on a copy of a cache that they cannot read as it is: the module's own is what counts."""
    cache = torch.ones(2, 8).t() if strided else torch.ones(8, 2)
    model = Store(cache).eval()
    fast = smelt.compile(model, dynamic=False)
    row = torch.full((1, 2), 5.0)
    fast(row, torch.tensor([3]))
    model.cache.zero_()
    expected = torch.zeros(8)
    expected[4] = 10.0
    assert torch.equal(fast(row, torch.tensor([4])), expected)
    assert torch.equal(model.cache.sum(1), expected)


def test_bytes_past_the_position_are_not_needed() -> None:
    made = step("llama-decode", batch=2, context=16)
    tensors = list(made.buffers(recurse=False))
    token = torch.tensor([[1], [2]])
    assert made.unread_bytes(token, torch.tensor([15])) == 0
    past = sum(buffer[:, :, 4:].numel() * buffer.element_size() for buffer in tensors)
    assert made.unread_bytes(token, torch.tensor([3])) == past > 0
    assert step("t5-decode", batch=1, context=16).unread_bytes(token, torch.tensor([3])) == 0
