"""Many random programs: worker processes check them, failures are minimised and saved."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .check import Finding
from .generate import program_of
from .minimise import minimise
from .program import Program
from .worker import Worker

SECONDS = 60.0  # for one program, in which everything is compiled two times and more
MOST_SAVED = 2  # of one kind


@dataclass(frozen=True)
class Plan:
    """What to run: programs ``start`` to ``start + n`` of a seed.

    Attributes:
        native: whether kernels are compiled and run too, beside being interpreted.
        out: the folder for failures; None to save none.
    """

    n: int
    seed: int = 0
    start: int = 0
    native: bool = True
    jobs: int = 1
    out: Path | None = None
    seconds: float = SECONDS
    minimised: bool = True


@dataclass
class Failure:
    """A program that failed: its number, what is wrong, and where it was saved."""

    number: int
    finding: Finding
    saved: Path | None = None
    steps: int = 0


@dataclass
class Summary:
    """What a campaign found."""

    plan: Plan
    programs: int = 0
    steps: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def kinds(self) -> Counter[str]:
        """How many programs failed in each way."""
        return Counter(f.finding.kind for f in self.failures)

    def to_dict(self) -> dict[str, Any]:
        """The summary as data for JSON."""
        operators: dict[str, dict[str, int]] = {}
        for (op, dtype), count in sorted(self.coverage.items()):
            operators.setdefault(op, {})[dtype] = count
        return {
            "seed": self.plan.seed,
            "start": self.plan.start,
            "native": self.plan.native,
            "programs": self.programs,
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            **self.counts,
            "operators": operators,
            "failures": [
                {
                    "number": f.number,
                    "way": f.finding.way,
                    "message": f.finding.message,
                    "steps": f.steps,
                    "saved": str(f.saved) if f.saved else None,
                }
                for f in self.failures
            ],
        }


def run_campaign(plan: Plan, tell: Callable[[int], None] = lambda done: None) -> Summary:
    """Check all programs of a plan; ``tell`` is given the number that are done."""
    campaign = _Campaign(plan, tell)
    start = time.monotonic()
    threads = [threading.Thread(target=campaign.work, daemon=True) for _ in range(plan.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    campaign.summary.seconds = time.monotonic() - start
    campaign.summary.failures.sort(key=lambda f: f.number)
    return campaign.summary


class _Campaign:
    def __init__(self, plan: Plan, tell: Callable[[int], None]) -> None:
        self.plan, self.tell = plan, tell
        self.summary = Summary(plan)
        self.numbers = iter(range(plan.start, plan.start + plan.n))
        self.lock = threading.Lock()
        self.shrinking = threading.Lock()  # hypothesis is not made for several threads

    def work(self) -> None:
        """Check programs until none is left, in one worker process."""
        worker = Worker(self.plan.native, self.plan.seconds)
        try:
            while (number := self.next()) is not None:
                self.one(worker, number)
        finally:
            worker.close()

    def next(self) -> int | None:
        with self.lock:
            return next(self.numbers, None)

    def one(self, worker: Worker, number: int) -> None:
        answer = worker.ask(seed=self.plan.seed, number=number)
        program = program_of(self.plan.seed, number)
        with self.lock:
            self.count(program, answer)
        if answer["way"]:
            failure = Failure(number, Finding(answer["way"], answer["message"]), steps=len(program.steps))
            with self.lock:
                first = self.summary.kinds[failure.finding.kind] < MOST_SAVED
                self.summary.failures.append(failure)
            if first and self.plan.out is not None:
                self.save(worker, program, failure, answer.get("graph", ""))

    def count(self, program: Program, answer: dict[str, Any]) -> None:
        summary = self.summary
        summary.programs += 1
        summary.steps += len(program.steps)
        summary.coverage.update((step.op, step.dtype) for step in program.steps)
        for name in ("raised", "recaptured", "noisy", "kernels"):
            summary.counts[name] += int(answer.get(name, 0))
        self.tell(summary.programs)

    # --- failures -----------------------------------------------------------------------------------------------------

    def save(self, worker: Worker, program: Program, failure: Failure, graph: str) -> None:
        """Write a failure to the folder, minimised: its source, and the graph that was captured of it."""
        assert self.plan.out is not None
        last = {"message": failure.finding.message, "graph": graph}

        def fails(candidate: Program) -> bool:
            answer = worker.ask(source=candidate.source())
            same = bool(answer["way"]) and Finding(answer["way"], answer["message"]).kind == failure.finding.kind
            if same:
                last.update(message=answer["message"], graph=answer.get("graph", ""))
            return same

        if self.plan.minimised:
            with self.shrinking:
                program = minimise(program, fails)
        failure.steps = len(program.steps)
        self.plan.out.mkdir(parents=True, exist_ok=True)
        path = self.plan.out / f"{failure.finding.way}-{self.plan.seed}-{failure.number}.py"
        note = f"{failure.finding.way}: {last['message']} (seed {self.plan.seed}, program {failure.number})"
        path.write_text(program.source(note.replace('"""', "'''").replace("\\", "/")), encoding="utf-8")
        path.with_suffix(".graph.txt").write_text(last["graph"], encoding="utf-8")
        failure.saved = path
