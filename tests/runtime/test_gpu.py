"""Whole models as Triton kernels, launched by the interpreter on the CPU, against PyTorch. No GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smelt.tools.zoo import ZOO

pytest.importorskip("triton")

from ..codegen.interpreter import workers

MODELS = ("two-layer-mlp", "nn-transformer", "llama-decode", "gru-lm", "t5-small")


def outputs_of(name: str) -> list[tuple[float, float]]:
    """For each result and each state that changes: how far it is from PyTorch's, and how large that is."""
    from smelt.codegen.gpu import GPU_MACHINES
    from smelt.frontend.export import capture
    from smelt.runtime.check_passes import graph_values
    from smelt.runtime.entry import sizes_of
    from smelt.runtime.gpu import gpu_model
    from smelt.runtime.gpu_run import GpuExecutable

    torch.manual_seed(0)
    model, args, kwargs = ZOO[name].make(tiny=True)
    captured = capture(model, args, kwargs)
    leaves = captured.flatten(args, kwargs)
    sizes = sizes_of(captured, leaves)
    found = gpu_model(captured, GPU_MACHINES["sm_90"])
    pairs = zip(captured.inputs, leaves, strict=True)
    tensors = [leaf.detach().contiguous().clone() for spec, leaf in pairs if spec.kind == "tensor"]
    weights = {n: x.detach().clone() for n, x in captured.weights.items()}
    expected = graph_values(captured.graph, tensors, weights, {}, sizes, torch.float64)
    executable = GpuExecutable(found, captured, "cpu")
    executable.weights = {n: x.clone() for n, x in executable.weights.items()}
    results = executable.run(tensors, sizes)
    for m in found.graph.mutations:
        inputs = dict(zip(found.graph.inputs, tensors, strict=True))
        results.append(inputs[m.target] if m.target in inputs else executable.weights[str(m.target.attrs["name"])])
    assert len(results) == len(expected)
    return [_distance(a, b) for a, b in zip(results, expected, strict=True)]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0, 0.0
    return float((found.double() - expected.double()).abs().max()), float(expected.double().abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    found: Any = workers().submit(outputs_of, name).result()
    assert found
    for error, largest in found:
        assert error <= 2e-5 * max(largest, 1.0)
