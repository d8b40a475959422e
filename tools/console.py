"""What commands write: results and JSON to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

MAX_WIDTH = 100


def out() -> Console:
    """The console of results, at most 100 columns wide. Made anew, for tests replace the streams."""
    found = Console()
    return Console(highlight=False, emoji=False, width=min(found.width, MAX_WIDTH) if found.is_terminal else MAX_WIDTH)


def err() -> Console:
    """The console of progress and errors."""
    return Console(stderr=True, highlight=False, emoji=False)


_results: ContextVar[TextIO | None] = ContextVar("results", default=None)


@contextmanager
def json_only() -> Iterator[None]:
    """Keep standard output for JSON meanwhile: what a model prints goes to standard error."""
    token = _results.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.reset(token)


def emit_json(data: Any) -> None:
    """Write data as JSON to standard output."""
    (_results.get() or sys.stdout).write(json.dumps(data, indent=2, default=str) + "\n")


def emit_text(text: str) -> None:
    """Write text as it is to standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show that something is going on and for how long, on a terminal."""
    with _progress() as progress:
        progress.add_task(what, total=None)
        yield


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of something is done, on a terminal; yields what to tell the number to."""
    with _progress(TextColumn("{task.completed}/{task.total}")) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def measured(what: str, seconds: float) -> Iterator[Callable[[str], None]]:
    """Show how much of a time is gone, on a terminal; yields what to tell the state of things to."""
    with _progress() as progress:
        task, start = progress.add_task(what, total=seconds), time.monotonic()
        yield lambda text: progress.update(task, completed=time.monotonic() - start, description=f"{what}: {text}")


def _progress(*columns: ProgressColumn) -> Progress:
    console = err()
    shown = (TextColumn("{task.description}"), BarColumn(bar_width=20), *columns, TimeElapsedColumn())
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def warn(message: str) -> None:
    """A remark that does not stop a command."""
    err().print(f"[yellow]note:[/yellow] {message}", soft_wrap=True)


def fail(message: str) -> None:
    """The one line, or few, that a command ends with where it cannot do what it was asked."""
    err().print("[red]error:[/red] ", end="")
    err().print(message, soft_wrap=True, markup=False)
