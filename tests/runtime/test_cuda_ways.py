"""What a GPU as target means around a call: dtypes, verification, checks, torch.compile, typed errors."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.captures import check_model
from smelt.runtime.dynamo_backend import target_of
from smelt.runtime.tensors import check_tensor

from .fake_gpu import TARGET, FakeGpu, executable_of, playing


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with playing() as played:
        yield played


class Block(nn.Module):
    """A norm, a gated product, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.silu(self.gate(self.norm(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_verify_holds_launched_and_replayed_calls_to_the_contract(gpu: FakeGpu, dtype: torch.dtype) -> None:
    fast = smelt.compile(Block().eval().to(dtype), target=TARGET)
    x = torch.randn(5, 32, dtype=dtype)
    for _ in range(4):
        result = smelt.verify(fast, x)
        assert result.worst is not None
        assert result.worst.passed
    assert executable_of(fast).graph_report().replays
    assert fast(x).dtype == dtype


def test_checks_hold_for_its_plan_too(gpu: FakeGpu) -> None:
    fast = smelt.compile(Block().eval(), target=TARGET, check="passes")
    fast(torch.randn(5, 32))
    checks = fast.report().captures[0].checks
    assert checks is not None
    assert checks.checked


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_read_weights_as_they_are(gpu: FakeGpu, kind: Any) -> None:
    model = kind(8, 16, num_layers=2, batch_first=True).eval()
    fast = smelt.compile(model, target=TARGET)
    x = torch.randn(3, 5, 8)
    for _ in range(4):
        smelt.verify(fast, x)
    assert not fast.report().captures[0].fallbacks
    assert executable_of(fast).graph_report().replays


@pytest.mark.parametrize("quantize", ["int8", "int4", "fp8"])
def test_weights_in_few_bits(gpu: FakeGpu, quantize: Any) -> None:
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 128)).eval()
    fast = smelt.compile(model, target=TARGET, quantize=quantize)
    x = torch.randn(5, 128)
    for _ in range(4):
        assert smelt.verify(fast, x).worst is not None
    report = fast.report()
    assert report.captures[0].quantization is not None
    assert not report.captures[0].fallbacks


def test_torch_compile(gpu: FakeGpu) -> None:
    model = Block().eval()
    torch._dynamo.reset()
    fast = torch.compile(model, backend="smelt", options={"target": TARGET})
    x = torch.randn(5, 32)
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(fast(x), model(x))
    assert "replay" in gpu.log
    torch._dynamo.reset()


def test_torch_compile_takes_the_device_of_its_inputs() -> None:
    there: Any = SimpleNamespace(device=torch.device("cuda", 1))
    inputs = [3, torch.zeros(1), there]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smelt.runtime.dynamo_backend.Tensor", (Tensor, SimpleNamespace))
        assert target_of("auto", inputs) == target_of("cuda", inputs) == "cuda:1"
        assert target_of("cpu", inputs) == "cpu"
        assert target_of("cuda:0", inputs) == "cuda:0"
        assert target_of("auto", inputs[:2]) == "auto"


# --- typed errors -------------------------------------------------------------------------------------------------


def test_weights_and_arguments_elsewhere() -> None:
    device = torch.device("cuda", 0)
    with pytest.raises(smelt.UnsupportedError, match=r'weight of it is on the device cpu, .* for cuda:0: .*"cuda:0"'):
        check_model(nn.Linear(2, 2).eval(), "it", device)
    with pytest.raises(
        smelt.InputError, match=r'argument x is on the device cpu, the model runs on cuda:0: .*"cuda:0"'
    ):
        check_tensor("x", torch.zeros(2), device)
    check_tensor("x", torch.tensor(2.0), device)  # a number goes with any device
    with pytest.raises(smelt.InputError, match="has no values"):
        check_tensor("x", torch.zeros(2, device="meta"), device)


def test_autocast_of_the_device_is_refused(gpu: FakeGpu) -> None:
    fast = smelt.compile(Block().eval(), target=TARGET)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(smelt.UnsupportedError, match="autocast"):
        fast(torch.randn(5, 32))


def test_what_is_for_cpus_only(gpu: FakeGpu) -> None:
    model, x = Block().eval(), torch.randn(5, 32)
    with pytest.raises(smelt.UnsupportedError, match="kernels for GPUs are not tuned yet"):
        smelt.compile(model, target=TARGET, tune="full")
    fast = smelt.compile(model, target=TARGET)
    fast(x)
    with pytest.raises(smelt.UnsupportedError, match="there is no GPU here"):
        fast.explain((x,), measure=True)
    fast.synchronize()
    on_cpu = smelt.compile(model, target="cpu")
    on_cpu(x)
    on_cpu.synchronize()
    assert on_cpu.report().captures[0].graphs is None


def test_state_on_the_cpu_that_calls_change_is_refused() -> None:
    class Elsewhere(FakeGpu):
        device = torch.device("meta")

    class Counting(Block):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return super().forward(x)

    with playing(Elsewhere()), pytest.raises(smelt.UnsupportedError, match="calls change count, which is on cpu"):
        smelt.compile(Counting().eval(), target=TARGET)(torch.randn(5, 32))
