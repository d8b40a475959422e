"""``python -m smelt.tools.gpu_check``: what only a GPU can show, for a machine that has one and need not have TVM.

Each model of the zoo, in its tiny size, runs as Triton kernels and is compared with float64. With ``--dry-run`` no GPU
is needed: kernels are compiled and not launched. Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from torch import Tensor

from ..codegen.gpu import GPU_MACHINES, GpuMachine
from ..frontend.export import capture
from ..ir.errors import SmeltError, UnsupportedError
from ..runtime.check_passes import graph_values
from ..runtime.entry import sizes_of
from ..runtime.gpu import gpu_model
from ..runtime.gpu_run import GpuExecutable
from .console import emit_text
from .models import load_model
from .zoo import ZOO

TOLERANCE = 2e-5  # of the largest value of a result, in float32


def errors_of(spec: str, machine: GpuMachine, device: str) -> list[float]:
    """How far each result of a model, and each state that it changes, is from float64, over its largest value."""
    model = load_model(spec)
    captured = capture(model.model, model.args, model.kwargs)
    leaves = captured.flatten(model.args, dict(model.kwargs))
    sizes = sizes_of(captured, leaves)
    pairs = zip(captured.inputs, leaves, strict=True)
    tensors = [x.detach().contiguous().clone() for spec_, x in pairs if spec_.kind == "tensor"]
    expected = graph_values(captured.graph, tensors, captured.weights, {}, sizes, torch.float64)
    found = gpu_model(captured, machine)
    executable = GpuExecutable(found, captured, device, copy=True)
    given = [x.to(device) for x in tensors]
    results = executable.run(given, sizes)
    inputs = dict(zip(found.graph.inputs, given, strict=True))
    for m in found.graph.mutations:
        results.append(inputs[m.target] if m.target in inputs else executable.weights[str(m.target.attrs["name"])])
    return [_distance(a.cpu(), b) for a, b in zip(results, expected, strict=True)]


def _distance(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    wide = expected.double()
    return float((found.double() - wide).abs().max() / wide.abs().max().clamp(min=1))


def compiled(spec: str, machine: GpuMachine) -> int:
    """Compile every kernel of a model; returns how many there are.

    Raises:
        BackendError: Triton refuses one.
    """
    # imported here: it needs Triton
    from ..codegen.triton.cubin import compile_file

    model = load_model(spec)
    found = gpu_model(capture(model.model, model.args, model.kwargs), machine)
    for kernel, _ in found.kernels:
        compile_file(kernel.file, machine)
    return len(found.kernels)


def check(names: Sequence[str], target: str, dry_run: bool) -> bool:
    """Check models and print a line for each; returns whether all are well."""
    well = True
    for name in names:
        spec = f"zoo:{name}:tiny"
        try:
            if dry_run:
                line = f"{compiled(spec, GPU_MACHINES[target])} kernels compiled for {target}, none launched"
            else:
                worst = max(errors_of(spec, GPU_MACHINES[target], "cuda"), default=0.0)
                well &= worst <= TOLERANCE
                line = f"{'ok' if worst <= TOLERANCE else 'WRONG'}: at most {worst:.1e} of the largest value off"
        except (SmeltError, IndexError) as error:
            well, line = False, f"FAILED: {error}"
        emit_text(f"{name:18} {line}")
    return well


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Names in the zoo; all of them by default.")] = None,
    target: Annotated[str, typer.Option(help=", ".join(GPU_MACHINES))] = "sm_90",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compile and launch nothing: no GPU is needed.")] = False,
) -> None:
    """Run the zoo's tiny models as Triton kernels on this machine's GPU."""
    if target not in GPU_MACHINES:
        raise typer.BadParameter(f"there is no target {target}; there are {', '.join(GPU_MACHINES)}")
    if not dry_run and not torch.cuda.is_available():
        raise UnsupportedError("this machine has no GPU that PyTorch can use: say --dry-run to compile only")
    if not check(models or list(ZOO), target, dry_run):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
