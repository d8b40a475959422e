"""``python -m smelt.tools.gpu_tune``: a model's kernels tuned on this machine's GPU; who won, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..codegen.gpu import GPU_MACHINES, GpuMachine
from ..frontend.export import capture
from ..ir.errors import UnsupportedError
from ..runtime.cache import KernelCache
from ..runtime.entry import sizes_of
from ..runtime.gpu import gpu_model
from ..runtime.gpu_tuner import FILE, GpuTuner, Outcome, gpu_progress_of, outcomes_of, report_of
from ..runtime.gpu_tuner_task import gpu_tasks_of
from ..runtime.tuner import Settings
from ..runtime.tuner_records import Records
from .console import emit_text, measured, warn
from .numbers import load_on, numbers_of
from .tune import seconds_of


def tuned(
    spec: str, numbers: str, machine: GpuMachine, records: Records, settings: Settings, worker: Any = None
) -> list[Outcome]:
    """Tune the kernels of a model's example call.

    Raises:
        SmeltError: the model cannot be loaded or captured.
    """
    dtype, quantize = numbers_of(numbers)
    model = load_on(spec, dtype)
    captured = capture(model.model, model.args, model.kwargs)
    leaves = captured.flatten(model.args, dict(model.kwargs))
    tensors = [x for s, x in zip(captured.inputs, leaves, strict=True) if s.kind == "tensor"]
    found = gpu_model(captured, machine, quantize)
    tasks = gpu_tasks_of(found, captured.weights, tensors, sizes_of(captured, leaves))
    kernels = gpu_progress_of(tasks, machine)
    with measured("tuning", settings.budget) as update:

        def tell(all_: Any, now: Any) -> None:
            update("" if now is None else f"{now.task.name}, {sum(now.tried.values())} tried")

        GpuTuner(kernels, machine, records, settings, tell, worker).run()
    for kernel in kernels:
        if kernel.problem:
            warn(f"{kernel.task.name}: {kernel.problem}")
    return outcomes_of(kernels)


def machine_here(available: Callable[[], bool] = torch.cuda.is_available) -> GpuMachine:
    """What is known of this machine's GPU.

    Raises:
        UnsupportedError: there is none, or of a kind that nothing is known of.
    """
    if not available():
        raise UnsupportedError("this machine has no GPU that PyTorch can use: `smelt tune` is for its processor")
    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    if name not in GPU_MACHINES:
        raise UnsupportedError(f"nothing is known of {name}; there are {', '.join(GPU_MACHINES)}")
    return GPU_MACHINES[name]


def main(
    model: Annotated[str, typer.Argument(help="As for the command smelt: zoo:NAME, path.py:make_model.")],
    numbers: Annotated[str, typer.Option("--dtype", help="f32, bf16, f16; bf16+int4.")] = "bf16",
    budget: Annotated[str, typer.Option(help="Time for all kernels: 90s, 10m.")] = "5m",
    trials: Annotated[int, typer.Option(help="Schedules of one kernel at most.")] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what records say was tried.")] = False,
) -> None:
    """Tune a model's kernels on this machine's GPU."""
    machine = machine_here()
    records = Records(Path(KernelCache().folder) / FILE)
    settings = Settings(seconds_of(budget), trials, resume=resume, limit=60.0)
    emit_text(report_of(tuned(model, numbers, machine, records, settings)))


if __name__ == "__main__":
    typer.run(main)
