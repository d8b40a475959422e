"""``smelt export``, ``smelt inspect`` and ``smelt verify``: models as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ..runtime.artifact.export import export
from ..runtime.artifact.inspect import inspect
from ..runtime.artifact.load import load
from ..runtime.artifact.verify import verify_artifact
from .console import busy, emit_json, emit_text
from .models import load_model


def export_model(
    spec: str, out: Path, targets: Sequence[str], quantize: Any, threads: int | None, as_json: bool
) -> None:
    """Compile a model and write it to a file.

    Raises:
        SmeltError: the model cannot be loaded, captured or written.
    """
    model = load_model(spec)
    with busy(f"compiling {model.name}"):
        made = export(model.model, model.args, model.kwargs, target=tuple(targets), quantize=quantize, threads=threads)
        digest = made.save(out)
    size, names = out.stat().st_size, [record.name for record in made.targets]
    text = f"{out}: {size / 1e6:.1f} MB, with kernels for {', '.join(names)}\ndigest {digest}"
    data = {"model": model.name, "file": str(out), "bytes": size, "digest": digest, "targets": names}
    emit_json(data) if as_json else emit_text(text)


def inspect_file(path: Path, as_json: bool) -> None:
    """Show what an artifact holds. Nothing in it is run.

    Raises:
        ArtifactError: the file is damaged, or no artifact.
    """
    found = inspect(path)
    emit_json(found.data) if as_json else emit_text(str(found))


def verify_file(
    path: Path, against: str, entry_point: str | None, target: str, device: str | None, as_json: bool
) -> None:
    """Hold an artifact to the model that it was made of, both on the device.

    Raises:
        VerifyError: it breaks the numeric contract.
        SmeltError: the artifact or the model cannot be loaded.
    """
    with load(path, target=target, device=device) as loaded:
        found, where = load_model(against), torch.device(loaded.report().device)
        model, args, kwargs = found.model, found.args, found.kwargs
        if where.type != "cpu":
            model = model.to(where) if isinstance(model, torch.nn.Module) else model
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(where), (args, kwargs))
        result = verify_artifact(loaded, model, args, kwargs, entry_point=entry_point)
        data = {"file": str(path), "digest": loaded.digest, "against": found.name, "target": loaded.report().target}
    text = f"{result}\n{path} keeps the numeric contract against {found.name}, with kernels for {data['target']}"
    emit_json(data | result.to_dict()) if as_json else emit_text(text)
