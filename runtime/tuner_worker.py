"""A process that builds, checks and times kernels, one JSON line in and one out: what crashes or hangs there, or takes
too much memory, costs one schedule.
"""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..codegen.machine import Machine
from ..codegen.schedule_data import schedule_from_dict
from .child import Answer, Child, serve
from .target import Target
from .tuner_client import KernelWorker
from .tuner_task import Task

MEMORY_BYTES = 8 << 30  # beside what the process takes when it starts
KEPT_TASKS = 8


# --- in the process ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve requests until standard input ends."""
    serve(lambda: Server().answer)


class Server:
    """Answers requests; what was made ready for the last tasks is kept."""

    def __init__(self) -> None:
        import torch

        from . import tuner_kernel

        self._torch, self._kernels = torch, tuner_kernel
        self._prepared: OrderedDict[str, Any] = OrderedDict()
        self._limited = False

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """``status`` is ok, wrong (the result differs) or refused (no such kernel can be built); ``message`` is why."""
        if not self._limited:
            _limit_memory(request.get("memory", MEMORY_BYTES))
            self._limited = True
        try:
            prepared = self._prepare(request)
            schedules = [None if s is None else schedule_from_dict(s) for s in request["schedules"]]
            for schedule in schedules:
                prepared.build(schedule)
            if not request.get("rounds"):
                return {"status": "ok"}
            seconds = prepared.seconds(schedules, request["rounds"], request["turn"])
            for schedule in schedules[1:]:
                if schedule is not None and not request.get("keep"):
                    prepared.forget(schedule)
            return {"status": "ok", "seconds": seconds}
        except self._kernels.WrongResult as error:
            return {"status": "wrong", "message": str(error)}
        except Exception as error:
            return {"status": "refused", "message": f"{type(error).__name__}: {error}"}

    def _prepare(self, request: Mapping[str, Any]) -> Any:
        key = json.dumps([request["task"], request["target"]])
        if key not in self._prepared:
            target = target_from_dict(request["target"])
            self._torch.set_num_threads(target.threads)
            self._prepared[key] = self._kernels.Prepared(Task.from_dict(request["task"]), target)
            while len(self._prepared) > KEPT_TASKS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]


def _limit_memory(nbytes: int) -> None:
    """Let the process ask for so much more memory than it has now, where the system can hold it to that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(OSError, ValueError, IndexError):
        held = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + nbytes, most))


def target_to_dict(target: Target) -> dict[str, Any]:
    """A CPU as data for JSON."""
    data = asdict(target)
    return {name: data[name] for name in ("kind", "cpu", "features", "threads", "machine")}


def target_from_dict(data: Mapping[str, Any]) -> Target:
    """The target that :func:`target_to_dict` made data of."""
    Target.detect(threads=data["threads"])  # makes TVM ready
    machine = Machine(**data["machine"])
    return Target(data["kind"], data["cpu"], tuple(data["features"]), data["threads"], machine)


# --- who asks ---------------------------------------------------------------------------------------------------------


class Worker(KernelWorker):
    """A worker process for kernels of a processor.

    Args:
        target: what kernels are compiled for.
        seconds: of processor time for one request; more is a hang.
        memory: bytes that the process may take beside what it starts with.
        command: what to start.
    """

    def __init__(
        self,
        target: Target,
        seconds: float = 30.0,
        memory: int = MEMORY_BYTES,
        command: Sequence[str] = (sys.executable, "-m", __name__),
    ) -> None:
        child = Child(command, {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": None})
        super().__init__(child, seconds, {"target": target_to_dict(target), "memory": memory})


if __name__ == "__main__":
    main()
