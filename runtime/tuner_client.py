"""Who asks a process that builds, checks and times kernels, of a processor or of a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..codegen.schedule_data import AnySchedule, schedule_to_dict
from .child import Answer, Child, NoAnswer
from .tuner_task import Task


class KernelWorker:
    """A worker process, started when it is first asked, and again after it died.

    Args:
        child: the process.
        seconds: of processor time for one request; more is a hang.
        facts: what every request says of the machine.
    """

    def __init__(self, child: Child, seconds: float, facts: Mapping[str, Any]) -> None:
        self._child, self.seconds, self._facts = child, seconds, dict(facts)

    def check(self, task: Task, schedule: AnySchedule) -> Answer:
        """Build the kernel with a schedule, and hold its results to the oracles."""
        return self._ask(task, [schedule])

    def time(
        self, task: Task, schedules: Sequence[AnySchedule], rounds: int, turn: float = 2e-3, *, keep: bool = False
    ) -> Answer:
        """The seconds of a call with each schedule, in rounds in each of which everyone has a turn.

        With ``keep`` the kernels stay built. ``turn`` is for processors, in seconds.
        """
        return self._ask(task, schedules, rounds=rounds, turn=turn, keep=keep)

    def _ask(self, task: Task, schedules: Sequence[AnySchedule], **how: Any) -> Answer:
        """The answer; its status is ``crash`` or ``hang`` where none came."""
        request = {"task": task.to_dict(), "schedules": [schedule_to_dict(s) for s in schedules], **self._facts, **how}
        try:
            return self._child.ask(request, self.seconds)
        except NoAnswer as none:
            return {"status": none.kind, "message": none.message}

    def close(self) -> None:
        """End the process."""
        self._child.close()
