"""Matmul kernels: packed weights, products of activations, epilogues, on awkward sizes."""

from dataclasses import replace

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import MatmulSchedule, candidates
from smelt.ir import ops

from .harness import Kernel, build
from .matmul_cases import M, activations, linear_case, linears


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(linears())


@pytest.mark.parametrize("name", list(linears()))
def test_linear(kernels: dict[str, Kernel], name: str) -> None:
    for sizes in kernels[name].case.sizes:
        kernels[name].check(sizes)


# --- products of activations ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def products() -> dict[str, Kernel]:
    return build(activations())


@pytest.mark.parametrize("name", list(activations()))
def test_product_of_activations(products: dict[str, Kernel], name: str) -> None:
    for sizes in products[name].case.sizes:
        products[name].check(sizes)


# --- schedules --------------------------------------------------------------------------------------------------------


MACHINES = [Machine(), Machine(vector_bits=256, registers=16), Machine(vector_bits=128, registers=32, threads=8)]


def test_every_candidate_computes_the_same() -> None:
    base = linear_case((M,), 70, 100)
    found = [s for machine in MACHINES for s in candidates(base.program(), machine)[:2]]
    schedules = [s for s in found if isinstance(s, MatmulSchedule)]
    schedules += [replace(schedules[0], blocked=True, block_k=16), replace(schedules[0], block_k=16, block_m=1)]
    schedules += [replace(schedules[0], blocked=True, pack_left=True, pack_right=True), MatmulSchedule(1, 16)]
    for kernel in build({str(i): replace(base, schedule=s) for i, s in enumerate(schedules)}).values():
        for sizes in base.sizes:
            kernel.check(sizes)


def test_a_few_rows_more_stay_in_one_task() -> None:
    """Up to half as many tiles again as a task should have: what it keeps of them has room."""
    base, wide = linear_case((M,), 70, 40), MatmulSchedule(2, 16, block_m=4, block_k=16, tasks=1)
    orders = [{}, {"blocked": True}, {"blocked": True, "pack_left": True, "pack_right": True}]
    schedules = [replace(wide, **order) for order in orders]  # type: ignore[arg-type]
    for kernel in build({str(i): replace(base, schedule=s) for i, s in enumerate(schedules)}).values():
        for rows in (0, 1, 8, 9, 10, 11, 12, 13, 16, 20, 21, 27, 28, 29):
            kernel.check({"m": rows})


def test_nan_and_infinity_go_through() -> None:
    case = linear_case((M,), 20, 30, after=ops.relu)
    x, w, b = case.tensors({"m": 5})
    x[0, 0], x[1, 1], x[2, 2] = float("nan"), float("inf"), float("-inf")
    build({"0": case})["0"].check({"m": 5}, [x, w, b])


def test_rounding_does_not_grow_with_the_terms() -> None:
    torch.manual_seed(1)
    case = linear_case((M,), 16384, 16)
    kernel = build({"0": case})["0"]
    tensors = [t.abs() for t in case.tensors({"m": 8})]
    exact = case.meaning(tensors, {"m": 8}, torch.float64)[0]
    eager, ours = case.meaning(tensors, {"m": 8}, None)[0], kernel.run(tensors, {"m": 8})[0]
    assert (ours - exact).square().mean().sqrt() <= 2 * (eager - exact).square().mean().sqrt()
