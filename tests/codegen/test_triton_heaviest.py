"""The functions that take most registers, at the sizes of BERT, GPT-2 and an LSTM: none spills. No GPU is needed.

All functions of the zoo are in docs/gpu-kernels.md.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from smelt.codegen.gpu import GPU_MACHINES
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.triton.cubin import compile_function
from smelt.codegen.triton.file import KernelFile
from smelt.codegen.triton.module import emit
from smelt.frontend.capture import Capture
from smelt.frontend.export import capture
from smelt.ir import ops
from smelt.ir.types import symbol
from smelt.rewrites.quantization import NAMED
from smelt.runtime.gpu import gpu_model

from .cases import Case, operand

WIDTH, HEADS = 768, 12


class Layer(nn.Module):
    """A layer of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.last_norm(x)), approximate="tanh"))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A layer of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(256, 256, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


class Gated(nn.Module):
    """A product whose rows are computed of two numbers each, as it reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 4096, bias=False), nn.Linear(2048, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)  # type: ignore[no-any-return]


CASES = {
    "gated": (Gated, (2, 9, WIDTH), "int8", "swiglu_cast_quantized_linear_add"),
    "attention": (Layer, (2, 9, WIDTH), "", "attention"),
    "residual": (Layer, (2, 9, WIDTH), "", "linear_add"),
    "norm": (Layer, (2, 9, WIDTH), "", "layer_norm_linear_gelu_product"),
    "int4": (Layer, (2, 9, WIDTH), "int4", "quantized_linear_add"),
    "lstm": (Recurrent, (2, 9, 256), "", "recurrence"),
}


@cache
def captured(make: type[nn.Module], shape: tuple[int, ...]) -> Capture:
    """A model in bfloat16, its sizes symbolic."""
    model = make().bfloat16().eval().requires_grad_(False)
    return capture(model, (torch.randn(shape, dtype=torch.bfloat16),), {})


@cache
def kernels(make: type[nn.Module], shape: tuple[int, ...], quantize: str, target: str) -> list[KernelFile]:
    """Its kernels, of the width of offsets that most sizes take."""
    found = gpu_model(captured(make, shape), GPU_MACHINES[target], NAMED[quantize] if quantize else None)
    return [kernel.file.narrow or kernel.file for kernel, _ in found.kernels]


@pytest.mark.parametrize("target", GPU_MACHINES)
@pytest.mark.parametrize("name", CASES)
def test_no_spills(name: str, target: str) -> None:
    make, shape, quantize, function = CASES[name]
    machine = GPU_MACHINES[target]
    pairs = [(file, launch) for file in kernels(make, shape, quantize, target) for launch in file.launches]
    file, launch = next((f, x) for f, x in pairs if x.function.endswith(function))
    found = compile_function(file, launch, machine)
    assert found.spills == 0
    assert found.shared_bytes <= machine.block_shared_bytes


@pytest.mark.parametrize("target", GPU_MACHINES)
@pytest.mark.parametrize("head", [80, 128])
def test_wide_heads_with_a_mask_do_not_spill(head: int, target: str) -> None:
    """A mask of queries by keys takes registers for its addresses and numbers, most with offsets of 64 bits."""
    machine, (queries, keys) = GPU_MACHINES[target], (symbol("s"), symbol("k"))
    shapes = ((8, queries, head), (2, keys, head), (2, keys, head), (1, queries, keys))
    inputs = [operand(i, (symbol("b"), *shape), torch.bfloat16) for i, shape in enumerate(shapes)]
    case = Case(inputs, [ops.attention(*inputs, causal=False, scale=0.125)])
    file = emit("kernel", case.program(), default_gpu_schedule(case.program(), machine), case.region.symbols)
    for wide in file.all:
        (launch,) = wide.launches
        assert compile_function(wide, launch, machine).spills == 0
