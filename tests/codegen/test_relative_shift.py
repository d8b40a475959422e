"""Relative positions, shifted row by row by reshapes, as Transformer-XL and XLNet do: read where they lie."""

import pytest
import sympy
import torch
from torch import Tensor, nn

from smelt.codegen.indexing import rejoined
from smelt.rewrites.rules.common import within

pytest.importorskip("tvm")

import smelt

S = sympy.Symbol("s", integer=True, nonnegative=True)
T = sympy.Symbol("t", integer=True, nonnegative=True)
ROW, COLUMN = sympy.symbols("i j", integer=True, nonnegative=True)


@pytest.mark.parametrize(
    ("end", "size", "holds"),
    [
        (S, 2 * S - 1, True),
        (S, 3 * S - 1, True),
        (S, S + T, True),
        (3, 7, True),
        (S, 2 * S - 2, False),  # s = 1
        (S + 1, 2 * S - 1, False),  # s = 1
        (S, 2 * T - 1, False),
        (3, 2 * S - 1, False),
        (S + 1, 3 * S - 2, False),  # s = 1
    ],
)
def test_ends_within_an_axis(end: object, size: object, holds: bool) -> None:
    assert within(end, size) == holds  # type: ignore[arg-type]


def test_quotients_and_remainders_are_put_together() -> None:
    difference = COLUMN - ROW
    again = S * sympy.floor(difference / S) + sympy.Mod(difference, S)
    assert sympy.expand(rejoined(2 * ROW * S + S + again) - (2 * ROW * S + S + difference)) == 0
    assert sympy.expand(rejoined(3 * again) - 3 * difference) == 0


@pytest.mark.parametrize(
    "index",
    [
        S * sympy.floor((COLUMN - ROW) / S) + sympy.Mod(COLUMN + ROW, S),
        T * sympy.floor((COLUMN - ROW) / S) + sympy.Mod(COLUMN - ROW, S),
        sympy.Mod(COLUMN - ROW, S),
    ],
)
def test_others_stay(index: sympy.Expr) -> None:
    assert rejoined(index) == index


class Shifted(nn.Module):
    """Scores [B, H, S, S] of queries with keys and with relative positions, as weights."""

    def forward(self, content: Tensor, positions: Tensor) -> Tensor:
        batch, heads, count, twice = positions.shape
        x = positions.reshape(batch, heads, twice, count)[:, :, 1:].reshape(batch, heads, count, twice - 1)
        x = torch.index_select(x, 3, torch.arange(content.shape[3]))
        return torch.softmax((content + x) * 0.125, dim=-1)


def test_the_shift_is_no_gather() -> None:
    fast = smelt.compile(Shifted().eval())
    for batch, count in ((2, 7), (1, 33), (3, 2)):
        smelt.verify(fast, torch.randn(batch, 4, count, count), torch.randn(batch, 4, count, 2 * count))
    text = fast.ir(stage="kernels")
    assert "gather" not in text
    assert "Mod(" not in text
    assert "//" not in text


class Heads(nn.Module):
    """Projections by einsum with weights of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(16, 2, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("ibh,hnd->ibnd", x, self.q), torch.einsum("ibh,hnd->ibnd", x, self.k)


def test_projections_by_einsum_are_linear_layers() -> None:
    """Which are packed, merged and quantised as others are."""
    x = torch.randn(5, 2, 16)
    fast = smelt.compile(Heads().eval())
    smelt.verify(fast, x)
    (capture,) = fast.report().captures
    assert {kernel.operators for kernel in capture.kernels} == {("linear",)}
    quantised = smelt.compile(Heads().eval(), quantize="int8")
    smelt.verify(quantised, x)
    found = quantised.report().captures[0].quantization
    assert found is not None
    assert len(found.weights) == 2
