"""Weights that are others joined: packed from their parts, made when they are asked for."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm")

import smelt
from smelt.runtime.executable import Executable
from smelt.runtime.weights import Values


class Merged(nn.Module):
    """Three linear layers of one input; two of them become one product, on their weights joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(32, 40), nn.Linear(32, 40), nn.Linear(32, 56)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).T, -1) @ self.v(x)


def _compiled() -> tuple[smelt.CompiledModule, Executable]:
    fast = smelt.compile(Merged().eval())
    fast(torch.randn(50, 32))
    return fast, fast.entries[0].executable


def _joined(executable: Executable) -> list[str]:
    values = executable.values
    assert isinstance(values, Values)
    return [name for name in values if values.is_joined(name)]


def test_results_and_values() -> None:
    fast, executable = _compiled()
    (name,) = _joined(executable)
    model = fast.original
    assert isinstance(model, Merged)
    parts = [executable.weights[str(part.attrs["name"])] for part in executable.derived[name].inputs]
    assert [len(part) for part in parts] == [40, 40]  # no multiple of a panel's columns
    assert torch.equal(executable.values[name], torch.cat(parts))
    assert len(executable.values) == len(list(executable.values))
    with torch.no_grad():
        for rows in (50, 3):
            x = torch.randn(rows, 32)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_nothing_holds_the_joined_weight() -> None:
    _, executable = _compiled()
    (name,) = _joined(executable)
    sizes = [executable._packed[b.position].numel() for b in executable.plan.buffers if b.name == name]
    assert sorted(sizes)[0] == 1
    assert len(sizes) == 2


def test_weights_that_change() -> None:
    fast, _ = _compiled()
    model = fast.original
    assert isinstance(model, Merged)
    with torch.no_grad():
        model.k.weight.mul_(2)
        fast.refresh()
        x = torch.randn(5, 32)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_joined_weight_that_is_read_as_it_is() -> None:
    """Nothing says that a buffer is unread where a plan does not know: it is computed and kept."""
    _, executable = _compiled()
    (name,) = _joined(executable)
    executable.plan.unread = frozenset()
    executable.refresh(executable.weights)
    assert _joined(executable) == []
    (home,) = (b for b in executable.plan.buffers if b.name == name and b.packing is None)
    assert torch.equal(executable._packed[home.position], executable.values[name])


class Patches(nn.Module):
    """An image as rows of patches, by a convolution whose patches lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = nn.Conv2d(3, 130, 8, 8)

    def forward(self, image: Tensor) -> Tensor:
        patches: Tensor = self.projection(image)
        return patches.flatten(2).transpose(1, 2)


def test_a_filter_is_packed_as_a_matrix_and_kept_once() -> None:
    model = Patches().eval()
    fast = smelt.compile(model)
    with torch.no_grad():
        for batch, size in ((1, 64), (2, 64), (3, 40)):
            image = torch.randn(batch, 3, size, size)
            torch.testing.assert_close(fast(image), model(image), rtol=1e-4, atol=1e-5)
        executable = fast.entries[0].executable
        (name,) = _joined(executable)
        values = executable.values
        assert isinstance(values, Values)
        (part,) = values.parts(name)
        assert part.data_ptr() == model.projection.weight.data_ptr()
        model.projection.weight.mul_(2)
        fast.refresh()
        torch.testing.assert_close(fast(image), model(image), rtol=1e-4, atol=1e-5)
