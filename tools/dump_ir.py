"""``smelt dump-ir``: a model at every stage on its way to kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from ..ir.errors import UnsupportedError
from ..runtime.compile import compile
from ..runtime.dump import CODE, KERNELS, changed_by, dump_entry, kernel_code, kernel_program, stages_of
from ..runtime.entry import Entry
from .console import busy, emit_json, emit_text
from .models import Model, load_model


def dump_ir(spec: str, stage: str, out: Path | None, diff: str | None, as_json: bool) -> None:
    """Print a stage of a model, or what a pass changed; or write every stage to a folder.

    Raises:
        SmeltError: the model cannot be loaded or captured.
    """
    model = load_model(spec)
    with busy(f"compiling {model.name}"):
        entries = compiled(model)
    if diff is not None:
        show(model, f"diff {diff}", [_known(entry, diff, changed_by) for entry in entries], as_json)
    elif out is not None:
        written = [path for number, entry in enumerate(entries) for path in write(entry, _folder(out, number, entries))]
        files = [str(path) for path in written]
        emit_json({"model": model.name, "files": files}) if as_json else emit_text("\n".join(files))
    else:
        show(model, stage, [_known(entry, stage, dump_entry) for entry in entries], as_json)


def compiled(model: Model) -> tuple[Entry, ...]:
    """The captures of a model: one, unless Dynamo has to split it."""
    fast = compile(model.model)
    try:
        return (fast.entry_for(model.args, model.kwargs)[0],)
    except UnsupportedError:
        # Its parts are only reached by running it.
        fast(*model.args, **model.kwargs)
        return fast.entries


def show(model: Model, stage: str, texts: Sequence[str], as_json: bool) -> None:
    """Print the texts of a stage, one for each part of a model."""
    if as_json:
        emit_json({"model": model.name, "stage": stage, "parts": list(texts)})
    elif len(texts) == 1:
        emit_text(texts[0])
    else:
        emit_text("\n".join(f"# part {number} of {len(texts)}\n{text}" for number, text in enumerate(texts, 1)))


def write(entry: Entry, folder: Path) -> list[Path]:
    """Write every stage of a capture to a folder: graphs in order, then a file for each kernel's program and code."""
    files = {f"{number:02}-{name}.txt": dump_entry(entry, name) for number, name in enumerate(entry.executable.graphs)}
    for kernel in entry.executable.kernels:
        files[f"{KERNELS}/{kernel.name}.txt"] = kernel_program(kernel)
        files[f"{CODE}/{kernel.name}.py"] = kernel_code(kernel)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def _folder(out: Path, number: int, entries: Sequence[Entry]) -> Path:
    return out if len(entries) == 1 else out / f"part-{number + 1}"


def _known(entry: Entry, stage: str, text: object) -> str:
    try:
        return str(text(entry, stage))  # type: ignore[operator]
    except ValueError as error:
        raise typer.BadParameter(f"{error}") from None


__all__ = ["compiled", "dump_ir", "show", "stages_of", "write"]
