"""Whole models on weights of few bits as Triton kernels, interpreted, against what their final graphs mean."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

pytest.importorskip("triton")

from ..codegen.interpreter import workers

KINDS = ("bf16+int4", "bf16+int8-dynamic", "f16+fp8", "bf16+fp8-dynamic")


def errors_of(spec: str, numbers: str) -> tuple[float, float]:
    """How far the results are from the graph's meaning in float64, and how far its meaning in its own dtypes is.

    Both root mean squares, of the result where their ratio is largest; in the process that interprets.
    """
    import smelt
    from smelt.ir.interpret import evaluate, interpret
    from smelt.runtime.entry import sizes_of
    from smelt.tools.numbers import load_on, numbers_of

    dtype, quantize = numbers_of(numbers)
    model = load_on(spec, dtype)
    before = copy.deepcopy(model.model)
    fast = smelt.compile(model.model, target="cuda", quantize=quantize, graphs=0)
    results = pytree.tree_leaves(fast(*model.args, **model.kwargs))
    captured, made = fast.entries[0].capture, fast.entries[0].executable
    leaves = captured.flatten(tuple(model.args), dict(model.kwargs))
    tensors = [x for s, x in zip(captured.inputs, leaves, strict=True) if s.kind == "tensor"]
    # the cache as it was before the call
    weights = dict(captured.weights) | {n: x for n, x in before.state_dict().items() if n in captured.weights}
    for name, node in made.derived.items():
        (weights[name],) = evaluate([node], weights)
    sizes, graph = sizes_of(captured, leaves), made.plan.graph
    expected = interpret(graph, tensors, weights, sizes=sizes).outputs
    wide = interpret(graph, tensors, weights, sizes=sizes, dtype=torch.float64).outputs

    def rms(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).square().mean().sqrt())

    pairs = [(rms(a, c), rms(b, c)) for a, b, c in zip(results, expected, wide, strict=True)]
    return max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-30))


@pytest.mark.parametrize("numbers", KINDS)
def test_model(numbers: str) -> None:
    torch.manual_seed(0)
    error, rounding = workers().submit(errors_of, "zoo:llama-decode:tiny", numbers).result()
    assert 0 < error <= 3 * rounding
