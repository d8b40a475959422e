"""Values that a kernel widens last lie in memory in their half type, and mean what they did."""

from __future__ import annotations

import pytest
import torch

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.rewrites.quantization import NAMED
from smelt.runtime.gpu import gpu_model
from smelt.runtime.gpu_narrow import narrowed

BF16, F32 = torch.bfloat16, torch.float32


def kernel(inputs: list[Node], outputs: list[Node], *operands: Node) -> Node:
    layouts = tuple(tuple(range(len(x.shape))) for x in outputs)
    return ops.fused(*operands, region=Graph(inputs, outputs), layouts=layouts)


def chain(*, several: bool = False, returned: bool = False) -> Graph:
    """neg in bfloat16, widened; then doubled in float32."""
    x = ops.input(name="x", shape=(4,), dtype=BF16)
    y = ops.neg(x)
    first = kernel([x], [ops.cast(y, dtype=F32), y] if several else [ops.cast(y, dtype=F32)], x)
    wide = ops.item(first, index=0) if several else first
    a = ops.input(name="a", shape=(4,), dtype=F32)
    second = kernel([a], [ops.add(a, a)], wide)
    outputs = [second, ops.item(first, index=1)] if several else [second]
    return Graph([x], [*outputs, wide] if returned else outputs)


@pytest.mark.parametrize("several", [False, True])
def test_the_half_type_is_stored(several: bool) -> None:
    graph = chain(several=several)
    found = narrowed(graph)
    kernels = [n for n in found.nodes if n.is_a(ops.fused)]
    assert [str(x.dtype) for x in kernels[0].attrs["region"].outputs] == ["torch.bfloat16"] * (2 if several else 1)  # type: ignore[union-attr]
    assert kernels[1].attrs["region"].inputs[0].dtype == BF16  # type: ignore[union-attr]
    x = torch.tensor([1.5, -2.0, 0.0, float("inf")], dtype=BF16)
    before, after = (interpret(g, [x], {}).outputs for g in (graph, found))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_returned_stays_as_it_is() -> None:
    graph = chain(returned=True)
    assert narrowed(graph) is graph


def test_products_with_few_bits_are_of_half_types() -> None:
    from smelt.codegen.gpu import GPU_MACHINES
    from smelt.frontend.export import capture
    from smelt.tools.numbers import load_on

    model = load_on("zoo:bert-base:tiny", BF16)
    captured = capture(model.model, model.args, model.kwargs)
    found = gpu_model(captured, GPU_MACHINES["sm_90"], NAMED["int4"])
    products = [k for k, _ in found.kernels if "quantized_linear" in k.operators]
    assert products
    for k in products:
        assert "input_precision" not in k.file.text, k.name
