"""What a kernel is timed on: memory as cold as in a run of the model, and the same for all its schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime import tuner_memory, tuner_task
from smelt.runtime.executable import Executable
from smelt.runtime.plan import KernelStep
from smelt.runtime.tuner_kernel import Prepared
from smelt.runtime.tuner_memory import Memory, Pool, copies_of
from smelt.runtime.tuner_task import Task, tasks_of

from .tuning import linear, target


class Step(nn.Module):
    """A table of which one row is read, a matrix, and a state that a call writes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(100, 32), nn.Linear(32, 48)
        self.register_buffer("state", torch.zeros(6, 48))

    def forward(self, token: Tensor, at: Tensor) -> Tensor:
        made = self.linear(self.table(token))
        self.state.index_copy_(0, at, made)
        return torch.softmax(self.state @ made.T, 0)


def tasks() -> tuple[Executable, list[Task]]:
    inputs = torch.tensor([3]), torch.tensor([2])
    fast = smelt.compile(Step().eval(), threads=1, dynamic=False, cache=False)
    with torch.no_grad():
        fast(*inputs)
    (entry,) = fast.entries
    assert isinstance(entry.executable, Executable)
    return entry.executable, tasks_of(entry.executable, inputs, {})


def test_what_the_model_keeps_is_cold_where_no_cache_holds_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(task.cold for task in tasks()[1])
    monkeypatch.setattr(tuner_task, "last_cache_bytes", lambda: 1000)
    executable, found = tasks()
    names = {s.kernel.name: s for s in executable.plan.steps if isinstance(s, KernelStep)}
    cold = {executable.plan.buffers[names[t.name].buffers[i]].name for t in found for i in t.cold}
    assert any("linear.weight" in name for name in cold)
    assert any("state" in name for name in cold)
    assert not any("table" in name for name in cold)
    assert [Task.from_dict(t.to_dict()).cold for t in found] == [t.cold for t in found]


def test_copies_are_more_than_the_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner_memory, "last_cache_bytes", lambda: 1 << 20)
    assert [copies_of(n) for n in (0, 1 << 19, 3 << 20, 8 << 20)] == [1, 8, 2, 1]
    assert copies_of(1) == tuner_memory.MOST_COPIES


@pytest.mark.parametrize("huge", [False, True])
def test_all_layouts_of_a_weight_are_timed_in_the_same_memory(huge: bool) -> None:
    pool, packed = Pool(), torch.randn(4, 30, 16)
    first = pool.copies("operand 1", packed, 3, huge=huge)
    other = pool.copies("operand 1", torch.randn(2, 30, 33), 3, huge=huge)  # padded otherwise
    assert [x.data_ptr() for x in first] == [x.data_ptr() for x in other]
    assert len({x.data_ptr() for x in first}) == 3
    assert first[2].data_ptr() - first[1].data_ptr() >= packed.nbytes
    assert all(x.isfinite().all() for x in other)
    larger = pool.copies("operand 1", torch.ones(300, 300), 3, huge=huge)
    assert {x.data_ptr() for x in larger}.isdisjoint(x.data_ptr() for x in first)
    assert all((x == 1).all() for x in larger)


def test_a_batch_goes_through_all_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner_memory, "last_cache_bytes", lambda: 3 * 64 * 40 * 4 // 4)  # of three weights
    made = Prepared(replace(linear(), cold=frozenset([1])), target())
    kernel = made.build(None)
    assert kernel.together == 3
    read: list[int] = []

    def note(table: Tensor, sizes: Tensor) -> None:
        read.extend(table.reshape(3, -1)[:, 1].tolist())

    kernel._probes._built = {"together_k0_linear_relu": note}
    run = kernel.timed(made.samples[0], Pool(), made.task.cold)
    run(1, 1)
    assert len(read) == len(set(read)) == kernel.calls == 3
    run(2, 2)
    assert len(read) == 15
    assert len(set(read)) == 3


def test_state_is_written_where_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner_memory, "last_cache_bytes", lambda: 1000)
    task = next(t for t in tasks()[1] if t.in_place)
    made = Prepared(task, target())
    ((result, operand),) = task.in_place
    memory = Memory(made.step, made.samples[0].operands, made.samples[0].sizes)
    (table, *_) = memory.tables(Pool(), [operand], 2)
    for addresses in table.reshape(2, -1):
        assert addresses[len(memory.held) + result] == addresses[operand]
    assert table[operand] != table.reshape(2, -1)[1, operand]
