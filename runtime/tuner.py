"""The tuner: schedules of a model's kernels tried within a budget of time, the fastest kept.

Kernels come in the order of the time that could be gained. For each, schedules are built and held to the oracle in
worker processes, and only what is right is timed, against the default schedule in turns. The best few then meet once
more, in more rounds, and one of them wins that is faster than the default by more than the noise.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..codegen.schedule import Schedule
from ..codegen.space import ranked
from ..ir.cost import Roofs, cost_of
from .child import Answer
from .target import Target
from .tuner_choice import BAND, chosen, ratios
from .tuner_records import Choice, Records, Trial, key_of, versions
from .tuner_search import search_of
from .tuner_task import Task
from .tuner_worker import Worker

FEWEST_SECONDS = 0.01  # the share of a run below which a kernel is not worth it
ROUNDS, LAST_ROUNDS, FINALISTS = 5, 15, 4
DULL = 16  # trials without a better one after which a kernel is left alone


@dataclass(frozen=True)
class Settings:
    """How to tune.

    Attributes:
        budget: seconds for all kernels.
        trials: schedules of one kernel at most.
        workers: processes that build kernels; one at a time is timed.
        resume: leave out what records say was tried.
        search: ``"ranked"`` or ``"optuna"``.
        limit: seconds of processor time that one schedule may take.
        band: what counts as a tie.
    """

    budget: float = 60.0
    trials: int = 64
    workers: int = 1
    resume: bool = False
    search: str = "ranked"
    limit: float = 30.0
    band: float = BAND


@dataclass
class Progress:
    """One kernel while it is tuned, and what was found.

    Attributes:
        least: the seconds of a call under the machine's roofs.
        seconds, default_seconds: of a call, as far as they are known.
        tried: schedules by status.
        choice: the outcome; None where there is none yet, or nothing could be measured, as ``problem`` says.
        known: whether the outcome is from records.
    """

    task: Task
    key: str
    order: tuple[Schedule, ...]
    least: float
    default_seconds: float = 0.0
    seconds: float = 0.0
    tried: Counter[str] = field(default_factory=Counter)
    trials: dict[Schedule, float] = field(default_factory=dict)
    choice: Choice | None = None
    problem: str = ""
    known: bool = False

    @property
    def default(self) -> Schedule:
        """The default schedule."""
        return self.order[0]

    @property
    def gained(self) -> float:
        """Seconds of a run."""
        return self.task.calls * (self.default_seconds - self.seconds)

    @property
    def left(self) -> float:
        """Seconds of a run that a kernel at the machine's roofs would still gain."""
        return self.task.calls * max(self.seconds - self.least, 0.0)

    @property
    def worth(self) -> float:
        """The share of the budget: what is left, and a part of the time, for roofs were measured at another time."""
        return max(self.left, self.task.calls * self.seconds * 0.1)


Tell = Callable[[Sequence[Progress], Progress | None], None]


def progress_of(tasks: Sequence[Task], target: Target, roofs: Roofs) -> list[Progress]:
    """The kernels before anything was measured."""
    found = []
    for task in tasks:
        step = task.step(target.machine)
        program, sizes = step.kernel.program, task.known()
        least = cost_of(task.region, task.in_place).seconds(roofs, sizes) - roofs.launch_seconds
        found.append(Progress(task, key_of(program, target), ranked(program, target.machine, sizes), least))
    return found


class Tuner:
    """One run of the tuner; :meth:`run` does it.

    Args:
        kernels: from :func:`progress_of`.
        target: what they are compiled for.
        records: where trials and choices are written, and read with ``settings.resume``.
        settings: how to tune.
        tell: is called after each step with all kernels and the one at work.
        worker: makes a worker process.
        built_with: what records depend on beside a kernel's key; by default the versions of a processor's kernels.
    """

    def __init__(
        self,
        kernels: Sequence[Progress],
        target: Target,
        records: Records,
        settings: Settings | None = None,
        tell: Tell = lambda kernels, now: None,
        worker: Callable[[], Worker] | None = None,
        built_with: str | None = None,
    ) -> None:
        self.kernels, self.target, self.records, self.tell = list(kernels), target, records, tell
        self.settings = settings or Settings()
        self.versions = built_with or versions()
        self.started = time.monotonic()
        made = worker or (lambda: Worker(target, self.settings.limit))
        self.workers = [made() for _ in range(max(self.settings.workers, 1))]

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> list[Progress]:
        """Tune all kernels, the most promising first."""
        with self._workers():
            for kernel in self.kernels:
                self._measure_default(kernel)
            whole = sum(k.task.calls * k.default_seconds for k in self.kernels) or 1.0
            open_ = [k for k in self.kernels if not k.problem and not self._from_records(k)]
            open_ = [k for k in open_ if k.task.calls * k.default_seconds >= FEWEST_SECONDS * whole]
            open_.sort(key=lambda k: k.worth, reverse=True)
            for number, kernel in enumerate(open_):
                rest = sum(k.worth for k in open_[number:])
                self._tune(kernel, self._time_left() * kernel.worth / rest)
        return self.kernels

    @contextmanager
    def _workers(self) -> Iterator[None]:
        try:
            yield
        finally:
            for worker in self.workers:
                worker.close()

    def _time_left(self) -> float:
        return max(self.settings.budget - (time.monotonic() - self.started), 0.0)

    def _measure_default(self, kernel: Progress) -> None:
        answer = self.workers[0].time(kernel.task, [kernel.default], 3)
        if answer["status"] != "ok":
            kernel.problem = f"the default schedule is {answer['status']}: {answer.get('message', '')}"
        else:
            kernel.default_seconds = kernel.seconds = statistics.median(answer["seconds"][0])
        self.tell(self.kernels, kernel)

    def _from_records(self, kernel: Progress) -> bool:
        """Take over a choice that was made for the same kernel and sizes, with ``resume``."""
        if not self.settings.resume:
            return False
        for choice in self.records.choices():
            same = (choice.key, choice.versions, choice.sizes) == (kernel.key, self.versions, kernel.task.sizes)
            if same and choice.default == kernel.default and choice.schedule in kernel.order:
                kernel.choice, kernel.known = choice, True
                kernel.seconds = kernel.default_seconds / choice.gain
                self.tell(self.kernels, kernel)
        return kernel.known

    # --- one kernel ---------------------------------------------------------------------------------------------------

    def _tune(self, kernel: Progress, seconds: float) -> None:
        """Try schedules for some seconds, then let the best of them meet."""
        search = search_of(self.settings.search, kernel.order)
        search.tell(kernel.default, 1.0)
        if self.settings.resume:
            for trial in self.records.trials(kernel.key, self.versions, kernel.task.sizes):
                search.tell(trial.schedule, trial.ratio if trial.status == "ok" else None)
                if trial.status == "ok" and trial.schedule in kernel.order:
                    kernel.trials[trial.schedule] = trial.ratio
        end, dull, best = time.monotonic() + seconds * 0.8, 0, 1.0
        while time.monotonic() < end and dull < DULL and sum(kernel.tried.values()) < self.settings.trials:
            batch = [s for s in (search.next() for _ in self.workers) if s is not None]
            if not batch:
                break
            for schedule, ratio in zip(batch, self._try(kernel, batch), strict=True):
                search.tell(schedule, ratio)
                better = ratio is not None and ratio < best * (1 - self.settings.band)
                best, dull = (ratio, 0) if ratio is not None and better else (best, dull + 1)
                if ratio is not None:
                    kernel.seconds = min(kernel.seconds, kernel.default_seconds * ratio)
            self.tell(self.kernels, kernel)
        if kernel.tried or kernel.trials or len(kernel.order) == 1:
            self._choose(kernel)

    def _try(self, kernel: Progress, batch: Sequence[Schedule]) -> list[float | None]:
        """Check schedules side by side, then time those that are right, one after another, against the default."""
        with ThreadPoolExecutor(len(batch)) as pool:
            asked = [pool.submit(w.check, kernel.task, s) for w, s in zip(self.workers, batch, strict=False)]
            answers: list[Answer] = [one.result() for one in asked]
        found: list[float | None] = []
        for worker, schedule, answer in zip(self.workers, batch, answers, strict=False):
            if answer["status"] == "ok":
                answer = worker.time(kernel.task, [kernel.default, schedule], ROUNDS)
            ratio = ratios(answer["seconds"])[1] if answer["status"] == "ok" else None
            kernel.tried[answer["status"]] += 1
            if ratio is not None:
                kernel.trials[schedule] = ratio
            found.append(ratio)
            self.records.add([self._trial(kernel, schedule, answer, ratio)])
        return found

    def _trial(self, kernel: Progress, schedule: Schedule, answer: Answer, ratio: float | None) -> Trial:
        message = str(answer.get("message", ""))
        return Trial(kernel.key, self.versions, kernel.task.sizes, schedule, answer["status"], ratio or 0.0, message)

    def _choose(self, kernel: Progress) -> None:
        """Let the default and the best few meet in more rounds; in the order of the space, so that ties go one way."""
        best = sorted(kernel.trials, key=lambda s: (kernel.trials[s], kernel.order.index(s)))[:FINALISTS]
        best = [s for s in best if s != kernel.default and kernel.trials[s] < 1.0]
        met = [kernel.default, *sorted(best, key=kernel.order.index)]
        answer = self.workers[0].time(kernel.task, met, LAST_ROUNDS)
        if answer["status"] != "ok":
            kernel.problem = f"the last comparison ended with {answer['status']}: {answer.get('message', '')}"
            return
        winner = chosen(answer["seconds"], self.settings.band)
        kernel.default_seconds = statistics.median(answer["seconds"][0])
        kernel.seconds = kernel.default_seconds * ratios(answer["seconds"])[winner]
        kernel.choice = Choice(
            key=kernel.key,
            versions=self.versions,
            sizes=kernel.task.sizes,
            schedule=met[winner],
            default=kernel.default,
            seconds=kernel.seconds,
            default_seconds=kernel.default_seconds,
            tried=len(kernel.trials) + sum(n for status, n in kernel.tried.items() if status != "ok"),
            kernel=kernel.task.name,
            target=str(self.target),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        self.records.add([kernel.choice])
        self.tell(self.kernels, kernel)


def reached(kernels: Sequence[Progress]) -> float:
    """The share of the tuned speed that default schedules reach: the tuned time of a run over the default one."""
    whole = sum(k.task.calls * k.default_seconds for k in kernels)
    return sum(k.task.calls * k.seconds for k in kernels) / whole if whole else 1.0
