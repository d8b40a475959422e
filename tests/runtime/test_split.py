"""Models that Dynamo splits: what becomes of calls that it fails at."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

pytest.importorskip("tvm")

import smelt
from smelt.runtime.captures import Captures

from .dynamo import QUIET, fresh_dynamo

__all__ = ["fresh_dynamo"]
pytestmark = QUIET


def untraceable(x: Tensor) -> Tensor:
    """What eager does not come by, as transformers' masks of three axes that hide nothing."""
    return x.expand(2, 2, 2).sum(0) if torch.compiler.is_compiling() else x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, late: bool = False) -> Tensor:
        if mask is not None:
            x = untraceable(x)
        x = self.layer(x)
        if late:
            torch._dynamo.graph_break()
            x = untraceable(x)
        return x


@pytest.fixture
def model() -> Any:
    return Model().eval()


@torch.no_grad()
def test_a_call_that_dynamo_fails_at_runs_in_pytorch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once and for all calls of its kind; others are captured whole, before it and after it."""
    tried = []
    find = Captures.find

    def counted(self: Any, call: Any) -> Any:
        tried.append(call)
        return find(self, call)

    monkeypatch.setattr(Captures, "find", counted)
    fast = smelt.compile(model, cache=False)
    x = torch.randn(4, 8)
    with pytest.warns(UserWarning, match="Model is no one graph in such a call.* run in PyTorch"):
        found = fast(x, x > 0)
    assert torch.equal(found, model(x, x > 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (3, 5):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(fast(x), model(x))
            assert torch.equal(fast(x, x > 0), model(x, x > 0))
    assert len(tried) == 3
    assert not fast.is_split
    assert len(fast.entries) == 1
    assert fast.entries[0].executable.fallbacks == ()


@torch.no_grad()
def test_the_report_of_a_model_that_dynamo_fails_at(model: Any) -> None:
    """It said that the model was not called yet."""
    fast = smelt.compile(model, cache=False)
    with pytest.raises(smelt.CaptureError, match="call it once"):
        fast.report()
    x = torch.randn(3, 8)
    with pytest.warns(UserWarning, match="run in PyTorch"):
        fast(x, x > 0)
    assert "all of it runs in PyTorch: Model is no one graph in such a call" in " ".join(str(fast.report()).split())


class OfPacked(nn.Module):
    """A recurrent layer of packed sequences; ``inside`` is whether it packs them itself."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.LSTM(8, 16, 2, bidirectional=True)
        self.inside = inside

    def forward(self, x: Any, lengths: Tensor | None = None) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False) if self.inside else x
        return pad_packed_sequence(self.layer(packed)[0])[0]


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[5], [4, 2, 3]])
def test_packed_sequences(lengths: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    """One as an argument raised an AttributeError of PyTorch's, and its half-made graph was printed."""
    x, known = torch.randn(5, len(lengths), 8), torch.tensor(lengths)
    packed: PackedSequence = pack_padded_sequence(x, known, enforce_sorted=False)
    for inside, call in ((True, (x, known)), (False, (packed,))):
        model = OfPacked(inside).eval()
        fast = smelt.compile(model, cache=False)
        for _ in range(2):
            torch.testing.assert_close(fast(*call), model(*call), rtol=0, atol=0)
        assert fast.is_split
    assert "all of it runs in PyTorch" in " ".join(str(fast.report()).split())
    assert "def forward" not in capfd.readouterr().err


@torch.no_grad()
def test_a_part_that_dynamo_fails_at(model: Any) -> None:
    """What ran before it is not run again."""
    fast = smelt.compile(model, cache=False)
    with pytest.raises(smelt.CaptureError, match=r"failed at a part of it after others had run.*\n.*\.original"):
        fast(torch.randn(3, 8), late=True)


@torch.no_grad()
def test_hooks_may_have_run(model: Any) -> None:
    ran = []
    model.register_forward_pre_hook(lambda module, args: ran.append(1))
    x = torch.randn(3, 8)
    with pytest.raises(smelt.CaptureError, match="after others had run"):
        smelt.compile(model, cache=False)(x, x > 0)


@torch.no_grad()
def test_what_eager_refuses_too_is_eagers_error(model: Any) -> None:
    fast = smelt.compile(model, cache=False)
    x = torch.randn(3, 8)
    with pytest.warns(UserWarning, match="run in PyTorch"):
        fast(x, x > 0)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(torch.randn(3, 7), torch.randn(3, 7) > 0)
