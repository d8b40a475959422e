"""Equal layers are traced twice however many there are, and the graph is what tracing all of them gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smelt.frontend import repeats
from smelt.frontend.capture import Capture
from smelt.frontend.export import capture
from smelt.ir.interpret import interpret

LAYERS = 6
X = torch.randn(3, 8)
TRACED: list[nn.Module] = []  # the layers whose Python ran


class Layer(nn.Module):
    """A layer that counts its traces; ``index`` differs and is not read."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.register_buffer("scale", torch.tensor(float(index)))

    def forward(self, x: Tensor) -> Any:
        TRACED.append(self)
        return self.body(x)

    def body(self, x: Tensor) -> Any:
        return x + self.scale * torch.relu(self.linear(self.norm(x)))


class Model(nn.Module):
    """Layers, one after the other, behind one that tells PyTorch how wide they are."""

    def __init__(self, make: Callable[[int], nn.Module], count: int = LAYERS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(make(i) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


def both(model: nn.Module, *args: Tensor) -> tuple[Capture, int]:
    """The capture, which must be the one that is made without equal layers, and how many layers were traced for it."""
    TRACED.clear()
    found = capture(model.eval(), args)
    count = len(TRACED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "FEWEST", 1 << 30)
        plain = capture(model, args)
    assert found.graph is plain.graph
    assert (found.guards, found.outputs, found.fallbacks, found.notes) == (
        plain.guards,
        plain.outputs,
        plain.fallbacks,
        plain.notes,
    )
    assert found.weights.keys() == plain.weights.keys()
    assert all(found.weights[name].data_ptr() == plain.weights[name].data_ptr() for name in plain.weights)
    return found, count


def test_equal_layers_are_traced_twice() -> None:
    model = Model(Layer, 9)
    found, count = both(model, X)
    assert count == 2
    places = {node.origin.module for node in found.graph.nodes if node.op.name == "linear"}
    assert places == {"first", *(f"layers.{i}.linear" for i in range(9))}


def test_a_sequence_of_layers_is_one_of_equal_layers() -> None:
    assert both(nn.Sequential(nn.Linear(8, 8), *map(Layer, range(LAYERS))), X)[1] == 2


def test_few_layers_are_all_traced() -> None:
    assert both(Model(Layer, repeats.FEWEST - 1), X)[1] == repeats.FEWEST - 1


def test_nothing_is_left_behind() -> None:
    model = Model(Layer)
    before = {part: set(part.__dict__) for part in model.modules()}
    capture(model.eval(), (X,))
    assert {part: set(part.__dict__) for part in model.modules()} == before
    assert all("__getattribute__" not in type(part).__dict__ for part in model.modules())


class ReadsIndex(Layer):
    def body(self, x: Tensor) -> Tensor:
        return x * self.index + self.linear(x)


class ReadsParity(Layer):
    """Two kinds of layers in turn, as local and global attention are."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.odd = index % 2 == 1

    def body(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) if self.odd else self.linear(x)


class ReadsDict(Layer):
    def body(self, x: Tensor) -> Tensor:
        return x * vars(self)["index"] + self.linear(x)


class HasAttribute(Layer):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index > 3:
            self.bonus = 1.0

    def body(self, x: Tensor) -> Tensor:
        return self.linear(x) + getattr(self, "bonus", 0.0)


class PlainTensor(Layer):
    """A tensor that is no buffer."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.offset = torch.full((8,), float(index))

    def body(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.offset


class Wider(Layer):
    """Weights of other types in one of the layers."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.linear = nn.Linear(8, 8, bias=index != 4)


class Tied(Layer):
    """Two weights that are one in one of the layers."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.other = nn.Linear(8, 8)
        if index == 4:
            self.other.weight = self.linear.weight

    def body(self, x: Tensor) -> Tensor:
        return self.other(self.linear(x))


class OtherActivation(Layer):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.act = torch.tanh if index == 4 else torch.relu

    def body(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class HookInside(Layer):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index == 4:
            self.linear.register_forward_hook(lambda module, args, result: result * 2)


class ReplacedInside(Layer):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index == 4:
            self.linear.forward = torch.relu  # type: ignore[method-assign,assignment]


class WritesArgument(Layer):
    def body(self, x: Tensor) -> Tensor:
        x.add_(1)
        return x * self.linear(x)


class WritesOwn(Layer):
    """Writing to a value of its own concerns nobody else."""

    def body(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.add_(x)
        return y * x


class ReturnsView(Layer):
    def body(self, x: Tensor) -> Tensor:
        return x.view(-1, 2, 4).view(-1, 8)


class Random(Layer):
    def body(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.rand(8)


class Fallback(Layer):
    """An operator that PyTorch runs."""

    def body(self, x: Tensor) -> Tensor:
        return torch.cummax(self.linear(x), dim=-1)[0]


class NewConstant(Layer):
    def body(self, x: Tensor) -> Tensor:
        return self.linear(x) * torch.tensor(0.5)


DIFFERENT = {
    ReadsIndex: LAYERS,
    ReadsParity: 4,
    ReadsDict: LAYERS,
    HasAttribute: 4,
    PlainTensor: LAYERS,
    Wider: 3,
    Tied: 3,
    OtherActivation: 3,
    HookInside: 3,
    ReplacedInside: 3,
    WritesArgument: 2 + LAYERS,
    WritesOwn: 2,
    ReturnsView: 2 + LAYERS,
    Random: 2 + LAYERS,
    Fallback: 2,
    NewConstant: 2,
}


@pytest.mark.parametrize("kind", DIFFERENT, ids=lambda kind: kind.__name__)
def test_layers_that_differ_are_not_taken_for_equal(kind: type[Layer]) -> None:
    assert both(Model(kind), X.clone())[1] == DIFFERENT[kind]


def test_a_hook_on_a_layer_is_run_for_each() -> None:
    model = Model(Layer)
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda module, args, result, i=i: result * (i + 1))
    assert both(model, X)[1] == 2


def test_layers_that_count_are_found_out() -> None:
    calls = [0]

    class Counts(Layer):
        def body(self, x: Tensor) -> Tensor:
            calls[0] = calls[0] % LAYERS + 1
            return self.linear(x) * calls[0]

    assert both(Model(Counts), X)[1] == 2 + LAYERS
    assert calls[0] % LAYERS == 2 % LAYERS


def test_layers_that_read_a_tensor_of_the_model() -> None:
    class Closes(Layer):
        def body(self, x: Tensor) -> Tensor:
            return self.linear(x) + SEEN[0]

    class Outer(Model):
        def forward(self, x: Tensor) -> Tensor:
            SEEN[:] = [x * 2]
            return super().forward(x)

    assert both(Outer(Closes), X)[1] == 2 + LAYERS


SEEN: list[Tensor] = []


def test_several_arguments_and_results() -> None:
    class Several(Layer):
        def forward(self, x: Any, pair: Any = None, *, flag: bool = False, bias: Any = None) -> Any:
            TRACED.append(self)
            y = self.linear(x) + pair[0] * pair[1]
            return (y + bias if flag else y), bias, None

    class Outer(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            bias: Tensor = x * 3
            for i, layer in enumerate(self.layers):
                x, bias, _ = layer(x, (x, bias), flag=i != 4, bias=bias)
            return x + bias

    # the first two, and the one that is called with another constant
    assert both(Outer(Several), X)[1] == 3


def test_layers_in_other_shapes_are_traced_apart() -> None:
    class Outer(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for i, layer in enumerate(self.layers):
                x = layer(x[1:] if i == 3 else x)
            return x

    assert both(Outer(Layer), torch.randn(9, 8))[1] == 4


class Masked(Layer):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        TRACED.append(self)
        return self.linear(x) + mask[:, None]


class WithMask(Model):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self.layers:
            x = layer(x, mask)
        return x


def test_sizes_that_the_first_layer_finds_to_be_one() -> None:
    """The first layer is called with a mask as long as another size, those after it with one as long as ``x``."""
    assert both(WithMask(Masked), X, torch.randn(3))[1] == 2
    assert both(nn.Sequential(*map(Layer, range(LAYERS))), X)[1] == 2  # of which the first says how wide x is


def test_layers_that_turn_out_unlike_where_sizes_became_one() -> None:
    class Odd(Masked):
        """Another graph for sizes that were not one when it was called."""

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            TRACED.append(self)
            one = str(mask.shape[0]) == str(x.shape[0])
            return super().forward(x, mask) * (1 if one else 2)

    found, _ = both(WithMask(Odd), X, torch.randn(3))
    assert sum(node.op.name == "linear" for node in found.graph.nodes) == LAYERS


def test_a_list_that_layers_write_to() -> None:
    class Appends(Layer):
        def forward(self, x: Tensor, kept: list[Tensor]) -> Tensor:  # type: ignore[override]
            TRACED.append(self)
            kept.append(x)
            return self.linear(x)

    class Outer(Model):
        def forward(self, x: Tensor) -> Tensor:
            kept: list[Tensor] = []
            for layer in self.layers:
                x = layer(x, kept)
            return x + sum(kept)

    assert both(Outer(Appends), X)[1] == LAYERS


class Keeping(Layer):
    """A layer that keeps what it computed."""

    aux: Any = 0.0

    def body(self, x: Tensor) -> Any:
        made: Tensor = super().body(x)
        self.aux = made.mean()
        return made


class Summed(Model):
    """The result and what some layers kept."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.layers[3].aux + self.layers[4].aux


@pytest.mark.filterwarnings("ignore:.*attributes.*were assigned:UserWarning")
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_what_layers_keep_is_that_of_each() -> None:
    model = Summed(Keeping).eval()
    found = capture(model, (X,))
    inputs = [n for n in found.graph.nodes if n.op.name == "input"]
    assert inputs == list(found.graph.inputs)
    with torch.no_grad():
        expected = model(X)
    (ours,) = interpret(found.graph, [X], found.weights).outputs
    torch.testing.assert_close(ours, expected)


class Setting:
    """What all layers look at and the model changes."""

    scale = 1.0


class Scaled(Layer):
    def __init__(self, index: int, setting: Setting) -> None:
        super().__init__(index)
        self.setting = setting

    def body(self, x: Tensor) -> Any:
        return super().body(x) * self.setting.scale


class Rescaling(Model):
    """From the fourth layer on, another scale."""

    def __init__(self) -> None:
        setting = Setting()
        setting.scale = 1.0
        super().__init__(lambda i: Scaled(i, setting))
        self.setting = setting

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            self.setting.scale = 1.0 if i < 3 else 0.25
            x = layer(x)
        return x


def test_a_shared_object_that_changes_between_layers() -> None:
    both(Rescaling(), X)
