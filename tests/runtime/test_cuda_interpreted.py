"""``target="cuda"`` from a call to its result, kernels interpreted by Triton on the CPU. No GPU is needed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import smelt
from smelt.tools.zoo import ZOO

pytest.importorskip("triton")

from ..codegen.interpreter import workers


class Tokens(nn.Module):
    """An embedding, so that an index may be out of range, a norm and products."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(11, 16), nn.Linear(16, 16)
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        return self.last(h + torch.relu(self.first(self.norm(h))))  # type: ignore[no-any-return]


def errors_of(name: str, calls: int) -> tuple[list[float], str]:
    """How far results and written arguments are from eager's in some calls, and the report."""
    torch.manual_seed(0)
    model, args, kwargs = ZOO[name].make(tiny=True)
    eager, fast = copy.deepcopy(model), smelt.compile(model, target="cuda")
    ours, theirs = copy.deepcopy(args), copy.deepcopy(args)
    found = []
    with torch.no_grad():
        for _ in range(calls):
            pairs = zip(
                pytree.tree_leaves((fast(*ours, **kwargs), ours)),
                pytree.tree_leaves((eager(*theirs, **kwargs), theirs)),
                strict=True,
            )
            found.append(max((_distance(*pair) for pair in pairs), default=0.0))
    return found, str(fast.report())


def _distance(ours: Any, theirs: Any) -> float:
    if not isinstance(ours, Tensor) or not ours.numel():
        return 0.0
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1))


@pytest.mark.parametrize("name", ["two-layer-mlp", "llama-decode"])
def test_a_model_and_its_replays(name: str) -> None:
    found, report = workers().submit(errors_of, name, 4).result()
    assert max(found) < 2e-6
    assert "interpreted on the CPU" in report
    assert "2 calls replayed, 2 launched" in " ".join(report.split())


def indices_out_of_range() -> list[str]:
    """What becomes of calls with an index out of range, launched and replayed."""
    model = Tokens().eval()
    fast = smelt.compile(model, target="cuda")
    good, bad = torch.randint(0, 11, (2, 5)), torch.full((2, 5), 99)
    told = []

    def call(tokens: Tensor) -> Tensor | None:
        try:
            return fast(tokens)  # type: ignore[no-any-return]
        except IndexError as error:
            told.append(str(error))
            return None

    assert call(bad) is None
    for _ in range(3):
        first = call(good)
    assert first is not None
    invalid = call(bad)
    assert invalid is not None
    assert invalid.isnan().all()
    assert call(good) is None
    again = call(good)
    assert again is not None
    torch.testing.assert_close(again, model(good))
    torch.testing.assert_close(first, model(good))  # which no replay has overwritten
    call(bad)
    try:
        fast.synchronize()
    except IndexError as error:
        told.append(str(error))
    return told


def test_indices_out_of_range() -> None:
    launched, replayed, waited = workers().submit(indices_out_of_range).result()
    assert "earlier" not in launched
    assert "in an earlier call, the results of which are NaN" in replayed
    assert waited == replayed
