"""Quantised models end to end: results, the report, verify, and errors no larger than ONNX Runtime's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.dynamo_backend import backend
from smelt.runtime.executable import Executable
from smelt.tools.zoo import ZOO

KINDS: tuple[Any, ...] = (
    "int8",
    "int4",
    "int8-dynamic",
    "fp8",
    "fp8-dynamic",
    smelt.Quantization("int4", 32, symmetric=False),
)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def mlp(width: int = 48) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.LayerNorm(width), nn.Linear(width, 70), nn.GELU(), nn.Linear(70, 33))
    return nn.Sequential(*layers).eval()


@each_kind
def test_results(kind: Any) -> None:
    model = mlp()
    fast = smelt.compile(model, quantize=kind)
    for rows in (1, 2, 33):
        x = torch.randn(rows, 48)
        result = smelt.verify(fast, x)
        assert result.worst is not None
        (moved,) = result.moved
        assert 0 < moved.rmse < (0.02 if "int8" in str(kind) else 0.15) * moved.size
    assert "quantisation moved result by" in str(result)


def test_a_model_of_the_zoo() -> None:
    model, args, kwargs = ZOO["llama-decode"].make(tiny=True)
    fast = smelt.compile(model, quantize="int8-dynamic")
    result = smelt.verify(fast, *args, **kwargs)
    assert {m.path for m in result.moved} >= {"result", "buffer keys_0"}
    (capture,) = fast.report().captures
    assert capture.quantization is not None
    assert len(capture.quantization.weights) == 9
    assert not capture.fallbacks


@pytest.mark.parametrize("kind", ["int4", "int8-dynamic", "fp8", "fp8-dynamic"])
def test_half_types(kind: Any) -> None:
    model = mlp().to(torch.bfloat16)
    fast = smelt.compile(model, quantize=kind, fallback="error")
    assert smelt.verify(fast, torch.randn(5, 48).to(torch.bfloat16)).outputs[0].dtype == "bfloat16"
    assert not fast.report().captures[0].fallbacks


def test_passes_and_programs_are_checked() -> None:
    fast = smelt.compile(mlp(), quantize="int4", check="passes")
    fast(torch.randn(2, 48))
    checks = fast.report().captures[0].checks
    assert checks is not None
    assert any("as was asked for" in reason for reason in checks.skipped)
    assert checks.checked > 5


# --- the report -------------------------------------------------------------------------------------------------------


def test_report() -> None:
    model = mlp()
    fast = smelt.compile(model, quantize=smelt.Quantization("int8", keep=("3",)))
    fast(torch.randn(2, 48))
    report = fast.report()
    found = report.captures[0].quantization
    assert found is not None
    assert [(w.name, w.shape, w.bits) for w in found.weights] == [("1", (70, 48), 8)]
    assert (found.bytes_before, found.bytes_after) == (70 * 48 * 4, 70 * 48 + 70 * 4)
    assert [(k.name, k.reason) for k in found.kept] == [("3.weight", 'asked for: keep="3"')]
    weight = model[1].weight.detach()  # type: ignore[index, union-attr]
    scale = weight.abs().amax(1, keepdim=True) / 127
    changed = (weight / scale).round() * scale - weight
    assert found.worst[0].error == pytest.approx(float(changed.norm() / weight.norm()), rel=1e-4)
    text = str(report)
    assert "1 weight: int8 weights, a scale for each row; 0.0134 MB before, 0.00364 MB after" in text
    assert 'as it was 3.weight [33, 70]: asked for: keep="3"' in text
    assert report.to_dict()["captures"][0]["quantization"]["weights"][0]["name"] == "1"


def test_traffic_counts_few_bits() -> None:
    sizes = {}
    for kind in (None, "int8"):
        fast = smelt.compile(nn.Linear(512, 480, bias=False).eval(), quantize=kind)  # type: ignore[arg-type]
        fast(torch.randn(1, 512))
        sizes[kind] = fast.report().bytes
    rest = 4 * (512 + 480)
    assert sizes == {None: 4 * 512 * 480 + rest, "int8": 512 * 480 + 4 * 480 + rest}


def test_only_few_bits_are_held() -> None:
    fast = smelt.compile(mlp(), quantize="int8")
    fast(torch.randn(2, 48))
    (entry,) = fast.entries
    packed = [t for t in entry.executable._packed.values() if t.ndim == 4]
    assert {t.dtype for t in packed} == {torch.int8}


# --- asking -----------------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    with pytest.raises(smelt.QuantizationError, match="int8-dynamic"):
        smelt.compile(mlp(), quantize="int3")  # type: ignore[arg-type]
    with pytest.raises(smelt.QuantizationError, match="no part of the model"):
        smelt.compile(mlp(), quantize=smelt.Quantization(keep=("lm_head",)))


def test_torch_compile() -> None:
    model, x = mlp(), torch.randn(3, 48)
    torch._dynamo.reset()
    options = {"quantize": "int8"}
    with torch.no_grad():
        y = torch.compile(model, backend=backend, options=options)(x)  # type: ignore[arg-type]
    assert torch.equal(y, smelt.compile(model, quantize="int8")(x))


def test_new_weights_are_quantised_anew() -> None:
    model = mlp()
    fast = smelt.compile(model, quantize="int4")
    x = torch.randn(3, 48)
    fast(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    fast.refresh()
    smelt.verify(fast, x)


def test_report_of_float8() -> None:
    model = mlp()
    fast = smelt.compile(model, quantize="fp8")
    fast(torch.randn(3, 48))
    report = fast.report().captures[0].quantization
    assert report is not None
    assert [(w.shape, w.bits) for w in report.weights] == [((70, 48), 8), ((33, 70), 8)]
    assert report.bytes_after == 70 * 48 + 33 * 70 + 4 * (70 + 33)
    weight = model[1].weight.detach()  # type: ignore[index, union-attr]
    scale = weight.abs().amax(1, keepdim=True) / 448
    changed = (weight / scale).to(torch.float8_e4m3fn).float() * scale - weight
    assert report.weights[0].error == pytest.approx(float(changed.norm() / weight.norm()), rel=1e-4)
    assert "2 weights: fp8 weights, a scale for each row" in str(fast.report())


def test_what_float8_is_multiplied_in_is_said() -> None:
    fast = smelt.compile(mlp(), quantize="fp8-dynamic")
    fast(torch.randn(3, 48))
    report = fast.report().captures[0].quantization
    assert report is not None
    assert "fp8 activations" in report.settings
    assert report.products.startswith("products of float8: 2 in float32, none in float8 here")
    assert "products of float8" in str(fast.report())
    assert "products of float8" in str(fast.explain())


@pytest.mark.parametrize("kind", ["int8-dynamic", "fp8-dynamic"])
def test_rows_with_infinities_and_nan(kind: Any) -> None:
    x = torch.randn(4, 48)
    x[1, 3], x[2, 4], x[3] = float("nan"), float("inf"), 0
    layer = nn.Linear(48, 16).eval()
    y = smelt.compile(layer, quantize=kind)(x)
    assert y[0].isfinite().all()
    assert y[1:3].isnan().all()
    assert torch.equal(y[3], layer.bias)


# --- what verify catches ----------------------------------------------------------------------------------------------


def _spoil(executable: Executable, dtype: torch.dtype) -> None:
    """Change one packed weight of a dtype: a kernel then reads something else than it should."""
    packed = next(t for t in executable._packed.values() if t.dtype == dtype and t.ndim == 4)
    other = packed[0, -2, :8].clone()
    packed[0, -1, :8] = other ^ 128 if dtype == torch.uint8 else other + 3  # of float8, the sign


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("int8", torch.int8),
        ("int4", torch.int32),
        ("int8-dynamic", torch.int8),
        ("fp8", torch.uint8),
        ("fp8-dynamic", torch.uint8),
    ],
)
def test_a_wrong_kernel_is_found(kind: Any, dtype: torch.dtype) -> None:
    fast = smelt.compile(mlp(), quantize=kind)
    x = torch.randn(3, 48)
    smelt.verify(fast, x)
    _spoil(fast.entries[0].executable, dtype)
    with pytest.raises(smelt.VerifyError, match="times eager's"):
        smelt.verify(fast, x)


def test_a_wrong_weight_before_quantising_is_found() -> None:
    fast = smelt.compile(mlp(), quantize="int8")
    x = torch.randn(3, 48)
    fast(x)
    executable = fast.entries[0].executable
    other = dict(executable.weights)
    other["1.weight"] = other["1.weight"] * 1.1
    executable.refresh(other)
    with pytest.raises(smelt.VerifyError, match="before its weights were quantised"):
        smelt.verify(fast, x)


# --- accuracy ---------------------------------------------------------------------------------------------------------


def _trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small classifier of points by their quadrants in a rotated plane, and points to try it on."""
    torch.manual_seed(0)
    mix = torch.randn(8, 64)

    def points(count: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, 8)
        label = (z[:, 0] > 0).long() + 2 * (z[:, 1] * z[:, 2] > 0).long()
        return z @ mix + 0.1 * torch.randn(count, 64), label

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        x, label = points(256)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimiser.step()
    return model.eval(), *points(1000)


def _onnx_dynamic(model: nn.Module, x: Tensor, folder: Path) -> Tensor:
    """The model as ONNX Runtime quantises it dynamically, one scale for each output."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    tools = pytest.importorskip("onnxruntime.quantization")
    helper, numpy = onnx.helper, onnx.numpy_helper
    nodes, weights, name = [], [], "x"
    for i, layer in enumerate(model):  # type: ignore[arg-type]
        if isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", [name], [f"y{i}"]))
        else:
            weights.append(numpy.from_array(layer.weight.detach().T.contiguous().numpy(), f"w{i}"))
            weights.append(numpy.from_array(layer.bias.detach().numpy(), f"b{i}"))
            nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"y{i}"]))
        name = f"y{i}"
    kind = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(n, kind, ["m", w]) for n, w in (("x", x.shape[1]), (name, 4))]
    made = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(made, folder / "plain.onnx")
    tools.quantize_dynamic(folder / "plain.onnx", folder / "int8.onnx", per_channel=True)
    session = runtime.InferenceSession(folder / "int8.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def test_accuracy_of_a_trained_model(tmp_path: Path) -> None:
    model, x, label = _trained()
    with torch.no_grad():
        exact = model(x)
    right = float((exact.argmax(1) == label).float().mean())
    assert right > 0.9
    error = {}
    for kind in ("int8", "int8-dynamic"):
        y = smelt.compile(copy.deepcopy(model), quantize=kind)(x)  # type: ignore[arg-type]
        error[kind] = float((y - exact).norm() / exact.norm())
        assert float((y.argmax(1) == label).float().mean()) > right - 0.005
    assert error["int8"] < error["int8-dynamic"] < 0.02
    theirs = _onnx_dynamic(model, x, tmp_path)
    assert error["int8-dynamic"] <= float((theirs - exact).norm() / exact.norm())
