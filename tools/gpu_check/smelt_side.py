"""smelt's side of every comparison: the one place that says how a model is compiled for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...codegen.gpu import GPU_MACHINES
from ...frontend.export import capture
from ...runtime.compile import compile
from ...runtime.gpu import GpuModel, gpu_model

Model = Callable[..., Any]


def compiled(model: nn.Module, quantize: str = "", dynamic: bool = False, streams: int = 1) -> Model:
    """The model as smelt runs it: on a GPU, or on the CPU where Triton interprets.

    The sizes of the call are constants, as for the other compilers, unless ``dynamic``.

    Raises:
        SmeltError: smelt cannot compile the model.
    """
    settings: Any = quantize or None
    return compile(model, target="cuda", quantize=settings, dynamic=dynamic, streams=streams)


def kernels_of(model: nn.Module, args: tuple[Any, ...]) -> GpuModel:
    """The kernels that a model becomes; nothing is compiled or run."""
    return gpu_model(capture(model, args, {}), GPU_MACHINES["sm_90"])


def launches_of(found: GpuModel) -> int:
    """How many kernels one run launches."""
    return sum(len(kernel.file.launches) * calls for kernel, calls in found.kernels)
