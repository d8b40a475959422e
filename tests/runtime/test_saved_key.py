"""The key of a kept capture: whatever may change what a model computes gives another key, or none."""

import builtins
import enum
import functools
import os
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smelt.frontend.capture import signature_of
from smelt.runtime.calls import CallReader
from smelt.runtime.options import Options
from smelt.runtime.saved.key import key_of
from smelt.runtime.saved.kinds import Unsure
from smelt.runtime.saved.state import State
from smelt.runtime.target import Target
from tests.runtime import saved_models

FACTOR = 2.0
TABLE = {"gelu": F.gelu, "relu": F.relu}
SETTINGS = types.SimpleNamespace(scale=1.0)
LOOSE = torch.tensor([1.0, 2.0])


class Kind(enum.Enum):
    PLAIN = 1
    OTHER = 2


@dataclass
class Config:
    act: str = "gelu"
    depth: int = 1


def helper(x: Tensor) -> Tensor:
    return x * FACTOR


def other_helper(x: Tensor) -> Tensor:
    return x * FACTOR + 1


def decorated(function: Callable[..., Tensor], by: float = 1.0) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Tensor:
        return function(*args) * by

    return wrapper


class Base(nn.Module):
    bound = 4

    def shift(self, x: Tensor) -> Tensor:
        return x + 1


class Model(Base):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.register_buffer("scale", torch.ones(4))
        self.config = Config()
        self.flag = True
        self.kind = Kind.PLAIN
        self.sizes = [1, 2]
        self.table = torch.ones(4)
        self.act: Callable[[Tensor], Tensor] = decorated(torch.tanh)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shift(helper(self.linear(x))) * self.scale * SETTINGS.scale
        for layer in self.layers:
            x = layer(x)
        x = TABLE[self.config.act](x) if self.flag else x
        if os.environ.get("A_MODEL_READS_THIS") == "1" or len(x.shape) > self.bound:
            x = -x
        if self.kind is Kind.PLAIN:
            x = self.act(x) + self.table + LOOSE[0]
        return saved_models.apart(torch.relu(self.norm(x)))


@pytest.fixture
def model() -> Model:
    return Model().eval()


@pytest.fixture(scope="module")
def target() -> Target:
    return Target.detect("cpu", 1)


def key(model: Any, target: Target, *args: Any, **options: Any) -> str:
    call = CallReader(signature_of(model)).read(args or (torch.ones(2, 4),), {})
    return key_of(model, call, Options(target, **options))[0]


@pytest.fixture
def keys(model: Model, target: Target) -> Callable[[], str]:
    """The key of the model as it is now."""
    return lambda: key(model, target)


def attribute(path: str, value: Any) -> Callable[[Model, pytest.MonkeyPatch], None]:
    """A change of an attribute of the model."""
    *parts, name = path.split(".")
    return lambda model, patch: patch.setattr(functools.reduce(getattr, parts, model), name, value)


def elsewhere(owner: Any, name: str, value: Any) -> Callable[[Model, pytest.MonkeyPatch], None]:
    """A change outside of the model."""
    return lambda model, patch: patch.setattr(owner, name, value)


def act(function: Callable[[Model], Any]) -> Callable[[Model, pytest.MonkeyPatch], None]:
    return lambda model, patch: function(model) and None


def negated(self: Any, x: Tensor) -> Tensor:
    return -x


def hook(module: Any, args: Any, result: Tensor) -> Tensor:
    return result + 1


def pre_hook(module: Any, args: Any) -> Any:
    return args


CHANGES: dict[str, Callable[[Model, pytest.MonkeyPatch], Any]] = {
    # --- code
    "forward": elsewhere(Model, "forward", negated),
    "forward of the object": lambda m, p: p.setattr(m, "forward", types.MethodType(negated, m)),
    "a method": elsewhere(Base, "shift", negated),
    "a function that is called": lambda m, p: p.setitem(globals(), "helper", other_helper),
    "the code of a function": elsewhere(helper, "__code__", other_helper.__code__),
    "a function of another module": elsewhere(saved_models, "apart", helper),
    "what that one calls": elsewhere(saved_models, "deeper", helper),
    "a default": elsewhere(saved_models.deeper, "__defaults__", (3.0,)),
    "a default by name": elsewhere(saved_models.deeper, "__kwdefaults__", {"by": 5.0}),
    "a closure": attribute("act", decorated(torch.tanh, by=2.0)),
    "what a closure calls": attribute("act", decorated(torch.sigmoid)),
    "a partial": attribute("act", functools.partial(torch.clamp, max=2.0)),
    "a function of PyTorch's": elsewhere(torch, "relu", helper),
    "a wrapper of PyTorch's around a function": elsewhere(torch, "relu", torch.no_grad()(helper)),
    "one of torch.nn.functional": elsewhere(F, "layer_norm", lambda x, *_: x),
    "a module of PyTorch's": elsewhere(nn.Linear, "forward", negated),
    "a method of tensors": elsewhere(Tensor, "__add__", lambda a, b: a),
    "a class": lambda m, p: p.setattr(m.layers[0], "__class__", nn.Identity),
    # --- values
    "a global number": lambda m, p: p.setitem(globals(), "FACTOR", 3.0),
    "a global dict": lambda m, p: p.setitem(TABLE, "gelu", F.silu),
    "an attribute of a global": elsewhere(SETTINGS, "scale", 2.0),
    "a global of another module": elsewhere(saved_models, "OFFSET", 7.0),
    "the sign of a zero": elsewhere(saved_models, "ZERO", -0.0),
    "an attribute of a class": elsewhere(Model, "bound", 1),
    "a flag": attribute("flag", False),
    "1 for True": attribute("flag", 1),
    "an enum": attribute("kind", Kind.OTHER),
    "a list": lambda m, p: m.sizes.append(3),
    "a config": attribute("config.act", "relu"),
    "an attribute more": lambda m, p: setattr(m, "one_more", 1),
    "an attribute of a part": attribute("norm.eps", 1e-3),
    "a tensor that is no buffer": attribute("table", torch.full((4,), 2.0)),
    "its values in place": lambda m, p: m.table.add_(1.0),
    "a global tensor": lambda m, p: p.setitem(globals(), "LOOSE", torch.tensor([5.0, 2.0])),
    # --- the tree of modules, and types of weights
    "a layer more": lambda m, p: m.layers.append(nn.Linear(4, 4)),
    "a layer less": lambda m, p: m.layers.__delitem__(1),
    "another class of layer": lambda m, p: m.layers.__setitem__(1, nn.Identity()),
    "a layer twice": lambda m, p: m.layers.__setitem__(1, m.layers[0]),
    "tied weights": lambda m, p: setattr(m.layers[0], "weight", m.layers[1].weight),
    "a dtype": lambda m, p: m.layers[0].to(torch.float64),
    "a shape": lambda m, p: setattr(m.layers[0], "bias", None),
    "strides": lambda m, p: setattr(m.linear, "weight", nn.Parameter(m.linear.weight.detach().t())),
    "a buffer for a parameter": lambda m, p: (delattr(m, "scale"), setattr(m, "scale", nn.Parameter(torch.ones(4)))),
    "training": lambda m, p: m.norm.train(),
    # --- hooks
    "a hook": lambda m, p: m.norm.register_forward_hook(hook),
    "a hook before": lambda m, p: m.norm.register_forward_pre_hook(pre_hook),
    "a parametrisation": lambda m, p: nn.utils.parametrizations.weight_norm(m.linear),
    # --- the process
    "the environment": lambda m, p: p.setenv("A_MODEL_READS_THIS", "1"),
    "an environment of PyTorch's": lambda m, p: p.setenv("TORCH_SOMETHING", "1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_model_changes_its_key(
    change: str, model: Model, keys: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys()
    assert keys() == before
    CHANGES[change](model, monkeypatch)
    assert keys() != before


def test_what_a_wrapper_is_around(keys: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "relu", torch.no_grad()(helper))
    before = keys()
    monkeypatch.setattr(torch, "relu", torch.no_grad()(other_helper))
    assert keys() != before


def test_global_hooks(keys: Callable[[], str]) -> None:
    before = keys()
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        assert keys() != before
    finally:
        handle.remove()
    assert keys() == before


SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "default dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "sdpa": (lambda: torch.backends.cuda.enable_flash_sdp(False), lambda: torch.backends.cuda.enable_flash_sdp(True)),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "fast path": (
        lambda: torch.backends.mha.set_fastpath_enabled(False),
        lambda: torch.backends.mha.set_fastpath_enabled(True),
    ),
    "autocast's dtype": (
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
        lambda: torch.set_autocast_dtype("cpu", torch.bfloat16),
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_settings_of_pytorch(switch: str, keys: Callable[[], str]) -> None:
    before = keys()
    on, off = SWITCHES[switch]
    on()
    try:
        assert keys() != before
    finally:
        off()
    assert keys() == before


def test_autocast(keys: Callable[[], str]) -> None:
    before = keys()
    with torch.autocast("cpu"):
        assert keys() != before


def test_what_was_asked_for(model: Model, target: Target) -> None:
    x = torch.ones(2, 4)
    found = [
        key(model, target, x),
        key(model, target.with_threads(2), x),
        key(model, target, x, dynamic=False),
        key(model, target, x, dynamic={"x": {0: "rows"}}),
        key(model, target, x, fallback="error"),
        key(model, target, x.to(torch.float64)),
        key(model, target, x[None]),
    ]
    assert len(set(found)) == len(found)


def test_constants_of_a_call(target: Target) -> None:
    def scaled(x: Tensor, by: Any = None) -> Tensor:
        return x if by is None else x * by

    x = torch.ones(2)
    found = [key(scaled, target, x, by) for by in (None, 1, True, 1.0, 0.0, -0.0, "1", x, (x,), [x], {"a": x})]
    assert len(set(found)) == len(found)


def test_sizes_and_weights_are_no_part_of_it(model: Model, target: Target) -> None:
    before = key(model, target, torch.ones(2, 4))
    with torch.no_grad():
        model.linear.weight.add_(1.0)
    assert key(model, target, torch.zeros(7, 4)) == before


# --- what cannot be told ----------------------------------------------------------------------------------------------


def generator() -> Iterator[int]:
    yield 1


class Slotted(random.Random):
    pass


UNKNOWN = (generator(), open(os.devnull), torch.Generator(), Slotted(), iter([1]))  # noqa: SIM115


@pytest.mark.parametrize("value", UNKNOWN, ids=lambda value: type(value).__name__)
def test_an_attribute_of_an_unknown_kind(value: Any, model: Model, keys: Callable[[], str]) -> None:
    model.unknown = value
    with pytest.raises(Unsure, match="unknown"):
        keys()


def test_a_mode_of_pytorch(keys: Callable[[], str]) -> None:
    with torch.device("cpu"), pytest.raises(Unsure, match="mode"):
        keys()


@pytest.mark.parametrize("options", [{"check": "rules"}, {"expect": {"kernels": 1}}])
def test_options_that_ask_for_the_compilation_itself(options: Any, model: Model, target: Target) -> None:
    with pytest.raises(Unsure, match="without"):
        key(model, target, **options)


def test_rules_of_the_user(keys: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.rewrites import registry

    monkeypatch.setitem(registry._ADDED, "mine", ("simplify", None))
    with pytest.raises(Unsure, match="rules"):
        keys()


def test_a_large_tensor_that_is_no_buffer(keys: Callable[[], str], model: Model) -> None:
    model.table = torch.zeros(1).expand(1 << 25)
    with pytest.raises(Unsure, match="neither a parameter nor a buffer"):
        keys()


def test_replaced_builtins_are_seen(keys: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr(builtins, "len", lambda x: 9)
    after = State(Model().eval()).digest
    monkeypatch.undo()
    assert after != State(Model().eval()).digest
    assert keys() == before
