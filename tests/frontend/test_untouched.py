"""A model is as it was after it was captured, whatever its forward keeps on itself."""

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn

import smelt
from smelt.frontend.export import capture
from smelt.ir.errors import CaptureError


class Keeping(nn.Module):
    """Keeps a tensor that it computes once, as transformers' rotary embeddings of long contexts do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))
        self.calls: list[object] = []
        self.last: object = None

    def forward(self, x: Tensor) -> Tensor:
        large = getattr(self, "large", None)
        if large is None:
            large = torch.arange(3.0) + 2
        self.large = large
        self.calls.append(x)
        self.last = x.sum()
        assert isinstance(self.scale, Tensor)
        self.scale.copy_(torch.where(x.max() > 1, large, torch.ones(3)))
        return x * self.scale


def test_attributes_are_put_back() -> None:
    model = Keeping().eval()
    names, scale = set(vars(model)), model.scale
    with suppress(CaptureError):  # as PyTorch takes it
        capture(model, (torch.rand(2, 3),), {})
    assert set(vars(model)) == names
    assert (model.calls, model.last) == ([], None)
    assert model.scale is scale
    copy.deepcopy(model)


def test_eager_computes_the_same_after_a_capture() -> None:
    model, reference = Keeping().eval(), Keeping().eval()
    fast = smelt.compile(model)
    for x in (torch.rand(2, 3), torch.rand(4, 3) + 1):
        assert torch.equal(fast(x), reference(x))
        assert torch.equal(model(x), reference(x))


def test_attributes_are_put_back_where_a_model_cannot_be_captured() -> None:
    class Branching(Keeping):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            return found if found.sum() > 0 else -found

    model, reference = Branching().eval(), Branching().eval()
    fast = smelt.compile(model)
    x = torch.rand(2, 3) + 1
    assert torch.equal(fast(x), reference(x))
    assert torch.equal(model(x), reference(x))
