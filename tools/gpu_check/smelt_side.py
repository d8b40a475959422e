"""smelt's side of every comparison: the one place that says how a model is compiled for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...codegen.gpu import GPU_MACHINES
from ...frontend.capture import Capture
from ...frontend.export import capture
from ...ir.errors import UnsupportedError
from ...runtime.compile import compile
from ...runtime.entry import sizes_of
from ...runtime.gpu import GpuModel, gpu_model
from ...runtime.gpu_run import GpuExecutable

Model = Callable[..., Any]
NO_TARGET = "there is no target"  # what a smelt says that has none for GPUs


def compiled(model: nn.Module, device: torch.device, quantize: str = "", dynamic: bool = False) -> Model:
    """The model as smelt runs it on a device.

    On a GPU that is ``smelt.compile(model, target="cuda")``, with the sizes of the call as constants as for the other
    compilers. On the CPU, where Triton interprets, it is the same where that target can do so, and otherwise the
    kernels one after another.

    Raises:
        SmeltError: smelt cannot compile the model.
    """
    settings: Any = quantize or None
    try:
        return compile(model, target="cuda", quantize=settings, dynamic=dynamic)
    except UnsupportedError as error:
        if device.type == "cuda" or quantize or NO_TARGET not in str(error):
            raise
    return Interpreted(model)


class Interpreted:
    """A model's kernels launched one after another on the CPU by Triton's interpreter; each call has the same sizes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.made: tuple[Capture, GpuExecutable] | None = None

    def __call__(self, *args: torch.Tensor) -> Any:
        """The model's results, as PyTorch would return them."""
        if self.made is None:
            found = capture(self.model, args, {})
            self.made = found, GpuExecutable(gpu_model(found, GPU_MACHINES["sm_90"]), found, "cpu")
        found, executable = self.made
        leaves = found.flatten(args, {})
        given = [x.contiguous() for spec, x in zip(found.inputs, leaves, strict=True) if spec.kind == "tensor"]
        results = executable.run(given, sizes_of(found, leaves))
        return results[0] if len(results) == 1 else tuple(results)


def kernels_of(model: nn.Module, args: tuple[Any, ...]) -> GpuModel:
    """The kernels that a model becomes; nothing is compiled or run."""
    return gpu_model(capture(model, args, {}), GPU_MACHINES["sm_90"])


def launches_of(found: GpuModel) -> int:
    """How many kernels one run launches."""
    return sum(len(kernel.file.launches) * calls for kernel, calls in found.kernels)
