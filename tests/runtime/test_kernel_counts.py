"""How many kernels a layer of each architecture takes: the difference that one layer more makes."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn

from smelt.codegen.machine import Machine
from smelt.frontend.export import capture
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.node import Node, Trait
from smelt.rewrites.context import Context
from smelt.rewrites.fusion import fuse
from smelt.rewrites.pipeline import run_pipeline
from smelt.runtime.kernels import KernelTable, legalise
from smelt.runtime.plan import KernelStep, make_plan
from smelt.tools.zoo import ZOO

# the model, where its layers are, and the most kernels of one
TARGETS = [
    ("bert-base", "encoder.layer", 5),
    ("gpt2", "transformer.h", 5),
    ("llama", "model.layers", 6),
    ("t5-small", "encoder.block", 5),
    ("t5-small", "decoder.block", 9),
    ("bart-base", "model.encoder.layers", 5),
    ("bart-base", "model.decoder.layers", 9),
    ("vit-base", "vit.layers", 5),
    ("nn-transformer", "transformer.encoder.layers", 5),
    ("nn-transformer", "transformer.decoder.layers", 9),
]
MOVES = (Trait.VIEW, Trait.CONCAT, Trait.SOURCE, Trait.CREATION)


def with_another_layer(model: nn.Module, layers: str) -> nn.Module:
    """The model with its last layer twice, each with weights of its own."""
    found = model.get_submodule(layers)
    assert isinstance(found, nn.ModuleList)
    found.append(deepcopy(found[-1]))
    config = getattr(model, "config", None)
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers += 1  # type: ignore[union-attr]
    return model


@cache
def regions(name: str, layers: str | None) -> list[Graph]:
    """The region of each kernel call of a tiny zoo model."""
    zoo = ZOO[name]
    model, args, kwargs = zoo.make(tiny=True)
    torch.manual_seed(0)
    if layers is not None:
        model = with_another_layer(model, layers)
    graph = fuse(run_pipeline(capture(model, args, kwargs).graph, Context()))
    table = KernelTable(Machine())
    plan = make_plan(legalise(graph, table), table)
    assert all(isinstance(step, KernelStep) for step in plan.steps)
    return [step.kernel.region for step in plan.steps if isinstance(step, KernelStep)]


def moves_only(region: Graph) -> bool:
    """Whether a kernel only moves values: a copy, a transpose."""
    return all(node.has(*MOVES) or _keeps_type(node) for node in region.nodes)


def _keeps_type(node: Node) -> bool:
    return node.is_a(ops.cast) and node.dtype == node.inputs[0].dtype


@pytest.mark.parametrize(("name", "layers", "most"), TARGETS)
def test_kernels_of_a_layer(name: str, layers: str, most: int) -> None:
    assert 0 < len(regions(name, layers)) - len(regions(name, None)) <= most


@pytest.mark.parametrize("name", list(dict.fromkeys(name for name, _, _ in TARGETS)))
def test_no_kernel_only_moves_values(name: str) -> None:
    assert not [str(region) for region in regions(name, None) if moves_only(region)]
