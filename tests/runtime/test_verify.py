"""`smelt.verify` by the numeric contract: what passes, what fails, and what the message says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.module import CompiledModule
from smelt.runtime.paths import MISS
from smelt.runtime.verify import compare


class Heads(nn.Module):
    """Two outputs by name and a counter in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits and their mean."""
        self.calls.add_(1)
        y = self.linear(x).relu()
        return {"logits": y, "mean": y.mean(-1)}


@pytest.fixture(scope="module")
def model() -> Heads:
    torch.manual_seed(0)
    return Heads().eval()


@pytest.fixture(scope="module")
def fast(model: Heads) -> CompiledModule:
    return smelt.compile(model)


def spoil(fast: CompiledModule, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Change every result of a compiled model."""
    (entry,) = fast.entries
    run = entry.run
    monkeypatch.setattr(fast._captures.paths, "run", lambda args, kwargs: MISS)  # the short way does not ask the entry
    monkeypatch.setattr(entry, "run", lambda leaves, sizes: change(run(leaves, sizes)))


def test_a_right_result_passes(fast: CompiledModule) -> None:
    result = smelt.verify(fast, torch.randn(4, 16))
    assert [output.path for output in result.outputs] == ["logits", "mean", "buffer calls"]
    assert all(output.passed for output in result.outputs)
    assert result.reference == "the model in float64"
    assert result.outputs[0].rmse is not None
    assert 0 < result.outputs[0].rmse < 1e-6
    assert result.to_dict()["outputs"][1]["shape"] == (4,)
    assert "logits float32[4, 16]: max abs" in str(result)


def test_arguments_and_buffers_are_left_as_they_were(fast: CompiledModule, model: Heads) -> None:
    x = torch.randn(4, 16)
    kept, calls = x.clone(), model.calls.clone()
    smelt.verify(fast, x=x)
    assert torch.equal(x, kept)
    assert torch.equal(model.calls, calls)


def test_the_worst_output_is_named(fast: CompiledModule, monkeypatch: pytest.MonkeyPatch) -> None:
    smelt.verify(fast, torch.randn(4, 16))
    spoil(fast, monkeypatch, lambda r: {"logits": r["logits"] + 1e-3, "mean": r["mean"] + 1.0})
    with pytest.raises(smelt.VerifyError, match=r"2 of 3 outputs.*the worst: mean float32"):
        smelt.verify(fast, torch.randn(4, 16))


def test_an_error_of_ours_within_the_model_stays_what_it_is() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise smelt.UnsupportedError("a compiled part is in training mode")

    with pytest.raises(smelt.UnsupportedError, match="training mode"):
        smelt.verify(smelt.compile(Model().eval()), torch.zeros(2))


def test_arguments_that_the_model_refuses(fast: CompiledModule) -> None:
    for args in (("a",), (), (torch.zeros(3, 5, 7),)):
        with pytest.raises(smelt.InputError, match="Heads itself refuses these arguments"):
            smelt.verify(fast, *args)


def test_a_changed_structure(fast: CompiledModule, monkeypatch: pytest.MonkeyPatch) -> None:
    smelt.verify(fast, torch.randn(4, 16))
    spoil(fast, monkeypatch, lambda r: {"logits": r["logits"]})
    with pytest.raises(smelt.VerifyError, match=r"another structure.*mean"):
        smelt.verify(fast, torch.randn(4, 16))


def test_a_nan_that_eager_does_not_have(fast: CompiledModule, monkeypatch: pytest.MonkeyPatch) -> None:
    smelt.verify(fast, torch.randn(4, 16))
    spoil(fast, monkeypatch, lambda r: r | {"mean": r["mean"] * float("nan")})
    with pytest.raises(smelt.VerifyError, match=r"worst: mean.*NaN at 4 places, in eager's at 0"):
        smelt.verify(fast, torch.randn(4, 16))


def test_a_forgotten_mutation(fast: CompiledModule, monkeypatch: pytest.MonkeyPatch, model: Heads) -> None:
    smelt.verify(fast, torch.randn(4, 16))
    spoil(fast, monkeypatch, lambda r: (model.calls.sub_(1), r)[1])
    with pytest.raises(smelt.VerifyError, match="buffer calls"):
        smelt.verify(fast, torch.randn(4, 16))


def test_a_model_that_does_not_widen_is_interpreted() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * torch.ones(4, dtype=torch.float32)).float().sin()

    result = smelt.verify(smelt.compile(Fixed().eval()), torch.randn(3, 4))
    assert result.reference == "the captured graph, interpreted in float64"
    assert result.outputs[0].rmse is not None


# --- the contract -----------------------------------------------------------------------------------------------------

EXACT = torch.linspace(-3, 3, 101, dtype=torch.float64)


def test_close_passes_without_a_reference() -> None:
    eager = EXACT.float()
    assert compare("y", eager * (1 + 1e-6), eager).passed
    assert not compare("y", eager * 1.001, eager).passed


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2), (torch.bfloat16, 3), (torch.float16, 3)])
def test_an_error_like_eagers_passes(dtype: torch.dtype, factor: int) -> None:
    error = 0.25 * torch.where(torch.arange(101) % 2 == 0, 1.0, -1.0)
    eager = (EXACT + error).to(dtype)
    assert compare("y", (EXACT - (factor - 0.1) * error).to(dtype), eager, EXACT).passed
    result = compare("y", (EXACT - (factor + 0.1) * error).to(dtype), eager, EXACT)
    assert result.fault is not None
    assert f"more than {factor} times eager's" in result.fault


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_special_values_stand_where_eagers_do(value: float) -> None:
    eager = torch.tensor([1.0, value, 3.0])
    assert compare("y", eager.clone(), eager).passed
    for other in ([value, 1.0, 3.0], [1.0, 2.0, 3.0], [1.0, -value if value == value else 0.0, 3.0]):
        assert not compare("y", torch.tensor(other), eager).passed


@pytest.mark.parametrize(
    ("ours", "eager", "fault"),
    [
        (torch.ones(2), torch.ones(3), "shape"),
        (torch.ones(2), torch.ones(2).double(), "dtype"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "1 of 2 values differ"),
        (torch.tensor([True]), torch.tensor([False]), "1 of 1 values differ"),
        (3, 4, "3, eager gives 4"),
        (1, True, "1, eager gives True"),
        (None, torch.ones(1), "None, eager gives"),
    ],
)
def test_what_is_no_number_is_equal(ours: Any, eager: Any, fault: str) -> None:
    found = compare("y", ours, eager).fault
    assert found is not None
    assert fault in found


@pytest.mark.parametrize("value", [None, "a", 3, float("nan"), torch.ones(0), torch.ones(2, dtype=torch.complex64)])
def test_equal_values_pass(value: Any) -> None:
    assert compare("y", value, value).passed
