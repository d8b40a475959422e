"""``smelt compile-check``: a model's kernels compiled for a GPU that need not be there. Nothing is run or measured."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from ..codegen.gpu import GPU_MACHINES, GpuMachine, gpu_schedule_text
from ..frontend.export import capture
from ..ir.errors import BackendError
from ..runtime.gpu import GpuKernel, GpuModel, gpu_model
from .console import busy, emit_json, emit_text
from .errors import OutputError
from .models import load_model

INSTALL_TRITON = "pip install triton"


def compile_check(spec: str, target: str, out: Path | None, as_json: bool) -> bool:
    """Compile every kernel of a model; returns whether any could not be.

    Raises:
        SmeltError: the model cannot be loaded or captured, or Triton is missing.
    """
    if target not in GPU_MACHINES:
        raise typer.BadParameter(f"there is no target {target}; there are {', '.join(GPU_MACHINES)}")
    if find_spec("triton") is None:
        raise BackendError(f"compile-check needs the package triton, which is not installed; run: {INSTALL_TRITON}")
    machine, model = GPU_MACHINES[target], load_model(spec)
    with busy(f"compiling {model.name} for {target}"):
        found = gpu_model(capture(model.model, model.args, model.kwargs), machine)
        if out is not None:
            write(found, out)
        kernels = [checked(kernel, calls, machine) for kernel, calls in found.kernels]
    data = {"name": model.name, "target": target, "kernels": kernels, "torch": [list(t) for t in found.torch]}
    emit_json(data) if as_json else emit_text(text_of(data))
    return any(k["error"] for k in kernels)


def write(found: GpuModel, out: Path) -> None:
    """Write the source of every kernel, a file each."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} is no folder that kernels can be written to: {error}") from error
    for kernel, _ in found.kernels:
        (out / f"{kernel.name}.py").write_text(kernel.file.text, encoding="utf-8")


def checked(kernel: GpuKernel, calls: int, machine: GpuMachine) -> dict[str, Any]:
    """A kernel as data: what each of its functions takes, or the error of the first that cannot be compiled."""
    # imported here: it needs Triton
    from ..codegen.triton.cubin import compile_file

    about: dict[str, Any] = {
        "name": kernel.name,
        "operators": list(kernel.operators),
        "skeleton": kernel.program.skeleton.value,
        "schedule": gpu_schedule_text(kernel.schedule),
        "calls": calls,
        "index_bits": kernel.file.bits,
    }
    try:
        functions = [asdict(r) for r in compile_file(kernel.file, machine)]
    except BackendError as error:
        return about | {"functions": [], "error": str(error)}
    return about | {"functions": functions, "error": None}


_HEAD = f"{'calls':>5} {'regs':>5} {'spills':>6} {'shared':>7} {'warps':>5} {'occup.':>6} {'bits':>4}  function"


def text_of(data: dict[str, Any]) -> str:
    """The findings as a table, a line for each function."""
    kernels = data["kernels"]
    functions = [f for k in kernels for f in k["functions"]]
    lines = [f"{data['name']} for {data['target']}: {len(kernels)} kernels; nothing was run or measured", "", _HEAD]
    for k in kernels:
        for f in k["functions"]:
            numbers = f"{k['calls']:>5} {f['registers']:>5} {f['spills']:>6} {f['shared_bytes']:>7} {f['warps']:>5}"
            lines.append(f"{numbers} {f['occupancy']:>6.0%} {k['index_bits']:>4}  {f['function']}")
        if k["error"]:
            lines += [f"{k['calls']:>5} FAILED {k['name']}", *(f"      {line}" for line in k["error"].splitlines())]
    spilling = sum(f["spills"] > 0 for f in functions)
    lines += [
        "",
        f"{len(functions)} functions, {spilling} with spills, {sum(bool(k['error']) for k in kernels)} failed",
    ]
    lines += [f"PyTorch runs {op}: {why}" for op, why in data["torch"]]
    return "\n".join(lines)
