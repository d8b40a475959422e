"""Deep and wide graphs: no recursion, and time that grows with the graph and not with its square."""

import sys
from collections.abc import Iterator

import pytest
import torch

from smelt.rewrites.fusion import MAX_NODES
from smelt.runtime.plan import MOST_CALLS
from smelt.tools.scaling import KINDS, ROWS, WIDTH, build, chain, matmuls, time_stages

SMALL = 0.02  # seconds: below, a stage's time says nothing


@pytest.fixture(autouse=True)
def default_limit() -> Iterator[None]:
    """Python's default recursion limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_nodes_take_twice_as_long(kind: str) -> None:
    time_stages(kind, 200)  # what is done once in a process: imports, caches of sizes
    for _ in range(3):  # the machine may be busy: one clean run is enough
        grown = grown_too_much(time_stages(kind, 1500), time_stages(kind, 3000))
        if not grown:
            return
    pytest.fail(f"more than 2.5 times as long for twice the nodes: {grown}")


def grown_too_much(once: dict[str, float], twice: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The stages that took more than 2.5 times as long, with their seconds."""
    return {name: (once[name], twice[name]) for name in once if twice[name] > 2.5 * max(once[name], SMALL)}


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_ten_thousand_nodes_compile_and_run(kind: str) -> None:
    time_stages(kind, 10_000, native=True)


def test_a_chain_of_pointwise_operators_is_few_kernels() -> None:
    executable = build(chain(24 * MAX_NODES))
    assert sum(kernel.calls for kernel in executable.kernels) == 24
    assert len(executable.kernels) <= 3


def test_no_host_function_makes_more_calls_than_llvm_takes_well() -> None:
    executable = build(matmuls(4 * (2 * MOST_CALLS + 1)))
    assert len(executable.plan.steps) == 2 * MOST_CALLS + 1
    assert len(executable.hosts) == 3
    x = torch.rand(5, WIDTH)
    (found,) = executable.run([x], {ROWS: 5})
    weights = executable.weights
    for i in range(len(executable.plan.steps)):
        x = torch.tanh(x @ weights[f"{i}.w"].T + weights[f"{i}.b"])
    torch.testing.assert_close(found, x)
