"""A process that checks programs, one JSON line in and one out: what crashes or hangs here ends nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ...runtime.child import Answer, Child, NoAnswer, serve


def main() -> None:
    """Serve requests until standard input ends."""
    serve(_checker)


def _checker() -> Callable[[Answer], Answer]:
    import torch

    from .check import check
    from .generate import program_of

    torch.set_num_threads(1)

    def answer(request: Answer) -> Answer:
        source = request.get("source") or program_of(request["seed"], request["number"]).source()
        return answer_of(partial(check, source, request["native"]))

    return answer


def answer_of(run: Any) -> dict[str, Any]:
    """A verdict as JSON. An exception of the check itself is a finding too."""
    try:
        verdict = run()
    except Exception as error:
        return {"way": "check", "message": f"{type(error).__name__}: {error}"}
    found = verdict.finding
    counts = {name: getattr(verdict, name) for name in ("raised", "recaptured", "noisy", "kernels", "graph")}
    return {"way": found and found.way, "message": found and found.message, **counts}


class Worker:
    """A worker process that runs ``module``. ``seconds`` are of processor time, for one request; more is a hang."""

    def __init__(self, native: bool, seconds: float, module: str = __name__) -> None:
        self.native, self.seconds = native, seconds
        self._child = Child((sys.executable, "-m", module), {"OMP_NUM_THREADS": "1"})

    def ask(self, **request: Any) -> Answer:
        """The answer to a request; a finding of the way ``crash`` or ``hang`` where none came."""
        try:
            return self._child.ask({"native": self.native, **request}, self.seconds)
        except NoAnswer as none:
            return {"way": none.kind, "message": none.message}

    def close(self) -> None:
        """End the process."""
        self._child.close()


if __name__ == "__main__":
    main()
