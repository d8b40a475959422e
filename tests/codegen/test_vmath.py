"""The elementary functions of generated CPU kernels: error bounds, special values, and what LLVM makes of them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

tvm = pytest.importorskip("tvm")

from tvm import tirx  # noqa: E402
from tvm.script import tirx as T  # noqa: E402
from tvm.target import codegen  # noqa: E402

from smelt.codegen.tvm import vmath  # noqa: E402
from smelt.codegen.tvm.pipeline import NAME as PIPELINE  # noqa: E402

LANES = 16
STRIDE = 2039  # prime, so that a sweep in steps of it meets every residue of the mantissa: 2.1 million floats
SWEEP = torch.arange(-(2**31), 2**31, STRIDE).to(torch.int32).view(torch.float32)
INF, NAN, MAX, LEAST = float("inf"), float("nan"), torch.finfo(torch.float32).max, 2.0**-149
POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 2.0**24 - 1, 2.0**24, 2.0**31, 1e5, 1e30, MAX, INF, NAN]
SMALL = [LEAST, 1e-40, 2.0**-126, 1e-10, 0.99999994, 1.0000001]
LIMITS = [9.02, 17.0, 88.72283, 88.72284, 103.97208, 103.97209, 128.0, 149.0, 150.0, 200.0]  # where results saturate
SPECIALS = torch.tensor(POSITIVE + SMALL + LIMITS)
SPECIALS = torch.cat([SPECIALS, -SPECIALS])
NAMES = list(vmath.FUNCTIONS)


def target(cpu: str | None = None) -> Any:
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu or codegen.llvm_get_system_cpu()})


def build(kernels: Any, cpu: str | None = None) -> Any:
    return tirx.build(tvm.IRModule(kernels), target=target(cpu), pipeline=PIPELINE)


def unary(name: str, function: Callable[[Any], Any], dtype: str = "float32", lanes: int = LANES) -> Any:
    """y[i] = function(x[i]) in vectors of ``lanes``."""

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, y_handle: T.handle):
        T.func_attr({"global_symbol": name})
        n = T.int32()
        x = T.match_buffer(x_handle, (n,), dtype)
        y = T.match_buffer(y_handle, (n,), dtype)
        for i in T.serial(n // lanes):
            for j in T.vectorized(lanes):
                y[i * lanes + j] = function(x[i * lanes + j])

    return kernel


def binary(name: str, function: Callable[[Any, Any], Any]) -> Any:
    """z[i] = function(x[i], y[i]) in vectors of LANES."""

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, y_handle: T.handle, z_handle: T.handle):
        T.func_attr({"global_symbol": name})
        n = T.int32()
        x = T.match_buffer(x_handle, (n,), "float32")
        y = T.match_buffer(y_handle, (n,), "float32")
        z = T.match_buffer(z_handle, (n,), "float32")
        for i in T.serial(n // LANES):
            for j in T.vectorized(LANES):
                z[i * LANES + j] = function(x[i * LANES + j], y[i * LANES + j])

    return kernel


def gelu(x: Any) -> Any:
    return tirx.FloatImm("float32", 0.5) * x * (vmath.erf(x * tirx.FloatImm("float32", 0.5**0.5)) + 1.0)


def float32_kernels() -> dict[str, Any]:
    kernels = {name: unary(name, function) for name, function in vmath.FUNCTIONS.items()}
    return {**kernels, "pow": binary("pow", vmath.pow), "gelu": unary("gelu", gelu)}


@pytest.fixture(scope="module")
def module() -> Any:
    return build(float32_kernels())


def run(module: Any, name: str, *arguments: torch.Tensor) -> torch.Tensor:
    """What the kernel makes of the arguments, which are padded to whole vectors."""
    size = len(arguments[0])
    padded = [torch.nn.functional.pad(x, (0, -size % LANES)) for x in arguments]
    out = torch.empty_like(padded[0])
    module[name](*map(tvm.runtime.from_dlpack, (*padded, out)))
    return out[:size]


def error_in_ulp(result: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """|result - exact| in units in the last place of a float32 near exact; infinity counts as 2^128."""
    value, exact = (x.double().clamp(-(2.0**128), 2.0**128) for x in (result, exact))
    _, exponent = torch.frexp(exact)
    unit = torch.ldexp(torch.ones_like(exact), (exponent - 24).clamp(-149, 104))
    error = (value - exact).abs() / unit
    return torch.where(value.isnan() & exact.isnan(), 0.0, error).nan_to_num(nan=INF)


def assert_same_special_values(result: torch.Tensor, exact: torch.Tensor) -> None:
    """Infinities, zeros and NaN stand where exact has them, and signs are the same (that of NaN aside)."""
    special = exact.isinf() | exact.isnan() | (exact == 0)
    torch.testing.assert_close(result[special].double(), exact[special], rtol=0, atol=0, equal_nan=True)
    number = ~exact.isnan()
    assert not result[number].isnan().any()
    assert torch.equal(result[number].signbit(), exact[number].signbit())


def test_bounds_keep_the_contract() -> None:
    assert set(vmath.MAX_ULP) == {*NAMES, "pow"}
    assert vmath.MAX_ULP["exp"] <= 2
    assert max(vmath.MAX_ULP.values()) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_error_is_within_bound(module: Any, name: str) -> None:
    exact = getattr(torch, name)(SWEEP.double())
    error = error_in_ulp(run(module, name, SWEEP), exact)
    assert error.max() <= vmath.MAX_ULP[name], f"at {SWEEP[error.argmax()]}"


@pytest.mark.parametrize("name", NAMES)
def test_error_is_within_bound_where_models_live(module: Any, name: str) -> None:
    x = torch.linspace(-20, 20, 2**19 + 1)
    error = error_in_ulp(run(module, name, x), getattr(torch, name)(x.double()))
    assert error.max() <= vmath.MAX_ULP[name], f"at {x[error.argmax()]}"


@pytest.mark.parametrize("name", NAMES)
def test_special_values(module: Any, name: str) -> None:
    exact = getattr(torch, name)(SPECIALS.double())
    result = run(module, name, SPECIALS)
    assert_same_special_values(result, exact)
    assert error_in_ulp(result, exact).max() <= vmath.MAX_ULP[name]


@pytest.mark.parametrize("name", ["tanh", "erf", "sin", "cos", "sigmoid"])
def test_range_is_kept(module: Any, name: str) -> None:
    assert run(module, name, SWEEP).nan_to_num().abs().max() <= 1


def test_weights_of_a_softmax() -> None:
    built = build({"exp_weight": unary("exp_weight", vmath.exp_weight)})
    for least, ulp in ((-1.0, 1.2), (-20.0, 1.7), (-87.33, 5.0)):
        x = torch.linspace(least, 0, 2**19)
        error = error_in_ulp(run(built, "exp_weight", x), x.double().exp())
        assert error.max() <= ulp, f"at {x[error.argmax()]}"
    x = torch.tensor([0.0, -0.0, -1e-40, -87.4, -88.0, -129.0 * 0.6931472, -1e4, -1e30, -MAX, -INF, NAN, -NAN])
    odd = torch.tensor([0x7FC00001, 0x7FC001FF, -1]).to(torch.int32).view(torch.float32)  # NaN with bits of their own
    result = run(built, "exp_weight", torch.cat([x, odd]))
    assert torch.equal(result[:10], torch.tensor([1.0] * 3 + [0.0] * 7))
    assert not result[:10].signbit().any()
    assert result[10:].isnan().all()


def test_sine_and_cosine_of_whole_positions(module: Any) -> None:
    positions = torch.arange(1_000_000, dtype=torch.float32)
    for name in ("sin", "cos"):
        error = error_in_ulp(run(module, name, positions), getattr(torch, name)(positions.double()))
        assert error.max() <= vmath.MAX_ULP[name]


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        (lambda n: torch.randn(n) * 10, lambda n: torch.randint(-40, 40, (n,)).float()),
        (lambda n: 1 + torch.randn(n) * 1e-4, lambda n: torch.randn(n) * 1e5),
        (lambda n: torch.exp(torch.randn(n) * 20), lambda n: torch.randn(n)),
        (lambda n: SWEEP[torch.randperm(n)], lambda n: SWEEP[torch.randperm(n)]),
    ],
    ids=["whole exponents", "near one", "wide", "all bits"],
)
def test_pow(module: Any, base: Callable[[int], torch.Tensor], exponent: Callable[[int], torch.Tensor]) -> None:
    x, y = base(2**18), exponent(2**18)
    result, exact = run(module, "pow", x, y), torch.pow(x.double(), y.double())
    assert_same_special_values(result, exact)
    assert error_in_ulp(result, exact).max() <= vmath.MAX_ULP["pow"]


def test_pow_special_values(module: Any) -> None:
    x, y = torch.cartesian_prod(SPECIALS, SPECIALS).T.contiguous()
    result, exact = run(module, "pow", x, y), torch.pow(x.double(), y.double())
    assert_same_special_values(result, exact)
    assert error_in_ulp(result, exact).max() <= vmath.MAX_ULP["pow"]


def test_gelu_by_erf_is_as_accurate_as_eager(module: Any) -> None:
    x = torch.randn(2**18) * 3
    exact = torch.nn.functional.gelu(x.double())
    error, eager = ((y.double() - exact).square().mean() for y in (run(module, "gelu", x), torch.nn.functional.gelu(x)))
    assert error <= 2 * eager


@pytest.mark.parametrize("cpu", ["haswell", "znver4"])
def test_x86_code_is_vectors_without_calls(cpu: str) -> None:
    if "x86_64" not in codegen.llvm_get_system_triple():
        pytest.skip("compiles for the host's architecture")
    built = build(float32_kernels(), cpu)
    llvm, assembly = built.inspect_source("ll"), built.inspect_source("asm")
    assert "@llvm.fma.v16f32" in llvm
    assert "@llvm.fma.f32" not in llvm
    callees = set(re.findall(r"^\s*callq?\s+([\w.]+)", assembly, re.MULTILINE))
    assert all(callee.startswith(("TVM", "__tvm", "memset")) for callee in callees), callees
    assert "gather" not in assembly
    assert assembly.count("zmm" if cpu == "znver4" else "ymm") > 1000
    scalar_arithmetic = r"^\s*v(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+|rndscale|round)s[sd]\s"
    assert not re.findall(scalar_arithmetic, assembly, re.MULTILINE)


@pytest.mark.parametrize("lanes", [4, 8, 24])
def test_any_number_of_lanes(lanes: int) -> None:
    x = torch.linspace(-3, 3, 24 * LANES)
    built = build({"exp": unary("exp", vmath.exp, lanes=lanes)})
    assert error_in_ulp(run(built, "exp", x), x.double().exp()).max() <= vmath.MAX_ULP["exp"]


def test_scalar_loop() -> None:
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((37,), "float32"), y: T.Buffer((37,), "float32")):
        for i in T.serial(37):
            y[i] = vmath.exp(x[i])

    x, y = torch.linspace(-3, 3, 37), torch.empty(37)
    build({"kernel": kernel})["kernel"](tvm.runtime.from_dlpack(x), tvm.runtime.from_dlpack(y))
    assert error_in_ulp(y, x.double().exp()).max() <= vmath.MAX_ULP["exp"]


def test_functions_nest() -> None:
    def nested(x: Any) -> Any:
        for function in (vmath.sigmoid, vmath.log1p, vmath.erf, vmath.tanh, vmath.exp, vmath.sin, vmath.expm1):
            x = function(x)
        return x

    x = torch.linspace(-3, 3, 4 * LANES)
    exact = x.double().sigmoid().log1p().erf().tanh().exp().sin().expm1()
    result = run(build({"nested": unary("nested", nested)}), "nested", x)
    torch.testing.assert_close(result.double(), exact, rtol=1e-6, atol=0)


def test_a_guarded_call_is_not_evaluated_elsewhere() -> None:
    guarded = unary("guarded", lambda x: tirx.if_then_else(x > tirx.FloatImm("float32", 0.0), vmath.log(x), x))
    x = torch.linspace(-3, 3, 4 * LANES)
    result = run(build({"guarded": guarded}), "guarded", x)
    torch.testing.assert_close(result, torch.where(x > 0, x.log(), x))


def test_a_build_with_another_pipeline_says_so() -> None:
    with pytest.raises(Exception, match="needs a pipeline that ends with"):
        tirx.build(tvm.IRModule({"exp": unary("exp", vmath.exp)}), target=target())


def test_float64_goes_to_libm() -> None:
    kernels = {name: unary(name, function, "float64") for name, function in vmath.FUNCTIONS.items()}
    built = build(kernels)
    x = torch.linspace(0.01, 3, 64, dtype=torch.float64)
    for name in NAMES:
        torch.testing.assert_close(run(built, name, x), getattr(torch, name)(x), rtol=1e-14, atol=0)


def test_other_dtypes_are_refused() -> None:
    half = tirx.Var("x", "float16")
    with pytest.raises(TypeError, match=r"exp takes float32 or float64, not .*float16"):
        vmath.exp(half)
    with pytest.raises(TypeError, match="pow takes"):
        vmath.pow(tirx.Var("x", "float32"), tirx.Var("y", "float64"))
