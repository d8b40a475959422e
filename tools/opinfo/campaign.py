"""All operators and dtypes: worker processes check them, and what is found is kept line by line, to go on later."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..fuzz.worker import Worker
from .cases import supported

SECONDS = 60.0  # of processor time for the samples of one operator and dtype
KINDS = ("lowered", "passed", "wrong", "skipped")
_MOST = 6  # reasons and wrong cases that are kept of each record


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        names: operators of the database, by full name.
        dtypes: of those, the ones that an operator supports are tried.
        samples: of each operator and dtype at most.
        edges: take the samples with extreme values, infinities and NaN.
        dynamic: make sizes symbolic.
        native: whether kernels are compiled and run; otherwise they are interpreted.
        budget: seconds after which nothing new is begun; None for no end.
        keep: the file of what was found; operators and dtypes that it holds are not run again.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    samples: int = 8
    edges: bool = False
    dynamic: bool = False
    jobs: int = 1
    native: bool = True
    seconds: float = SECONDS
    budget: float | None = None
    keep: Path | None = None


@dataclass
class Record:
    """What was found of one operator and dtype: how many samples of each kind, and why, the most frequent first.

    ``native`` says whether kernels were compiled and run.
    """

    op: str
    dtype: str
    native: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, verdict: Mapping[str, str]) -> None:
        """Count a verdict."""
        self.counts[verdict["kind"]] += 1
        if verdict["kind"] == "wrong":
            self.wrong.append(f"{verdict['case']}: {verdict['reason']}")
        elif verdict["reason"]:
            self.reasons[verdict["reason"]] += 1

    def to_dict(self) -> dict[str, Any]:
        """The record as data for JSON."""
        reasons = [reason[:160] for reason, _ in self.reasons.most_common(_MOST)]
        counts = {kind: self.counts[kind] for kind in KINDS if self.counts[kind]}
        found: dict[str, Any] = {"op": self.op, "dtype": self.dtype, "native": self.native, **counts}
        if reasons:
            found["reasons"] = reasons
        return found | {"cases": [text[:240] for text in self.wrong[:_MOST]]} if self.wrong else found


def run_campaign(plan: Plan, tell: Callable[[int], None] = lambda done: None) -> list[dict[str, Any]]:
    """Check everything in a plan that was not checked yet; all records, also those that were kept.

    ``tell`` is given the number of pairs of an operator and a dtype that are done.
    """
    campaign = _Campaign(plan, tell)
    threads = [threading.Thread(target=campaign.work, daemon=True) for _ in range(plan.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(campaign.found, key=lambda record: campaign.place[record["op"], record["dtype"]])


def pairs_of(names: Sequence[str], dtypes: Sequence[str]) -> list[tuple[str, str]]:
    """The operators with the dtypes that they support."""
    return [(name, dtype) for name in names for dtype in supported(name) if dtype in dtypes]


class _Campaign:
    def __init__(self, plan: Plan, tell: Callable[[int], None]) -> None:
        self.plan, self.tell = plan, tell
        self.place = {pair: i for i, pair in enumerate(pairs_of(plan.names, plan.dtypes))}
        self.found = [r for r in self._kept() if (r["op"], r["dtype"]) in self.place]
        done = {(r["op"], r["dtype"]) for r in self.found}
        self.left: Iterator[tuple[str, str]] = iter([pair for pair in self.place if pair not in done])
        self.lock = threading.Lock()
        self.end = None if plan.budget is None else time.monotonic() + plan.budget

    def _kept(self) -> list[dict[str, Any]]:
        if self.plan.keep is None or not self.plan.keep.exists():
            return []
        return [json.loads(line) for line in self.plan.keep.read_text(encoding="utf-8").splitlines()]

    def work(self) -> None:
        """Check pairs until none is left, in one worker process."""
        worker = Worker(self.plan.native, self.plan.seconds, "smelt.tools.opinfo.worker")
        try:
            while (pair := self._next()) is not None:
                self._keep(self._one(worker, *pair).to_dict())
        finally:
            worker.close()

    def _next(self) -> tuple[str, str] | None:
        with self.lock:
            late = self.end is not None and time.monotonic() > self.end
            return None if late else next(self.left, None)

    def _keep(self, record: dict[str, Any]) -> None:
        with self.lock:
            self.found.append(record)
            self.tell(len(self.found))
            if self.plan.keep is not None:
                with self.plan.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")

    def _one(self, worker: Worker, op: str, dtype: str) -> Record:
        plan, record = self.plan, Record(op, dtype, self.plan.native)
        ask = {"op": op, "dtype": dtype, "limit": plan.samples, "edges": plan.edges, "dynamic": plan.dynamic}
        answer = worker.ask(**ask, first=0, last=None)
        if not answer["way"]:
            for verdict in answer["verdicts"]:
                record.add(verdict)
            return record
        if answer["way"] == "check":
            record.add({"case": "all", "kind": "skipped", "reason": f"its samples cannot be made: {answer['message']}"})
            return record
        return self._alone(worker, record, ask)

    def _alone(self, worker: Worker, record: Record, ask: Mapping[str, Any]) -> Record:
        """Each case by itself, after they crashed or hung together."""
        number, count = 0, 1
        while number < count:
            answer = worker.ask(**ask, first=number, last=number + 1)
            if answer["way"]:
                record.add(
                    {"case": f"case {number}", "kind": "wrong", "reason": f"{answer['way']}: {answer['message']}"}
                )
                if number == 0:
                    listed = worker.ask(**ask, first=0, last=0)
                    count = len(listed.get("cases", ()))
            else:
                count = len(answer["cases"])
                for verdict in answer["verdicts"]:
                    record.add(verdict)
            number += 1
        return record
