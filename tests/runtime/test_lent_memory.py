"""The memory that a kernel is lent for the rows that it computes: in a plan, and where a kernel runs alone."""

import torch
from torch import nn

import smelt
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.runtime.plan import Place
from smelt.runtime.probe import run_region


def test_a_kernel_alone_is_lent_its_memory() -> None:
    x, w = (ops.input(name=str(i), shape=shape, dtype=torch.float32) for i, shape in enumerate([(5, 48), (16, 48)]))
    region = Graph([x, w], [ops.linear(ops.layer_norm(x), w)])
    given = torch.randn(5, 48), torch.randn(16, 48)
    (found,) = run_region(region, given, {}, weights=[1])
    expected = nn.functional.linear(nn.functional.layer_norm(given[0], (48,)), given[1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_every_intermediate_has_an_owner() -> None:
    fast = smelt.compile(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 16)).eval())
    fast(torch.randn(5, 48))
    plan = fast.entries[0].executable.plan
    owners, home = plan.owners(), {buffer.position for buffer in plan.home.values()}
    lent = [position for position in plan.live if position not in home]
    assert len(lent) == 1
    assert plan.buffers[lent[0]].place is Place.ARENA
    assert owners[lent[0]].is_a(ops.fused)
