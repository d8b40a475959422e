"""How peers of a benchmark are called, and what is made of their results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from smelt.tools.bench import peers
from smelt.tools.bench.peers import PeerError, check, prepare
from smelt.tools.models import load_model


@pytest.mark.parametrize(("name", "grad"), [("smelt", False), ("eager", False), ("onnxruntime", True)])
def test_what_runs_in_pytorch_is_called_within_no_grad(name: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(*_: Any) -> Any:
        return torch.is_grad_enabled

    monkeypatch.setattr(peers, "PEERS", {name: peer})
    assert prepare(name, load_model("zoo:two-layer-mlp:tiny"), torch.get_num_threads())() is grad


def test_arrays_are_held_to_tensors() -> None:
    expected = (torch.arange(4.0), {"n": torch.tensor([2])})
    found = [np.arange(4, dtype=np.float32), np.array([2])]
    assert check("peer", found, expected) == 0
    with pytest.raises(PeerError, match="wrong by"):
        check("peer", [found[0] + 1, found[1]], expected)
    with pytest.raises(PeerError, match="1 tensors in place of 2"):
        check("peer", found[:1], expected)
