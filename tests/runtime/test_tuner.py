"""The tuner: what it tries and keeps, with workers that only pretend; and whole runs with planted faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from smelt.codegen.schedule import MatmulSchedule, Schedule
from smelt.codegen.space import differences
from smelt.ir.cost import Roofs
from smelt.runtime import tuner
from smelt.runtime.child import Answer
from smelt.runtime.tuner import Progress, Settings, Tuner, progress_of, reached
from smelt.runtime.tuner_choice import chosen, ratios
from smelt.runtime.tuner_records import Records
from smelt.runtime.tuner_search import Guided, Ranked, search_of
from smelt.runtime.tuner_task import Task
from smelt.runtime.tuner_worker import Worker

from .tuning import CRASHING, FASTEST, HANGING, default_of, linear, planted_worker, target

ROOFS = Roofs(1e11, 1e10, 1e10)


class Pretending:
    """In place of a worker: a schedule takes as long as a function says, within noise."""

    def __init__(self, speed: Callable[[MatmulSchedule], float | str], seed: int = 0, noise: float = 0.01) -> None:
        self.speed, self.noise, self.random = speed, noise, random.Random(seed)
        self.checked: list[Schedule] = []
        self.closed = False

    def check(self, task: Task, schedule: Schedule) -> Answer:
        assert isinstance(schedule, MatmulSchedule)
        self.checked.append(schedule)
        found = self.speed(schedule)
        return {"status": "ok"} if isinstance(found, float) else {"status": found, "message": "planted"}

    def time(self, task: Task, schedules: Sequence[Schedule], rounds: int) -> Answer:
        def once(schedule: Schedule) -> float:
            assert isinstance(schedule, MatmulSchedule)
            found = self.speed(schedule)
            assert isinstance(found, float), "timed before it was checked"
            return found * (1 + self.random.gauss(0, self.noise))

        return {"status": "ok", "seconds": [[once(s) for _ in range(rounds)] for s in schedules]}

    def close(self) -> None:
        self.closed = True


def run(worker: Pretending, records: Records, **settings: object) -> Progress:
    (kernel,) = progress_of([linear()], target(), ROOFS)
    made = Settings(budget=20, trials=24, **settings)  # type: ignore[arg-type]
    Tuner([kernel], target(), records, made, worker=lambda: worker).run()  # type: ignore[arg-type, return-value]
    assert worker.closed
    return kernel


@cache
def order() -> tuple[Schedule, ...]:
    return progress_of([linear()], target(), ROOFS)[0].order


def sixth(schedule: Schedule) -> float:
    """The sixth and seventh of the space are best, by a fifth."""
    return 0.8e-3 if schedule in order()[5:7] else 1e-3


# --- what wins --------------------------------------------------------------------------------------------------------


def test_ratios_are_within_rounds() -> None:
    assert ratios([[1.0, 10.0, 1.0], [2.0, 20.0, 2.0]]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("medians", "winner"),
    [([1.0], 0), ([1.0, 0.5], 1), ([1.0, 0.98], 0), ([1.0, 0.8, 0.79], 1), ([1.0, 0.79, 0.8], 1), ([1.0, 1.2, 0.9], 2)],
)
def test_ties_go_to_the_first(medians: list[float], winner: int) -> None:
    assert chosen([[m] * 5 for m in medians]) == winner


def test_noise_widens_the_band() -> None:
    steady, loud = [1.0] * 9, [0.7, 1.3, 0.93, 0.6, 1.4, 0.9, 0.95, 1.2, 0.7]
    assert chosen([steady, [0.93] * 9]) == 1
    assert chosen([steady, loud]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_two_runs_choose_the_same(seed: int) -> None:
    def rounds(noise: random.Random) -> list[list[float]]:
        return [[m * (1 + noise.gauss(0, 0.02)) for _ in range(15)] for m in (1.0, 0.995, 0.9, 0.9, 0.902)]

    assert chosen(rounds(random.Random(seed))) == chosen(rounds(random.Random(1000 + seed))) == 2


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_fastest_is_kept(tmp_path: Path) -> None:
    records = Records(tmp_path / "tuning.jsonl")
    kernel = run(Pretending(sixth), records)
    assert kernel.choice is not None
    assert kernel.choice.schedule == kernel.order[5]
    assert kernel.choice.gain == pytest.approx(1.25, rel=0.05)
    assert reached([kernel]) == pytest.approx(0.8, rel=0.05)
    assert Records(records.path).choices() == [kernel.choice]


def test_the_default_stays_where_others_are_faster_by_noise_only(tmp_path: Path) -> None:
    kernel = run(
        Pretending(lambda schedule: 1e-3 * (0.99 if schedule in order()[5:7] else 1.0)), Records(tmp_path / "a")
    )
    assert kernel.choice is not None
    assert kernel.choice.schedule == kernel.default


def test_two_runs_keep_the_same(tmp_path: Path) -> None:
    found = [run(Pretending(sixth, seed, 0.02), Records(tmp_path / str(seed))) for seed in range(4)]
    assert len({kernel.choice.schedule for kernel in found if kernel.choice is not None}) == 1


def test_what_goes_wrong_is_counted_and_never_timed(tmp_path: Path) -> None:
    def speed(schedule: MatmulSchedule) -> float | str:
        return {4: "wrong", 5: "crash", 6: "hang"}.get(order().index(schedule), 1e-3)

    records = Records(tmp_path / "tuning.jsonl")
    kernel = run(Pretending(speed), records)
    assert kernel.choice is not None
    assert kernel.choice.schedule == kernel.default
    assert {status: kernel.tried[status] for status in ("wrong", "crash", "hang")} == {
        "wrong": 1,
        "crash": 1,
        "hang": 1,
    }
    found = [t.status for t in records.trials(kernel.key, kernel.choice.versions, kernel.task.sizes)]
    assert found[3:6] == ["wrong", "crash", "hang"]


def test_a_wrong_default_is_said(tmp_path: Path) -> None:
    (kernel,) = progress_of([linear()], target(), ROOFS)
    worker = Pretending(sixth)
    worker.time = lambda task, schedules, rounds: {"status": "wrong", "message": "nan"}  # type: ignore[method-assign]
    Tuner([kernel], target(), Records(tmp_path / "a"), worker=lambda: worker).run()  # type: ignore[arg-type, return-value]
    assert kernel.problem == "the default schedule is wrong: nan"
    assert kernel.choice is None


def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    records = Records(tmp_path / "tuning.jsonl")
    first, second, third = (Pretending(sixth) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuner, "_choose", lambda self, kernel: None)  # ended before the last comparison
        run(first, records)
    kernel = run(second, Records(records.path), resume=True)
    assert not set(first.checked) & set(second.checked)
    assert kernel.choice is not None
    assert kernel.choice.schedule == kernel.order[5]
    known = run(third, Records(records.path), resume=True)
    assert known.known
    assert known.choice == kernel.choice
    assert third.checked == []


def test_no_time_no_choice(tmp_path: Path) -> None:
    (kernel,) = progress_of([linear()], target(), ROOFS)
    worker = Pretending(sixth)
    settings = Settings(budget=0.0)
    Tuner([kernel], target(), Records(tmp_path / "a"), settings, worker=lambda: worker).run()  # type: ignore[arg-type, return-value]
    assert kernel.choice is None
    assert kernel.default_seconds > 0


def test_kernels_that_take_no_time_are_left_alone(tmp_path: Path) -> None:
    kernels = progress_of([linear(), replace(linear(), name="k1", calls=1000)], target(), ROOFS)
    worker = Pretending(sixth)
    settings = Settings(trials=2)
    Tuner(kernels, target(), Records(tmp_path / "a"), settings, worker=lambda: worker).run()  # type: ignore[arg-type, return-value]
    assert [kernel.choice is None for kernel in kernels] == [True, False]


def test_planted_faults_cost_their_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run in real processes: the fastest kernel computes nothing, others crash and hang."""
    default = default_of(linear())
    planted = [replace(default, block_k=n) for n in (FASTEST, HANGING, CRASHING)]
    few = (default, *planted, replace(default, tile_m=4))
    monkeypatch.setattr(tuner, "ranked", lambda program, machine, sizes: few)
    (kernel,) = progress_of([linear()], target(), ROOFS)
    made: list[Worker] = []

    def worker() -> Worker:
        made.append(planted_worker(tmp_path, seconds=3.0))
        return made[-1]

    Tuner([kernel], target(), Records(tmp_path / "tuning.jsonl"), Settings(budget=200), worker=worker).run()
    assert dict(kernel.tried) == {"wrong": 1, "crash": 1, "hang": 1, "ok": 1}
    assert kernel.choice is not None
    assert kernel.choice.schedule in (default, few[-1])


# --- the order of trials ----------------------------------------------------------------------------------------------


def test_the_space_in_its_order() -> None:
    default = default_of(linear())
    few = [default, replace(default, tile_m=4), replace(default, tile_m=5)]
    search = Ranked(few)
    search.tell(default, 1.0)
    assert [search.next(), search.next(), search.next()] == [few[1], few[2], None]


def test_an_unknown_search() -> None:
    with pytest.raises(ValueError, match="no search 'random': say one of ranked, optuna"):
        search_of("random", [default_of(linear())])


def test_optuna_finds_what_the_order_has_last() -> None:
    pytest.importorskip("optuna")
    (kernel,) = progress_of([linear()], target(), ROOFS)
    found = []
    for _ in range(2):
        search = Guided(kernel.order, seed=0)
        seen: list[tuple[float, Schedule]] = []
        for _ in range(60):
            schedule = search.next()
            assert isinstance(schedule, MatmulSchedule)
            assert schedule in kernel.order
            ratio = 1.0 + 0.1 * len(differences(schedule, kernel.order[-1]))
            search.tell(schedule, ratio)
            seen.append((ratio, schedule))
        assert len({s for _, s in seen}) == 60
        found.append(seen)
    assert [s for _, s in found[0]] == [s for _, s in found[1]]
    assert min(ratio for ratio, _ in found[0]) < min(ratio for ratio, _ in found[0][:8])
