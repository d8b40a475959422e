"""GELU as one function: errors, special values, and which formulas become it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

pytest.importorskip("tvm")

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import default_schedule
from smelt.codegen.tvm import activations, module, names
from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import symbol

from .cases import Case, operand
from .test_vmath import SPECIALS, SWEEP, assert_same_special_values, build, run, unary

APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
N = symbol("n")


@pytest.fixture(scope="module")
def built() -> Any:
    return build({name: unary(name, function) for name, function in activations.FUNCTIONS.items()})


def exact(name: str, x: Tensor) -> Tensor:
    """x F(x) in float64, without what the formula loses where 1 is added to nearly -1."""
    wide = x.double()
    if name == "gelu":
        return wide * 0.5 * torch.erfc(-wide * math.sqrt(0.5))
    return wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))


def test_names_are_those_of_the_functions() -> None:
    assert set(activations.FUNCTIONS) == names.ACTIVATIONS


@pytest.mark.parametrize("name", APPROXIMATE)
@pytest.mark.parametrize("x", [SWEEP, torch.linspace(-8, 8, 2**19 + 1)], ids=["all bits", "where models live"])
def test_error_is_within_bound(built: Any, name: str, x: Tensor) -> None:
    x = x[x.isfinite() & (x.abs() > 1e-37)]  # what is smaller has results that round more
    error = (run(built, name, x).double() - exact(name, x)).abs() / x.double().abs()
    assert error.max() <= activations.MAX_ERROR, f"at {x[error.argmax()]}"


@pytest.mark.parametrize("name", APPROXIMATE)
def test_negative_arguments_are_as_accurate_as_in_eager(built: Any, name: str) -> None:
    x = torch.linspace(-8, -1, 2**16)
    eager = gelu(x, approximate=APPROXIMATE[name])
    error, its = ((y - exact(name, x)).abs().max() for y in (run(built, name, x), eager))
    assert error <= 2 * its


@pytest.mark.parametrize("name", APPROXIMATE)
def test_is_as_accurate_as_eager(built: Any, name: str) -> None:
    x = torch.randn(2**18, generator=torch.Generator().manual_seed(0)) * 3
    eager = gelu(x, approximate=APPROXIMATE[name])
    error, its = ((y.double() - exact(name, x)).square().mean() for y in (run(built, name, x), eager))
    assert error <= 2 * its


@pytest.mark.parametrize("name", APPROXIMATE)
def test_special_values(built: Any, name: str) -> None:
    x = torch.cat([SPECIALS, torch.tensor([5.3, 5.4, 5.75, 5.8, -5.3, -5.75, -5.8, -6.0, -1e30])])
    expected = exact(name, x)
    expected[x == math.inf], expected[x == -math.inf] = math.inf, math.nan
    expected[x < -6] = -0.0
    result = run(built, name, x)
    assert_same_special_values(result[expected.isnan()], expected[expected.isnan()])
    assert torch.equal(result.signbit()[~x.isnan()], expected.signbit()[~x.isnan()] | (x == -math.inf)[~x.isnan()])
    usual = x.isfinite()
    assert torch.all((result - expected)[usual].abs() <= activations.MAX_ERROR * x[usual].abs() + 2.0**-149)
    assert not result[x < -6].nan_to_num().any()


def text_of(make: Callable[[Node], Node], dtype: torch.dtype = torch.float32) -> str:
    x = operand(0, (N, 48), dtype)
    program = Case([x], [make(x)]).program()
    return module.kernel_text("k", program, default_schedule(program, Machine()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_formulas_become_functions(name: str, dtype: torch.dtype) -> None:
    text = text_of(lambda x: ops.gelu(ops.add(x, x), approximate=APPROXIMATE[name]), dtype)
    assert f"floats.{name}(" in text
    assert "erf" not in text
    assert "floats.tanh" not in text


def near_gelu(factor: float, one: float, root: float) -> Callable[[Node], Node]:
    def make(x: Node) -> Node:
        half, added, scale = (ops.scalar_like(value, x) for value in (factor, one, root))
        return ops.mul(ops.mul(half, x), ops.add(added, ops.erf(ops.mul(x, scale))))

    return make


@pytest.mark.parametrize("numbers", [(0.5, 1.0, 0.7), (0.5, 0.5, math.sqrt(0.5)), (1.0, 1.0, math.sqrt(0.5))])
def test_other_formulas_stay(numbers: tuple[float, float, float]) -> None:
    text = text_of(near_gelu(*numbers))
    assert "floats.gelu" not in text
    assert "floats.erf" in text


def test_float64_stays() -> None:
    text = text_of(ops.gelu, torch.float64)
    assert "floats.gelu" not in text
    assert "floats.erf" in text


def test_float64_of_the_functions_is_the_formula() -> None:
    kernels = {name: unary(name, function, "float64") for name, function in activations.FUNCTIONS.items()}
    wide, x = build(kernels), torch.linspace(-4, 4, 64, dtype=torch.float64)
    for name, approximate in APPROXIMATE.items():
        torch.testing.assert_close(run(wide, name, x), gelu(x, approximate=approximate), rtol=1e-12, atol=1e-15)
