"""Experts: rows multiplied with the matrices that data chooses, in one kernel and without copies of them."""

import pytest
import torch
from torch import Tensor

import smelt

EXPERTS, TERMS, COLUMNS = 4, 24, 40


def compiled(function: object, *args: Tensor, dynamic: bool = False) -> smelt.CompiledModule:
    fast = smelt.compile(function, dynamic=dynamic, cache=False)  # type: ignore[arg-type]
    smelt.verify(fast, *args)
    return fast


def operators(fast: smelt.CompiledModule) -> list[tuple[str, ...]]:
    return [kernel.operators for kernel in fast.report().captures[0].kernels]


def per_row(x: Tensor, matrices: Tensor, expert: Tensor) -> Tensor:
    return torch.bmm(x[:, None, :], matrices[expert])[:, 0]


def per_tile(x: Tensor, matrices: Tensor, expert: Tensor) -> Tensor:
    return torch.bmm(x, matrices.transpose(1, 2)[expert])


def along_memory(x: Tensor, matrices: Tensor, expert: Tensor) -> Tensor:
    return (matrices[expert] * x[:, None, :]).sum(-1)


CASES = {
    "rows": (per_row, (5, TERMS), (EXPERTS, TERMS, COLUMNS)),
    "tiles": (per_tile, (5, 3, TERMS), (EXPERTS, COLUMNS, TERMS)),
    "sums": (along_memory, (5, TERMS), (EXPERTS, COLUMNS, TERMS)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_chosen_matrices_are_read_where_they_lie(name: str, dtype: torch.dtype) -> None:
    function, rows, shape = CASES[name]
    x, matrices = torch.randn(rows, dtype=dtype), torch.randn(shape, dtype=dtype)
    expert = torch.tensor([0, 3, -1, 1, 1])
    fast = compiled(function, x, matrices, expert)
    if name == "sums" and dtype == torch.bfloat16:  # rounded before the sum, as eager does
        return
    assert len(operators(fast)) == 1
    assert "index" in operators(fast)[0]
    with pytest.raises(IndexError, match="out of range"):
        fast(x, matrices, torch.tensor([0, 3, EXPERTS, 1, 1]))


def test_matrices_that_others_read_too_are_copied() -> None:
    def f(x: Tensor, matrices: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
        chosen = matrices[expert]
        return torch.bmm(x[:, None, :], chosen), chosen

    fast = compiled(f, torch.randn(3, TERMS), torch.randn(EXPERTS, TERMS, COLUMNS), torch.tensor([2, 0, 2]))
    assert sorted(operators(fast)) == [("index",), ("matmul",)]


@pytest.mark.parametrize("rows", [3, 40])
def test_a_mixture_of_experts(rows: int) -> None:
    """The routing and the experts of transformers' Mixtral, over few rows and over tiles, one expert being left out."""
    transformers = pytest.importorskip("transformers")
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = transformers.MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=EXPERTS)
    config._experts_implementation = "grouped_mm"
    block = modeling.MixtralSparseMoeBlock(config).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
        block.gate.weight[2] = -block.gate.weight[1] * 1e-3
    x = torch.randn(1, rows, 16)
    fast = compiled(block, x)
    assert fast.report().captures[0].fallbacks == ()
