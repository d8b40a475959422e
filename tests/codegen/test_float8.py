"""Every number of float8_e4m3fn, and every place where rounding to it changes, in registers of every width."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")

import smelt.codegen.triton
from smelt.codegen.tvm import float8
from smelt.codegen.tvm import module as tvm_module
from smelt.ir import ops
from smelt.ir.ops.quantize import float8_bits

COUNT = 256


WIDTHS = (1, 4, 8, 16, 32)


def _kernel(number: int, lanes: int, count: int, types: tuple[str, str], function: str) -> str:
    return f"""@T.prim_func(private=True, s_tir=True)
def k{number}(x_ptr: T.handle("{types[0]}"), y_ptr: T.handle("{types[1]}")) -> T.int32:
    T.attr(T.int32(0), "device_id", 0)
    T.attr(T.int32(0), "device_type", 1)
    x = T.decl_buffer(({count},), "{types[0]}", data=x_ptr)
    y = T.decl_buffer(({count},), "{types[1]}", data=y_ptr)
    for i in range(T.int64({count // lanes})):
        for v in {"T.vectorized" if lanes > 1 else "range"}(T.int64({lanes})):
            y[i * {lanes} + v] = {function}(x[i * {lanes} + v])
    return T.int32(0)
"""


def _built(count: int, types: tuple[str, str], function: str) -> Any:
    """Kernels that apply a function to so many numbers, one for each width."""
    texts = [_kernel(i, lanes, count, types, function) for i, lanes in enumerate(WIDTHS)]
    hosts = [tvm_module.Host(f"main{i}", (tvm_module.Call(f"k{i}", (0, 1)),), 2, ()) for i in range(len(WIDTHS))]
    return tvm_module.build(texts, hosts, tvm_module.host_cpu())


@pytest.mark.parametrize("flushed", [False, True], ids=["subnormal", "flushed"])
@pytest.mark.parametrize("known", [True, False], ids=["by halves", "by exponents"])
def test_every_number(known: bool, flushed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr(float8, "target_has", lambda feature: False)
    built = _built(COUNT, ("uint8", "float32"), "integers.float8_value")
    bits = torch.arange(COUNT, dtype=torch.uint8)
    expected = bits.view(torch.float8_e4m3fn).float()
    assert int(expected.isnan().sum()) == 2
    for i in range(len(WIDTHS)):
        y = torch.full((COUNT,), 7.0)
        torch.set_flush_denormal(flushed)
        try:
            built[f"main{i}"](torch.tensor([bits.data_ptr(), y.data_ptr()]), torch.tensor([0]))
        finally:
            torch.set_flush_denormal(False)
        number = ~expected.isnan()
        assert torch.equal(y[number].view(torch.int32), expected[number].view(torch.int32)), WIDTHS[i]
        assert y[~number].isnan().all()


def _edges() -> torch.Tensor:
    """The numbers of float8, what lies halfway between them, the floats beside those, and what is out of range."""
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halfway = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([numbers, halfway, torch.tensor([464.0, 480.0, 2.0**-126, 2.0**-149, 3e38])])
    beside = [torch.nextafter(near, torch.tensor(to)) for to in (-torch.inf, torch.inf)]
    whole = torch.cat([near, *beside, torch.tensor([torch.inf, torch.nan]), torch.randn(1000) * 100, torch.randn(500)])
    whole = torch.cat([whole, -whole])
    return torch.cat([whole, whole[: -len(whole) % 32]])


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """By PyTorch, within the range of float8."""
    clamped = x.clamp(-448, 448)
    return clamped.to(torch.float8_e4m3fn).view(torch.uint8)


@pytest.mark.parametrize("flushed", [False, True], ids=["subnormal", "flushed"])
def test_every_place_where_rounding_changes(flushed: bool) -> None:
    torch.manual_seed(0)
    x = _edges()
    expected = _nearest(x)
    assert torch.equal(ops.float8_of.evaluate(x), expected)
    built = _built(len(x), ("float32", "uint8"), "floats.float8_of")
    for i, lanes in enumerate(WIDTHS):
        y = torch.full((len(x),), 7, dtype=torch.uint8)
        torch.set_flush_denormal(flushed)
        try:
            built[f"main{i}"](torch.tensor([x.data_ptr(), y.data_ptr()]), torch.tensor([0]))
        finally:
            torch.set_flush_denormal(False)
        assert torch.equal(y, expected), lanes


def test_bits_are_those_of_the_nearest_number() -> None:
    x = torch.tensor([0.0, -0.0, 448.0, 1e9, -1e9, float("inf"), float("nan"), 2**-9, 2**-10, 1.5 * 2**-10, 17.0, 19.0])
    found = float8_bits(x).view(torch.float8_e4m3fn).float()
    assert found.tolist() == [0, 0, 448, 448, -448, 448, 0, 2**-9, 0, 2**-9, 16, 20]
    every = torch.arange(256, dtype=torch.uint8)
    number = ~every.view(torch.float8_e4m3fn).float().isnan()
    assert torch.equal(float8_bits(every.view(torch.float8_e4m3fn).float())[number], every[number])


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def _run_assembly(text: str, given: np.ndarray) -> list[np.ndarray]:
    """The two results of straight-line PTX on 32-bit registers."""
    held: dict[str, np.ndarray] = {"$2": given}

    def value(name: str) -> np.ndarray:
        return held[name] if name in held else np.full_like(given, int(name, 0))

    for line in text.replace("{", ";").replace("}", ";").split(";"):
        name, _, rest = line.strip().partition(" ")
        to, *names = (x.strip() for x in rest.split(","))
        if not name or name.startswith(".reg"):
            continue
        a, *more = map(value, names)
        match name:
            case "mov.b32":
                held[to] = a
            case "prmt.b32":
                parts = [a >> 8 * i & 255 for i in range(4)] + [more[0] >> 8 * i & 255 for i in range(4)]
                held[to] = sum(parts[int(more[1][0]) >> 4 * i & 7] << 8 * i for i in range(4))  # type: ignore[assignment]
            case "shr.b32":
                held[to] = a >> more[0]
            case "and.b32":
                held[to] = a & more[0]
            case "add.u32":
                held[to] = a + more[0]
            case "lop3.b32":
                assert int(more[2][0]) == 0xF8  # a | b & c
                held[to] = a | more[0] & more[1]
            case "mul.f16x2":
                product = a.view(np.float16) * more[0].view(np.float16)
                held[to] = product.view(np.uint32)
            case _:
                raise AssertionError(f"unknown: {line}")
    return [held["$0"], held["$1"]]


def test_assembly_of_gpus_on_every_number() -> None:
    pytest.importorskip("triton")
    source = Path(smelt.codegen.triton.__file__).with_name("device.py").read_text()
    (text,) = re.findall(r'def float8_half.*?inline_asm_elementwise\(\s*"""(.*?)"""', source, re.DOTALL)
    bits = np.arange(COUNT, dtype=np.uint8)
    first, second = _run_assembly(text, bits.view(np.uint32))
    found = np.stack([first, second], 1).view(np.float16).ravel()
    expected = torch.arange(COUNT, dtype=torch.uint8).view(torch.float8_e4m3fn).half().numpy()
    assert np.isnan(expected).sum() == 2
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.signbit(found[128])
