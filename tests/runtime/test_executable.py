"""Executables: what the plan shares, what it splits, and what it owes the caller."""

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.executable import Executable
from smelt.runtime.plan import KernelStep, Place, TorchStep


def compiled(model: nn.Module, *args: Tensor) -> tuple[smelt.CompiledModule, Executable]:
    fast = smelt.compile(model.eval(), cache=False)
    smelt.verify(fast, *args)
    return fast, fast.entries[0].executable


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(32, 64), nn.Linear(64, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def deep() -> tuple[smelt.CompiledModule, Executable]:
    torch.manual_seed(0)
    return compiled(nn.Sequential(*(Block() for _ in range(8))), torch.randn(3, 7, 32))


def test_equal_layers_are_one_set_of_kernels(deep: tuple[smelt.CompiledModule, Executable]) -> None:
    _, executable = deep
    assert len(executable.kernels) == 2
    assert [k.calls for k in executable.kernels] == [8, 8]


def test_intermediates_share_memory(deep: tuple[smelt.CompiledModule, Executable]) -> None:
    _, executable = deep
    (b, s) = (r.symbol for r in executable.plan.graph.symbols)
    row = 64 * 100 * 4
    # the residual stream, the norm's result or the wide one: never all layers at once
    assert executable.arena_bytes({b: 10, s: 10}) <= 3 * 2 * row


def test_the_plan_is_one_native_call(deep: tuple[smelt.CompiledModule, Executable]) -> None:
    _, executable = deep
    assert len(executable.hosts) == 1
    assert all(isinstance(step, KernelStep) for step in executable.plan.steps)


def test_an_operator_that_pytorch_runs_splits_the_plan() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            values, _ = torch.cummax(self.first(x), dim=-1)
            return torch.tanh(self.last(values))

    _, executable = compiled(Middle(), torch.randn(5, 16))
    assert [isinstance(h, TorchStep) for h in executable.hosts] == [False, True, False]
    assert [f.op for f in executable.fallbacks] == ["aten.cummax.default"]


def test_a_buffer_is_changed_in_the_model_and_read_anew() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x * self.count

    model = Counter().eval()
    fast = smelt.compile(model, cache=False)
    results = [fast(torch.ones(2, 3)) for _ in range(4)]
    assert [r[0, 0].item() for r in results] == [1, 2, 3, 4]
    assert model.count.tolist() == [4, 4, 4]


def test_results_are_the_callers_to_keep() -> None:
    fast, _ = compiled(nn.Linear(8, 8), torch.randn(4, 8))
    first = fast(torch.ones(4, 8))
    kept = first.clone()
    fast(torch.zeros(4, 8))
    assert torch.equal(first, kept)


def test_a_result_that_is_a_view_of_another_shares_its_buffer() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.tanh(x)
            return y, y.transpose(0, 1)

    _, executable = compiled(Views(), torch.randn(3, 5))
    assert sum(b.place is Place.OUTPUT for b in executable.plan.buffers) == 1


def test_new_weights_count_after_refresh() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(4, 8)
    fast, _ = compiled(model, x)
    with torch.no_grad():
        model[0].weight.mul_(3)
    fast.refresh()
    torch.testing.assert_close(fast(x), model(x))


def test_an_index_out_of_range_raises_and_the_next_call_is_right() -> None:
    model = nn.Embedding(10, 4)
    fast, _ = compiled(model, torch.tensor([[1, 2]]))
    for bad in (10, -1, 2**40):
        with pytest.raises(IndexError):
            fast(torch.tensor([[bad, 2]]))
    assert torch.equal(fast(torch.tensor([[3, 9]])), model(torch.tensor([[3, 9]])))


def test_values_that_two_outputs_guard_are_computed_lane_by_lane() -> None:
    # a condition that differs between the lanes of a vector once lost the value bound to it
    class Tables(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.cat((x, x), dim=-1)
            return both.cos(), both.sin()

    compiled(Tables(), torch.randn(1, 9, 8))


def test_a_mask_that_two_kernel_results_share() -> None:
    # a name bound to a vector of bool once failed in LLVM
    class Masks(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            same = x[:, None, :] == x[:, :, None]
            return (same & a).float(), (same & b).float()

    compiled(Masks(), torch.randint(0, 2, (2, 19)), torch.rand(19, 19) > 0.5, torch.rand(19, 19) > 0.5)


def test_a_weight_that_the_model_changes_is_read_as_it_is_now() -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.eye(8))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.nn.functional.linear(x, self.matrix)
            self.matrix.mul_(2)
            return y

    fast = smelt.compile(Drifting().eval(), cache=False)
    assert [fast(torch.ones(2, 8))[0, 0].item() for _ in range(3)] == [1, 2, 4]


def test_an_index_into_an_empty_table_raises() -> None:
    fast = smelt.compile(torch.nn.functional.embedding, cache=False)
    ids, table = torch.tensor([1, 2]), torch.randn(3, 4)
    assert torch.equal(fast(ids, table), table[ids])
    with pytest.raises(IndexError):
        fast(ids, torch.randn(0, 4))
    assert fast(ids[:0], torch.randn(0, 4)).shape == (0, 4)
    with pytest.raises(IndexError):
        smelt.compile(nn.Embedding(0, 300).eval(), cache=False)(ids)


@pytest.mark.parametrize("name", ["T", "I", "vmath", "range", "err", "class", "in0", "s 0", "é", "n_x"])
def test_size_symbols_may_have_any_name(name: str) -> None:
    fast = smelt.compile(nn.Linear(8, 8).eval(), cache=False, dynamic={"input": {0: name}})
    smelt.verify(fast, torch.randn(3, 8))
    smelt.verify(fast, torch.randn(5, 8))
