"""Whole models on weights of few bits as Triton kernels, interpreted, against what their final graphs mean."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from ..codegen.interpreter import workers

KINDS = ("bf16+int4", "bf16+int8-dynamic", "f16+fp8")


def errors_of(spec: str, numbers: str) -> tuple[float, float]:
    """How far the results are from the graph's meaning in float64, and how far its meaning in its own dtypes is.

    Both root mean squares, of the result where their ratio is largest; in the process that interprets.
    """
    from smelt.codegen.gpu import GPU_MACHINES
    from smelt.frontend.export import capture
    from smelt.ir.interpret import evaluate, interpret
    from smelt.runtime.entry import sizes_of
    from smelt.runtime.gpu import gpu_model
    from smelt.runtime.gpu_run import GpuExecutable
    from smelt.tools.numbers import load_on, numbers_of

    dtype, quantize = numbers_of(numbers)
    model = load_on(spec, dtype)
    captured = capture(model.model, model.args, model.kwargs)
    leaves = captured.flatten(model.args, dict(model.kwargs))
    sizes = sizes_of(captured, leaves)
    tensors = [x for s, x in zip(captured.inputs, leaves, strict=True) if s.kind == "tensor"]
    found = gpu_model(captured, GPU_MACHINES["sm_90"], quantize)
    weights = dict(captured.weights)
    for name, node in found.derived.items():
        (weights[name],) = evaluate([node], weights)
    expected = interpret(found.graph, tensors, weights, sizes=sizes).outputs
    wide = interpret(found.graph, tensors, weights, sizes=sizes, dtype=torch.float64).outputs
    results = GpuExecutable(found, captured, "cpu", copy=True).run(tensors, sizes)

    def rms(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).square().mean().sqrt())

    pairs = [(rms(a, c), rms(b, c)) for a, b, c in zip(results, expected, wide, strict=True)]
    return max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-30))


@pytest.mark.parametrize("numbers", KINDS)
def test_model(numbers: str) -> None:
    torch.manual_seed(0)
    error, rounding = workers().submit(errors_of, "zoo:llama-decode:tiny", numbers).result()
    assert 0 < error <= 3 * rounding
