"""The built-in models in their tiny sizes as Triton kernels, held against float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codegen.gpu import GPU_MACHINES, GpuMachine
from ...frontend.export import capture
from ...runtime.check_passes import graph_values
from ...runtime.entry import sizes_of
from ...runtime.gpu import gpu_model
from ...runtime.gpu_run import GpuExecutable
from ..models import load_model

TOLERANCE = 2e-5  # of the largest value of a result, in float32
MACHINE = "sm_90"


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


def worst_error(name: str, device: str) -> float:
    """The largest error of a model's tiny variant; NaN where a result has one.

    Raises:
        MissingExtraError: the model needs a package that is not installed.
    """
    errors = errors_of(f"zoo:{name}:tiny", GPU_MACHINES[MACHINE], device)
    return next((e for e in errors if e != e), max(errors, default=0.0))
