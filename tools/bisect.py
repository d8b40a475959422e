"""``smelt bisect``: the first step of a compilation that makes a model's result wrong."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import CaptureError
from ..runtime.bisect import bisect as find
from .console import busy, emit_json, emit_text
from .models import load_model

DEFAULT_SCRIPT = Path("smelt-fault.py")


def bisect(spec: str, out: Path | None, threads: int | None, as_json: bool) -> int:
    """Print what breaks a model's result, and write a script that shows it; returns the exit code.

    Raises:
        SmeltError: the model cannot be loaded or captured.
    """
    model = load_model(spec)
    with busy(f"searching {model.name}"):
        try:
            found = find(model.model, model.args, model.kwargs, threads=threads)
        except CaptureError as error:
            raise CaptureError(f"{error}\nOnly a model that is one graph can be bisected.") from error
    finding = found.finding
    written = None
    if finding is not None and finding.script:
        written = out or DEFAULT_SCRIPT
        written.write_text(finding.script, encoding="utf-8")
    if as_json:
        emit_json({"model": model.name, "wrote": written, **found.to_dict()})
    else:
        emit_text(str(found) if written is None else f"{found}\nwrote {written}: run it with python to see the fault")
    return 0 if finding is None else 1
