"""Where a guard comes from: it names the dim, the module and the line of the model."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.frontend.capture import Capture
from smelt.frontend.export import capture
from smelt.runtime.entry import Entry, Mismatch


class Inner(nn.Module):
    """Asks for a length of at least 3, an even width, and as many rows in both."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The sum of the two halves, where the mask is not 0."""
        if x.shape[1] > 3:  # the line of the range
            x = x * 2
        return (x * mask).relu()  # the line of the equality


class Fixed(nn.Module):
    """Takes the last axis for 4."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        """A product."""
        return x * self.weight  # the line of the size


class Model(nn.Module):
    """Two parts, one of them deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Fixed(), Inner()])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """One after the other."""
        return self.parts[1](self.parts[0](x), mask)


def line(text: str) -> str:
    """``test_places.py:N`` of the line that ends in a comment."""
    with open(__file__, encoding="utf-8") as file:
        (number,) = (i for i, row in enumerate(file, 1) if row.rstrip().endswith(f"# {text}"))
    return f"test_places.py:{number}"


def refusal(captured: Capture, *shapes: tuple[int, ...]) -> str:
    """Why a capture is not for a call with tensors of these shapes."""
    entry: Any = Entry.__new__(Entry)
    entry.capture = captured
    entry._arrange()
    with pytest.raises(Mismatch) as raised:
        entry.match(captured.in_spec, [torch.empty(shape) for shape in shapes])
    return str(raised.value)


@pytest.fixture(scope="module")
def captured() -> Capture:
    return capture(Model().eval(), (torch.randn(2, 5, 4), torch.randn(2, 5, 4)))


def test_a_size_that_a_weight_fixes(captured: Capture) -> None:
    text = refusal(captured, (2, 5, 3), (2, 5, 3))
    assert text == f"input 'x': dim 2 is 3, the graph takes 4 ({line('the line of the size')} in parts.0)"
    assert f"x: axis 2 is always 4 ({line('the line of the size')} in parts.0)" in map(str, captured.specialised)


def test_a_range(captured: Capture) -> None:
    text = refusal(captured, (2, 3, 4), (2, 3, 4))
    assert re.match(r"input 'x': dim 1 is 3, out of range: s\d in \[4, inf\]", text)
    assert f"{line('the line of the range')} in parts.1" in text


def test_sizes_that_are_one(captured: Capture) -> None:
    text = refusal(captured, (2, 5, 4), (2, 6, 4))
    assert re.match(r"input 'mask': dim 1 is 6, but s\d is 5 elsewhere", text)
    assert f"{line('the line of the equality')} in parts.1" in text


def test_a_relation() -> None:
    class Folded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] * x.shape[1] > 12:
                x = x + 1
            return x

    model = nn.Sequential(nn.ReLU(), Folded()).eval()
    text = refusal(capture(model, (torch.randn(4, 5),)), (2, 3))
    held = r"does not hold for s0 = 2 \(input: dim 0\), s1 = 3 \(input: dim 1\)$"
    assert re.search(rf"the guard .* \(test_places\.py:\d+ in 1\) {held}", text)


def test_a_compiled_module_says_why_it_was_captured_again() -> None:
    fast = smelt.compile(Model().eval())
    fast(torch.randn(2, 5, 4), torch.randn(2, 5, 4))
    assert fast.recaptured == ()
    fast(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    (why,) = fast.recaptured
    assert f"{line('the line of the range')} in parts.1" in why


def test_graphs_of_dynamo_have_their_sizes_by_name() -> None:
    from smelt.frontend.dynamo import lower_fx

    found: list[Capture] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(lower_fx(gm, inputs))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(Model().eval(), backend=backend, dynamic=True)(torch.randn(2, 5, 4), torch.randn(2, 5, 4))
    torch._dynamo.reset()
    reasons = " ".join(reason.where for reason in found[0].reasons)
    assert "the size that is named s" in reasons
