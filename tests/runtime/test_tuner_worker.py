"""Worker processes: a schedule that is wrong, crashes, hangs or takes too much memory costs itself and nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from smelt.codegen.schedule import default_schedule
from smelt.codegen.space import space
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.runtime import child
from smelt.runtime.tuner_kernel import Prepared, WrongResult
from smelt.runtime.tuner_task import Task
from smelt.runtime.tuner_worker import Worker, target_from_dict, target_to_dict

from .tuning import CRASHING, FASTEST, GREEDY, HANGING, default_of, linear, planted_worker, target


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = planted_worker(tmp_path_factory.mktemp("worker"))
    yield made
    made.close()


def test_what_is_right_is_timed(worker: Worker) -> None:
    task = linear()
    default = default_of(task)
    other = replace(default, tile_m=4)
    assert worker.check(task, other) == {"status": "ok"}
    answer = worker.time(task, [default, other], rounds=3, turn=1e-4)
    assert answer["status"] == "ok"
    assert [len(seconds) for seconds in answer["seconds"]] == [3, 3]
    assert all(0 < s < 1 for seconds in answer["seconds"] for s in seconds)


def test_the_fastest_wrong_kernel_is_found_before_it_is_timed(worker: Worker) -> None:
    task = linear()
    wrong = replace(default_of(task), block_k=FASTEST)
    for answer in (worker.check(task, wrong), worker.time(task, [default_of(task), wrong], rounds=3)):
        assert answer["status"] == "wrong"
        assert "nan instead of" in answer["message"]
        assert "seconds" not in answer


def test_too_much_memory_costs_one_schedule(worker: Worker) -> None:
    answer = worker.check(linear(), replace(default_of(linear()), block_k=GREEDY))
    assert answer == {"status": "refused", "message": "MemoryError: "}


def test_a_schedule_that_cannot_be_built_is_refused(worker: Worker) -> None:
    answer = worker.check(linear(), replace(default_of(linear()), vector=7))
    assert answer["status"] in ("refused", "wrong")
    assert answer["message"]


def test_a_crash_costs_one_schedule(worker: Worker) -> None:
    task = linear()
    answer = worker.check(task, replace(default_of(task), block_k=CRASHING))
    assert answer["status"] == "crash"
    assert "ended with -6" in answer["message"]
    assert worker.check(task, default_of(task)) == {"status": "ok"}


def test_a_hang_costs_one_schedule(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    task = linear()
    assert worker.check(task, default_of(task)) == {"status": "ok"}
    monkeypatch.setattr(child, "PATIENCE", 1)
    monkeypatch.setattr(worker, "seconds", 0.5)
    answer = worker.check(task, replace(default_of(task), block_k=HANGING))
    assert answer == {"status": "hang", "message": "no answer within 0.5 seconds"}


# --- what is held to what ---------------------------------------------------------------------------------------------


def test_a_sample_of_the_program_and_one_of_the_region() -> None:
    made = Prepared(linear(rows=24), target())
    assert [dict(s.sizes) == made.task.known() for s in made.samples] == [True, False]
    assert len({tuple(s.operands[0].shape) for s in made.samples}) == 2


def test_a_result_that_is_not_written_is_seen() -> None:
    made = Prepared(linear(), target())
    kernel = made.build(None)
    kernel._probes._built = {"probe_k0_linear_relu": lambda table, sizes: None}
    with pytest.raises(WrongResult, match="nan instead of"):
        kernel.check(made.samples[0])


def test_what_is_written_beside_a_result_is_seen() -> None:
    made = Prepared(linear(), target())
    kernel = made.build(None)
    run = kernel.function

    def beside(table: torch.Tensor, sizes: torch.Tensor) -> None:
        run(table, sizes)
        moved = table.clone()
        moved[2] += 64  # the result again, some elements further
        run(moved, sizes)
        run(table, sizes)

    kernel._probes._built = {"probe_k0_linear_relu": beside}
    with pytest.raises(WrongResult, match="outside of a result"):
        kernel.check(made.samples[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_kind_of_schedule_is_right(dtype: torch.dtype) -> None:
    task = linear(rows=7, terms=33, columns=50, dtype=dtype)
    made = Prepared(task, target())
    everything = space(made.program, target().machine)
    assert everything[0] == default_schedule(made.program, target().machine)
    for schedule in everything[:: len(everything) // 6]:
        made.build(schedule)


def test_integers_of_the_call_decide_how_much_there_is_to_do() -> None:
    table = ops.input(name="t", shape=(9, 4), dtype=torch.float32)
    index = ops.input(name="i", shape=(3,), dtype=torch.int64)
    region = Graph([table, index], [ops.embedding(table, index)])
    task = Task("k0", 1, region, ((0, 1),), orders=(None, None), integers={1: (8, 0, 8)})
    made = Prepared(Task.from_dict(json.loads(json.dumps(task.to_dict()))), target())
    assert made.samples[0].operands[1].tolist() == [8, 0, 8]
    made.build(None)


def test_what_another_kernel_stored_lies_in_its_order() -> None:
    x = ops.input(name="x", shape=(5, 6), dtype=torch.float32)
    task = Task("k0", 1, Graph([x], [ops.exp(x)]), ((0, 1),), orders=((1, 0),))
    made = Prepared(task, target())
    (given,) = made.program.inputs
    assert (given.type.shape, given.strides) in (((5, 6), (1, 5)), ((6, 5), (5, 1)))  # 6 x 5 in memory
    made.build(None)


def test_a_target_reads_back() -> None:
    assert target_from_dict(json.loads(json.dumps(target_to_dict(target())))) == target()
