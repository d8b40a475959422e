"""Pooling: windows of the largest or of the mean, against PyTorch, without fallbacks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smelt.frontend.export import capture
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def fallbacks(graph: Graph) -> list[str]:
    return [str(node.attrs["target"]) for node in graph.nodes if node.is_a(ops.aten_call)]


def check(function: Callable[[Tensor], Tensor], *inputs: Tensor) -> None:
    """Captured with the first input; evaluated with all of them."""
    model = Of(function).eval()
    found = capture(model, (inputs[0],))
    assert not fallbacks(found.graph)
    for x in inputs:
        ours = interpret(found.graph, [x], found.weights).outputs[0]
        torch.testing.assert_close(ours, model(x), equal_nan=True)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


LARGEST: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)},
]


@pytest.mark.parametrize("how", LARGEST)
def test_the_largest(how: dict[str, Any]) -> None:
    """Sizes are symbolic; NaN is the largest number, and what is past the ends is never chosen."""
    x = image(2, 3, 11, 14) - 9
    x[0, 0, 4, 5] = float("nan")
    x[1, 1] = -float("inf")
    check(lambda x: F.max_pool2d(x, **how), x, image(3, 3, 17, 20))


REACHING: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    lambda x: F.avg_pool2d(x, (2, 1), stride=(2, 1), ceil_mode=True),
    lambda x: F.avg_pool2d(x, 4, stride=3, padding=1, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 4, stride=3, padding=1, ceil_mode=True, count_include_pad=False),
    lambda x: F.avg_pool2d(x, 3, stride=2, ceil_mode=True, divisor_override=2),
]


@pytest.mark.parametrize("width", [9, 10, 11, 12])
@pytest.mark.parametrize("pooled", REACHING)
def test_a_last_window_that_reaches_further(pooled: Callable[[Tensor], Tensor], width: int) -> None:
    found = capture(Of(pooled).eval(), (image(2, 3, width, 8),), dynamic=False)
    assert not fallbacks(found.graph)
    x = image(2, 3, width, 8)
    torch.testing.assert_close(interpret(found.graph, [x], {}).outputs[0], pooled(x))


MEANS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False},
    {"kernel_size": (2, 3), "stride": (2, 1), "divisor_override": 5},
]


@pytest.mark.parametrize("how", MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean(how: dict[str, Any], dtype: torch.dtype) -> None:
    check(lambda x: F.avg_pool2d(x, **how), image(2, 3, 11, 14, dtype=dtype), image(3, 3, 17, 21, dtype=dtype))


def test_one_axis_and_three() -> None:
    check(lambda x: F.max_pool1d(x, 3, stride=2), image(2, 3, 11))  # a length that PyTorch fixes
    check(lambda x: F.avg_pool1d(x, 4), image(2, 3, 11), image(1, 3, 18))
    check(lambda x: F.avg_pool3d(F.max_pool3d(x, 2), 2), image(2, 3, 8, 9, 12))


def test_one_mean_of_all_is_of_any_size() -> None:
    check(lambda x: F.adaptive_avg_pool2d(x, 1), image(2, 3, 11, 14), image(3, 3, 5, 6))
    check(lambda x: F.adaptive_avg_pool1d(x, 1), image(2, 3, 11), image(1, 3, 18))


@pytest.mark.parametrize("cells", [(5, 7), (4, 3), (None, 2), (16, 20), 0, (3, 0)])
def test_windows_that_share_out_the_input(cells: Any) -> None:
    """As many as divide the input, and not; also more than there are elements."""
    x = image(2, 3, 10, 14)

    def pooled(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, cells)

    found = capture(Of(pooled).eval(), (x,), dynamic=False)
    assert not fallbacks(found.graph)
    torch.testing.assert_close(interpret(found.graph, [x], {}).outputs[0], pooled(x))
