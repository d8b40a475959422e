"""A process that compiles kernels: one request a line on standard input, one answer a line on standard output.

It imports TVM while whoever started it still captures the model, and forks for each request, once TVM is there, so that
all cores work on the kernels. It ends when its input does, or after a while without requests.

Asked by its argument ``processor``, it first says on a line of its own what LLVM finds this machine's processor to be,
which takes TVM's libraries alone.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .host import Host
    from .parts import Part
IDLE_SECONDS = 60.0
Share = Sequence[tuple["Part", Path]]


def main() -> None:
    """Serve requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing that a compiler prints is taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for who asks, which has a terminal in common with this
    gc.disable()  # what is made is kept, or the process that made it ends
    asked = _tell_processor(answers) if "processor" in sys.argv[2:] else None
    from .loading import load_compiler

    load_compiler()
    from . import parts  # noqa: F401  before the first request: forked processes have it

    if asked is not None and os.waitpid(asked, 0)[1] != 0:
        answers.write("null\n")
    while _has_input():
        line = sys.stdin.readline()
        if not line:
            return
        answers.write(json.dumps(answer(json.loads(line))) + "\n")


def _tell_processor(answers: IO[str]) -> int:
    """Have another process say it, which has TVM's libraries without the package: see :mod:`.processor`."""
    from .native import load_libraries
    from .processor import told

    load_libraries()

    def tell() -> None:
        answers.write(told() + "\n")
        answers.flush()

    return _forked(tell)


def _has_input() -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], IDLE_SECONDS)[0])
    except OSError:  # no select on pipes on Windows: wait as long as it takes
        return True


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """``status`` is ok, and the library is where it was asked for, or refused; ``message`` is why."""
    from .host import Call, Host
    from .parts import link, parts_of

    hosts = [
        Host(name, tuple(Call(kernel, tuple(buffers)) for kernel, buffers in calls), addresses, tuple(symbols))
        for name, calls, addresses, symbols in request["hosts"]
    ]
    texts, cpu, path = request["texts"], request["cpu"], Path(request["library"])
    try:
        shares = parts_of(texts, hosts, request["processes"] if hasattr(os, "fork") else 1)
        numbered = iter(range(sum(map(len, shares))))
        named = [[(part, path.with_name(f"{next(numbered)}.o")) for part in share] for share in shares]
        _in_processes([_maker(share, texts, hosts, cpu) for share in named])
        link([made for share in named for _, made in share], path)
        return {"status": "ok"}
    except Exception as error:
        return {"status": "refused", "message": f"{type(error).__name__}: {error}"}


def _maker(
    share: Sequence[tuple[Part, Path]], texts: Sequence[str], hosts: Sequence[Host], cpu: str
) -> Callable[[], None]:
    from .parts import make_object

    def make() -> None:
        for part, path in share:
            make_object(part, texts, hosts, cpu, path)

    return make


def _in_processes(jobs: Sequence[Callable[[], None]]) -> None:
    """Do all jobs at once, the first one in this process.

    Raises:
        ChildProcessError: a job in another process failed.
    """
    first, *others = jobs
    children = [_forked(job) for job in others]
    try:
        first()
    finally:
        failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    if failed:
        raise ChildProcessError("a process that compiled kernels failed")


def _forked(job: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    with suppress(BaseException):
        job()
        os._exit(0)
    os._exit(1)
