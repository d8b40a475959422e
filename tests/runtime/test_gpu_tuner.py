"""The tuner for GPUs without one: what is wrong is found before it is timed, and costs itself only; who wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smelt.codegen.gpu import GpuMatmulSchedule
from smelt.codegen.schedule_data import AnySchedule, LibrarySchedule
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.runtime import child
from smelt.runtime.child import Answer
from smelt.runtime.gpu_library import library_schedules
from smelt.runtime.gpu_tuner import GpuTuned, GpuTuner, gpu_progress_of, outcomes_of, report_of
from smelt.runtime.gpu_tuner_task import GpuTask, gpu_tasks_of
from smelt.runtime.gpu_tuner_worker import GpuWorker
from smelt.runtime.tuner import Settings
from smelt.runtime.tuner_records import Records

from .gpu_tuning import CRASHING, FAULTING, HANGING, MACHINE, SILENT, WRONG, interpreting_worker, linear

pytest.importorskip("triton")

TILE = GpuMatmulSchedule(16, 16, 16)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuWorker]:
    made = interpreting_worker(tmp_path_factory.mktemp("worker"))
    yield made
    made.close()


def test_what_is_right_is_timed(worker: GpuWorker) -> None:
    answer = worker.time(linear(), [TILE, replace(TILE, block_n=32)], rounds=3)
    assert answer == {"status": "ok", "seconds": [[4e-6] * 3, [1e-6] * 3]}


@pytest.mark.parametrize(("planted", "said"), [(WRONG, "instead of"), (SILENT, "nan instead of")])
def test_a_wrong_result_is_found_before_it_is_timed(worker: GpuWorker, planted: int, said: str) -> None:
    answer = worker.time(linear(), [TILE, replace(TILE, group=planted)], rounds=3)
    assert answer["status"] == "wrong"
    assert said in answer["message"]
    assert "seconds" not in answer


@pytest.mark.parametrize("planted", [CRASHING, FAULTING])
def test_a_crash_costs_one_schedule(worker: GpuWorker, planted: int) -> None:
    assert worker.check(linear(), replace(TILE, group=planted))["status"] == "crash"
    assert worker.check(linear(), TILE) == {"status": "ok"}


def test_a_hang_costs_one_schedule(worker: GpuWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.check(linear(), TILE) == {"status": "ok"}
    monkeypatch.setattr(child, "PATIENCE", 1)
    monkeypatch.setattr(worker, "seconds", 0.5)
    assert worker.check(linear(), replace(TILE, group=HANGING))["status"] == "hang"


def test_a_schedule_that_no_kernel_has_is_refused(worker: GpuWorker) -> None:
    answer = worker.check(linear(), LibrarySchedule("attention"))
    assert answer["status"] == "refused"
    assert "no library computes this region" in answer["message"]


def test_a_task_is_data() -> None:
    task = linear()
    assert GpuTask.from_dict(task.to_dict()) == task


# --- libraries --------------------------------------------------------------------------------------------------------


def attention(softcap: float = 0.0) -> GpuTask:
    q, k, v = (ops.input(name=n, shape=(1, h, 9, 16), dtype=torch.float32) for n, h in (("q", 4), ("k", 2), ("v", 2)))
    y = ops.attention(q, k, v, causal=True, scale=0.25, softcap=softcap)
    return GpuTask("k0", 1, Graph([q, k, v], [ops.neg(y)]), ((0, 1, 2, 3),), orders=(None,) * 3)


def normed() -> GpuTask:
    """A product of rows that are computed first, a residual afterwards."""
    x, g, w, r = (
        ops.input(name=n, shape=s, dtype=torch.float32)
        for n, s in (("x", (5, 24)), ("g", (24,)), ("w", (16, 24)), ("r", (5, 16)))
    )
    y = ops.add(ops.linear(ops.rms_norm(x, g), w), r)
    return GpuTask("k0", 1, Graph([x, g, w, r], [y]), ((0, 1),), packed=frozenset([2]), orders=(None,) * 4)


@pytest.mark.parametrize(
    ("task", "name"),
    [(linear(), "linear"), (normed(), "linear"), (attention(), "attention")],
    ids=["relu", "norm", "sdpa"],
)
def test_libraries_compute_the_same(worker: GpuWorker, task: GpuTask, name: str) -> None:
    assert LibrarySchedule(name) in library_schedules(task.region)
    assert worker.check(task, LibrarySchedule(name)) == {"status": "ok"}


def test_what_no_library_computes() -> None:
    assert library_schedules(attention(softcap=5.0).region) == ()
    x = ops.input(name="x", shape=(4,), dtype=torch.float32)
    assert library_schedules(Graph([x], [ops.neg(x)])) == ()


# --- a run ------------------------------------------------------------------------------------------------------------


class Made:
    """A worker in this process that builds nothing and makes up times."""

    def __init__(self, library: float) -> None:
        self.library = library

    def check(self, task: GpuTask, schedule: AnySchedule) -> Answer:
        return {"status": "ok"}

    def time(self, task: GpuTask, schedules: Sequence[AnySchedule], rounds: int) -> Answer:
        return {"status": "ok", "seconds": [[self._of(s)] * rounds for s in schedules]}

    def _of(self, schedule: AnySchedule) -> float:
        if isinstance(schedule, LibrarySchedule):
            return self.library
        return 1e-6 if getattr(schedule, "warps", 0) == 8 else 4e-6

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("library", "winner"), [(2e-6, "gpu_matmul(block_m"), (1e-7, "library linear")])
def test_who_wins(tmp_path: Path, library: float, winner: str) -> None:
    records, settings = Records(tmp_path / "records.jsonl"), Settings(budget=60, trials=20)
    kernels = gpu_progress_of([linear(dtype=torch.float16)], MACHINE)
    assert kernels[0].order[1] == LibrarySchedule("linear")
    GpuTuner(kernels, MACHINE, records, settings, worker=lambda: Made(library)).run()  # type: ignore[arg-type, return-value]
    (outcome,) = outcomes_of(kernels)
    assert outcome.winner.startswith(winner)
    assert outcome.gain == pytest.approx(4e-6 / min(library, 1e-6))
    assert outcome.over_library == pytest.approx(max(library / 1e-6, 1.0))
    assert "a library won" in report_of([outcome])
    # the next compilation takes what was chosen
    program, choice = linear(dtype=torch.float16).kernel(MACHINE).program, kernels[0].choice
    assert choice is not None
    assert GpuTuned(MACHINE, [choice])(program) == choice.schedule
    assert GpuTuned(MACHINE, [replace(choice, versions="older")])(program) is None
    foreign = replace(choice, schedule=GpuMatmulSchedule(block_m=48))  # type: ignore[arg-type]
    assert GpuTuned(MACHINE, [foreign])(program) is None
    # what is in the records need not be found again
    again = gpu_progress_of([linear(dtype=torch.float16)], MACHINE)
    read = Records(tmp_path / "records.jsonl")
    resumed = replace(settings, resume=True)
    GpuTuner(again, MACHINE, read, resumed, worker=lambda: Made(library)).run()  # type: ignore[arg-type, return-value]
    assert again[0].known
    assert again[0].choice == kernels[0].choice


def test_tasks_of_a_model() -> None:
    from smelt.frontend.export import capture
    from smelt.runtime.entry import sizes_of
    from smelt.runtime.gpu import gpu_model
    from smelt.tools.models import load_model

    model = load_model("zoo:llama-decode:tiny")
    captured = capture(model.model, model.args, model.kwargs)
    leaves = captured.flatten(model.args, dict(model.kwargs))
    tensors = [x for spec, x in zip(captured.inputs, leaves, strict=True) if spec.kind == "tensor"]
    found = gpu_model(captured, MACHINE)
    tasks = gpu_tasks_of(found, captured.weights, tensors, sizes_of(captured, leaves))
    assert [t.name for t in tasks] == [k.name for k, _ in found.kernels]
    decoding = next(t for t in tasks if "attention" in t.name)
    assert list(decoding.integers.values()) == [(127,)]  # the position, which decides how many keys are read
    kernels = gpu_progress_of(tasks, MACHINE)
    assert all(len(k.order) > 1 for k in kernels)
    programs = [[x.programs for x in t.kernel(MACHINE).file.launches] for t in tasks]
    assert programs == [[x.programs for x in k.file.launches] for k, _ in found.kernels]
