"""Sizes whose formulas are too long to be kept symbolic: only those of first axes are."""

import sympy
import torch
from torch import Tensor, nn

from smelt.frontend.complexity import MOST_PARTS, is_too_long
from smelt.frontend.export import capture
from smelt.ir.interpret import interpret


class Windows(nn.Module):
    """Stages that pad to whole windows, cut into them, put them together again, and halve, as Swin's do."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            batch, height, width = x.shape
            x = nn.functional.pad(x, (0, (7 - width % 7) % 7, 0, (7 - height % 7) % 7))
            rows, columns = x.shape[1] // 7, x.shape[2] // 7
            windows = x.view(batch, rows, 7, columns, 7).transpose(2, 3).reshape(-1, 7, 7)
            windows = windows.softmax(-1)
            x = windows.view(-1, rows, columns, 7, 7).transpose(2, 3).reshape(batch, rows * 7, columns * 7)
            x = x[:, :height, :width]
            x = x[:, ::2] + x[:, 1::2] if height % 2 == 0 else x
            x = x[:, :, ::2] + x[:, :, 1::2] if width % 2 == 0 else x
        return x


def test_only_first_axes_are_symbolic() -> None:
    model, x = Windows().eval(), torch.randn(2, 96, 80)
    found = capture(model, (x,))
    assert [str(d) for d in found.graph.inputs[0].shape[1:]] == ["96", "80"]
    assert "all sizes fixed but for the first axes: its sizes are formulas" in found.notes[0]
    assert "test_complexity.py" in found.notes[0]
    other = torch.randn(5, 96, 80)
    torch.testing.assert_close(interpret(found.graph, [other], found.weights).outputs[0], model(other))


def test_long_formulas() -> None:
    a = sympy.Symbol("a")
    assert not is_too_long(sympy.Eq(a, 3))
    assert not is_too_long(True)
    assert is_too_long(sympy.Add(*(sympy.Symbol(f"s{i}") for i in range(MOST_PARTS + 1))))
