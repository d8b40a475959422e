"""A process that builds, checks and times kernels on a GPU: one JSON line in and one out.

It has a CUDA context of its own, so that a kernel that reads or writes where it must not costs one schedule: what comes
after such a fault in the same context is refused, so the process ends with it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..codegen.gpu import GpuMachine
from ..codegen.schedule_data import AnySchedule, schedule_from_dict
from .child import Answer, Child, serve
from .gpu_tuner_task import GpuTask
from .tuner_client import KernelWorker

KEPT_TASKS = 2  # a task holds copies of its weights

# --- in the process ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve requests until standard input ends."""
    serve(lambda: Server(_cuda).answer)


def _cuda(machine: GpuMachine) -> Any:
    from .gpu_tuner_kernel import CudaTimer, Place

    return Place(machine, "cuda", CudaTimer())


class Server:
    """Answers requests. ``place`` makes what kernels run on."""

    def __init__(self, place: Callable[[GpuMachine], Any]) -> None:
        from .gpu_tuner_kernel import GpuPrepared
        from .tuner_kernel import WrongResult

        self._made, self._wrong, self._place = GpuPrepared, WrongResult, place
        self._prepared: OrderedDict[str, Any] = OrderedDict()

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """``status`` is ok, wrong (the result differs) or refused (no such kernel can be built); ``message`` is why."""
        try:
            prepared = self._prepare(request)
            schedules: list[AnySchedule] = [schedule_from_dict(s) for s in request["schedules"]]
            for schedule in schedules:
                prepared.build(schedule)
            if not request.get("rounds"):
                return {"status": "ok"}
            seconds = prepared.seconds(schedules, request["rounds"])
            for schedule in schedules[1:]:
                if not request.get("keep"):
                    prepared.forget(schedule)
            return {"status": "ok", "seconds": seconds}
        except self._wrong as error:
            return {"status": "wrong", "message": str(error)}
        except Exception as error:
            if is_fault(error):  # the context is lost
                sys.stderr.write(f"{error}\n")
                os._exit(70)
            return {"status": "refused", "message": f"{type(error).__name__}: {error}"}

    def _prepare(self, request: Mapping[str, Any]) -> Any:
        key = json.dumps([request["task"], request["machine"]])
        if key not in self._prepared:
            place = self._place(GpuMachine(**request["machine"]))
            self._prepared[key] = self._made(GpuTask.from_dict(request["task"]), place)
            while len(self._prepared) > KEPT_TASKS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]


_FAULTS = ("illegal memory access", "misaligned address", "launch failure", "device-side assert", "illegal instruction")


def is_fault(error: BaseException) -> bool:
    """Whether an error says that a kernel broke the process's CUDA context."""
    return any(fault in str(error) for fault in _FAULTS)


# --- who asks ---------------------------------------------------------------------------------------------------------


class GpuWorker(KernelWorker):
    """A worker process with a CUDA context.

    Args:
        machine: the GPU that kernels are made for.
        seconds: of processor time for one request; more is a hang.
        command: what to start.
        env: environment variables that it has beside this process's.
    """

    def __init__(
        self,
        machine: GpuMachine,
        seconds: float = 60.0,
        command: Sequence[str] = (sys.executable, "-m", __name__),
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(Child(command, env or {}), seconds, {"machine": asdict(machine)})


if __name__ == "__main__":
    main()
