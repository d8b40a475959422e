"""The whole way as text, for a small model and for one Transformer layer: graphs, kernel programs, generated code."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from smelt.codegen.machine import Machine
from smelt.codegen.text import print_program
from smelt.frontend.export import capture
from smelt.ir.text import print_graph
from smelt.rewrites.context import Context
from smelt.rewrites.fusion import fuse
from smelt.rewrites.pipeline import run_pipeline
from smelt.runtime.kernels import KernelTable, legalise
from smelt.tools.zoo import ZOO


def two_layer_mlp() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model, args, _ = ZOO["two-layer-mlp"].make()
    return model, args


def transformer_layer() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True, activation="gelu")
    return layer.eval(), (torch.randn(2, 9, 64),)


MODELS = {"two-layer-mlp": two_layer_mlp, "transformer-layer": transformer_layer}


@pytest.mark.parametrize("name", MODELS)
def test_every_stage(name: str, golden: Callable[[str, str], None]) -> None:
    model, args = MODELS[name]()
    captured = capture(model, args, {}).graph
    fused = fuse(run_pipeline(captured, Context()))
    table = KernelTable(Machine())  # a processor of our own: the text is the same on every machine
    final = legalise(fused, table)
    kernels = list(table.kernels.values())
    golden(f"{name}.final.txt", print_graph(final))
    golden(f"{name}.kernels.txt", "\n".join(f"# {k.name}\n{print_program(k.program)}" for k in kernels))
    if name == "two-layer-mlp":  # the code of a whole layer is more than anyone would read
        golden(f"{name}.code.txt", "\n".join(k.source for k in kernels))
