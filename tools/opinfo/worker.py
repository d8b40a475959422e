"""A process that checks cases: what crashes or hangs here ends nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from ...runtime.child import Answer, serve


def main() -> None:
    """Serve requests until standard input ends: the cases ``first`` to ``last`` of an operator and a dtype."""
    serve(_checker)


def _checker() -> Callable[[Answer], Answer]:
    import torch

    from .cases import cases_of
    from .check import check

    torch.set_num_threads(1)

    def answer(request: Answer) -> Answer:
        try:
            cases = cases_of(request["op"], request["dtype"], request["limit"], request["edges"])
            chosen = cases[request["first"] : request["last"]]
            verdicts = check(request["op"], chosen, request["native"], request["dynamic"])
        except Exception as error:
            return {"way": "check", "message": f"{type(error).__name__}: {error}"}
        return {"way": None, "cases": [c.name for c in cases], "verdicts": [asdict(v) for v in verdicts]}

    return answer


if __name__ == "__main__":
    main()
