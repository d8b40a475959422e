"""What a capture holds: names, sizes, guards, weights, mutations, structure, and errors."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smelt.frontend.capture import Capture
from smelt.frontend.export import capture
from smelt.ir.errors import CaptureError, InputError, UnsupportedError
from smelt.ir.types import symbol

from .calls import run, same

Check = Callable[..., Capture]


def shapes(captured: Capture) -> list[str]:
    return [str(node.type) for node in captured.graph.inputs]


# --- arguments --------------------------------------------------------------------------------------------------------


class Keywords(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0, mode: str = "plain") -> Tensor:
        y = x * scale if mode == "plain" else x - scale
        return y if mask is None else y.masked_fill(mask, 0.0)


def test_arguments_have_one_form_however_they_are_passed() -> None:
    x, mask = torch.randn(2, 3), torch.rand(2, 3) > 0.5
    captured = capture(Keywords().eval(), (x,), {"mask": mask})
    assert [spec.name for spec in captured.inputs] == ["x", "mask"]
    for args, kwargs in [((x, mask), {}), ((), {"mask": mask, "x": x}), ((x,), {"mask": mask, "scale": 2.0})]:
        model = Keywords()
        same(run(captured, args, kwargs).result, model(*args, **kwargs))


def test_constants_are_part_of_the_capture() -> None:
    x = torch.randn(2, 3)
    captured = capture(Keywords().eval(), (x,), {"scale": 3.0, "mode": "other"})
    assert [(s.name, s.kind, s.value) for s in captured.inputs[1:]] == [
        ("scale", "constant", 3.0),
        ("mode", "constant", "other"),
    ]
    same(run(captured, (x,), {"scale": 3.0, "mode": "other"}).result, x - 3.0)
    with pytest.raises(InputError, match=r"scale is 4\.0, captured as 3\.0"):
        run(captured, (x,), {"scale": 4.0, "mode": "other"})


def test_none_for_an_argument_without_a_default_is_a_constant() -> None:
    def f(x: Tensor, y: Tensor | None) -> Tensor:
        return x if y is None else x + y

    captured = capture(f, (torch.randn(2), None))
    assert captured.inputs[1].kind == "constant"
    assert captured.inputs[1].accepts(None)
    assert not captured.inputs[1].accepts(0)


def test_one_and_true_are_different_constants() -> None:
    captured = capture(lambda x, n: x * n, (torch.randn(2), 1))
    assert captured.inputs[1].accepts(1)
    assert not captured.inputs[1].accepts(True)
    assert not captured.inputs[1].accepts(1.0)


class Kind(enum.Enum):
    DOUBLE = 1


def test_arguments_of_many_types() -> None:
    def f(x: Tensor, kind: Kind, dtype: torch.dtype, span: slice, value: complex) -> Tensor:
        return x[span].to(dtype) * (2 if kind is Kind.DOUBLE else 1) + value.real

    args = (torch.randn(5), Kind.DOUBLE, torch.float64, slice(1, 3), 2j)
    same(run(capture(f, args), args).result, f(*args))


def test_an_argument_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(CaptureError, match="argument y is a object"):
        capture(lambda x, y: x, (torch.randn(2), object()))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_nested_arguments_and_results() -> None:
    def f(batch: dict[str, Any], *rest: Tensor, **named: Tensor) -> dict[str, Any]:
        total = batch["x"] + batch["inner"][0] + rest[0] + named["z"]
        return {"total": total, "pair": Pair(total * 2, rest[1]), "rest": [total, (None, 3, "name")]}

    x = torch.randn(2, 3)
    args, kwargs = ({"x": x, "inner": [x + 1]}, x + 2, x + 3), {"z": x + 4}
    captured = capture(f, args, kwargs)
    assert [spec.name for spec in captured.inputs] == ['batch["x"]', 'batch["inner"][0]', "rest[0]", "rest[1]", "z"]
    result = run(captured, args, kwargs).result
    same(result, f(*args, **kwargs))
    assert isinstance(result["pair"], Pair)
    # an argument that is returned is the same object
    assert result["pair"].right is args[2]


def test_a_call_of_another_structure_is_refused() -> None:
    captured = capture(lambda pair: pair[0] + pair[1], ((torch.randn(2), torch.randn(2)),))
    with pytest.raises(InputError, match="another structure"):
        run(captured, (torch.randn(2),))
    with pytest.raises(InputError, match="do not fit the model"):
        run(captured, (), {"unknown": 1})


def test_sizes_and_arguments_are_results() -> None:
    def f(x: Tensor) -> tuple[Any, ...]:
        return x.shape[0], x.shape[1] * 2 + 1, x, x * 2

    captured = capture(f, (torch.randn(3, 4),))
    x = torch.randn(5, 6)
    result = run(captured, (x,)).result
    same(result, f(x))
    assert result[2] is x


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_every_dim_is_symbolic_that_the_model_does_not_fix() -> None:
    captured = capture(nn.Linear(4, 2).eval(), (torch.randn(3, 5, 4),))
    assert shapes(captured) == ["f32[s0, s1, 4]"]
    (fixed,) = captured.specialised
    assert (fixed.argument, fixed.axis, fixed.value) == ("input", 2, 4)
    assert fixed.where


def test_named_sizes() -> None:
    args = (torch.randn(3, 5), torch.randn(3, 5))
    axes = {"a": {0: "batch", 1: "seq"}, "b": {0: "batch"}}
    captured = capture(lambda a, b: (a * 2, b * 2), args, dynamic=axes)
    assert shapes(captured) == ["f32[batch, seq]", "f32[batch, 5]"]
    with pytest.raises(InputError, match="dynamic names c"):
        capture(lambda a, b: (a * 2, b * 2), args, dynamic={"c": {0: "batch"}})
    with pytest.raises(InputError, match="argument a has rank 2"):
        capture(lambda a, b: (a * 2, b * 2), args, dynamic={"a": {2: "batch"}})


def test_a_size_may_be_named_of_an_argument_that_is_left_out() -> None:
    def model(a: Tensor, b: Tensor | None = None) -> Tensor:
        return a if b is None else a + b

    captured = capture(model, (torch.randn(3, 5),), dynamic={"a": {0: "batch"}, "b": {0: "batch"}})
    assert shapes(captured) == ["f32[batch, 5]"]


def test_fixed_sizes() -> None:
    captured = capture(lambda x: x * 2, (torch.randn(3, 5),), dynamic=False)
    assert shapes(captured) == ["f32[3, 5]"]
    assert captured.specialised == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1)])
def test_an_example_of_one_is_symbolic(shape: tuple[int, int], check: Check) -> None:
    captured = check(lambda x: (x @ x.mT).softmax(-1).sum(0), (torch.randn(shape),), (torch.randn(5, 6),))
    assert shapes(captured) == ["f32[s0, s1]"]
    assert captured.notes == ()


def test_an_example_of_zero_is_fixed(check: Check) -> None:
    captured = check(lambda x: (x @ x.mT).softmax(-1).sum(0), (torch.randn(0, 3),), (torch.randn(0, 5),))
    assert shapes(captured) == ["f32[0, s0]"]
    with pytest.raises(InputError):
        run(check(lambda x: x * 2, (torch.randn(2, 3),)), (torch.randn(0, 3),))


def test_a_slice_stays_within_its_axis(check: Check) -> None:
    captured = check(lambda x: x[:2] * 2, (torch.randn(3),), (torch.randn(2),))
    assert [s.low for s in captured.graph.symbols] == [2]
    captured = check(lambda x: x[3:] * 2, (torch.randn(5),), (torch.randn(4),))
    assert captured.graph.symbols[0].low >= 3


def test_a_dim_of_one_that_broadcasts_is_fixed() -> None:
    f = lambda x, y: x + y  # noqa: E731
    captured = capture(f, (torch.randn(4, 3), torch.randn(4, 1)))
    assert shapes(captured) == ["f32[s0, s1]", "f32[s0, 1]"]
    assert "sizes of 0 and 1 fixed" in captured.notes[0]
    with pytest.raises(InputError):
        run(captured, (torch.randn(4, 3), torch.randn(4, 3)))


def test_a_branch_on_size_one_is_guarded() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sum(0) if x.shape[0] > 1 else x[0] * 100

    many, one = torch.randn(4, 3), torch.randn(1, 3)
    captured = capture(f, (many,))
    assert [s.low for s in captured.graph.symbols] == [2, 1]
    with pytest.raises(InputError, match="out of range"):
        run(captured, (one,))
    captured = capture(f, (one,))
    same(run(captured, (one,)).result, f(one))
    assert shapes(captured) == ["f32[1, s0]"]


def test_a_squeeze_of_a_symbolic_dim_is_guarded() -> None:
    captured = capture(lambda x: x.squeeze(0), (torch.randn(4, 3),))
    with pytest.raises(InputError):
        run(captured, (torch.randn(1, 3),))


def test_a_branch_on_other_sizes_is_guarded() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x.sum() if x.shape[0] > 2 * y.shape[0] else y.sum()

    captured = capture(f, (torch.randn(9), torch.randn(3)))
    (guard,) = captured.guards
    s0, s1 = symbol("s0"), symbol("s1")
    assert guard.holds({s0: 7, s1: 3})
    assert not guard.holds({s0: 6, s1: 3})
    assert guard.where.startswith("test_export.py:")


def test_limits_of_a_table_are_ranges() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[1]]

    captured = capture(Positions().eval(), (torch.randn(2, 5, 4),))
    assert [(s.low, s.high) for s in captured.graph.symbols] == [(1, None), (1, 16)]


def test_equal_sizes_are_one_symbol() -> None:
    captured = capture(lambda x, y: x + y, (torch.randn(3, 4), torch.randn(3, 4)))
    assert shapes(captured) == ["f32[s0, s1]", "f32[s0, s1]"]


def test_a_size_that_is_a_multiple_of_another() -> None:
    captured = capture(lambda x, y: x + y.view(-1, 2).sum(1), (torch.randn(3), torch.randn(6)))
    assert shapes(captured) == ["f32[s0]", "f32[2*s0]"]
    x, y = torch.randn(5), torch.randn(10)
    same(run(captured, (x, y)).result, x + y.view(-1, 2).sum(1))


def test_a_size_that_a_lowering_must_know_is_fixed() -> None:
    q = torch.randn(2, 4, 5, 8)
    captured = capture(F.scaled_dot_product_attention, (q, q, q))
    assert {(s.axis, s.value) for s in captured.specialised if s.argument == "args[0]"} == {(3, 8)}
    assert "width of an attention head" in captured.specialised[0].where


def test_numbers_computed_from_sizes(check: Check) -> None:
    def f(x: Tensor) -> Tensor:
        return x / x.shape[1] + x.shape[0] ** 0.5 * x - (x.shape[0] / 3)

    check(f, (torch.randn(3, 4),), (torch.randn(6, 2),))


# --- weights ----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor([2.0, 3.0, 4.0, 5.0]), persistent=False)
        self.plain = torch.tensor([1.0, 0.0, 0.0, 1.0])

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids) * self.scale + self.plain) + torch.tensor(2.0)


def test_weights_are_live_tensors_by_name() -> None:
    model = Tied().eval()
    ids = torch.randint(0, 7, (2, 3))
    captured = capture(model, (ids,))
    assert set(captured.weights) == {"embedding.weight", "scale", "constant.0"}
    assert captured.weights["embedding.weight"].data_ptr() == model.embedding.weight.data_ptr()
    assert not captured.weights["embedding.weight"].requires_grad
    with torch.no_grad():
        model.embedding.weight.mul_(3)
        same(run(captured, (ids,)).result, model(ids))


def test_a_function_over_a_module_keeps_its_names() -> None:
    model = nn.Linear(3, 2).eval()
    captured = capture(model.forward, (torch.randn(4, 3),))
    assert set(captured.weights) == {"weight", "bias"}


def test_origins() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Tanh())).eval()
    captured = capture(model, (torch.randn(2, 3),))
    (tanh,) = (n for n in captured.graph.nodes if n.op.name == "tanh")
    assert tanh.origin.module == "1.0"
    assert tanh.origin.source.startswith("test_export.py:")
    assert tanh.origin.made_by == "frontend"
    assert all(n.origin.made_by for n in captured.graph.nodes)


class Tanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


# --- mutation ---------------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(2, 8, 3))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.count.add_(1)
        self.cache.index_copy_(1, position, x)
        self.cache[0, 0] = 7.0
        return self.cache.sum(1) + self.count


def test_mutated_buffers() -> None:
    model, x, position = Counter().eval(), torch.randn(2, 4, 3), torch.tensor([1, 3, 5, 6])
    captured = capture(model, (x, position))
    assert captured.fallbacks == ()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    ran = run(captured, (x, position))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_buffers())
    same(ran.result, model(x, position))
    assert set(ran.mutations) == {"count", "cache"}
    for name, tensor in model.named_buffers():
        same(ran.mutations[name], tensor)


class Hidden(nn.Module):
    """State in tensors that are not buffers, and in an object that is not a module."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.tensor(0)
        self.store = {"cache": torch.zeros(4, 3)}

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.steps += 1
        self.store["cache"].index_copy_(0, position, x)
        return self.store["cache"] * self.steps


def test_mutated_tensors_outside_of_buffers() -> None:
    model, x, position = Hidden().eval(), torch.randn(2, 3), torch.tensor([1, 3])
    captured = capture(model, (x, position))
    assert len(captured.graph.mutations) == 2
    for _ in range(2):
        ran = run(captured, (x, position))
        same(ran.result, model(x, position))
        assert torch.equal(captured.weights["constant.0"], model.steps)


def test_mutated_arguments() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        x[:, 1:].mul_(2)
        x.t()[0] += y.sum()
        return x + y

    x, y = torch.randn(3, 4), torch.randn(3, 4)
    ran = run(capture(f, (x, y)), (x, y))
    copy = x.clone()
    same(ran.result, f(copy, y))
    same(ran.mutations, {"x": copy})


MUTATIONS: dict[str, Callable[[Tensor], Any]] = {}


def mutation(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    MUTATIONS[f.__name__] = f
    return f


@mutation
def in_place_result(x: Tensor) -> Any:
    y = x * 2
    z = y.add_(1)
    return y, z * 3


@mutation
def views_see_writes(x: Tensor) -> Any:
    y = x * 2
    row, flat = y[0], y.view(-1)
    left, right = y.chunk(2, 1)
    y.add_(1)
    right.mul_(5)
    flat[0] = 9.0
    return y, row, flat, left, right


@mutation
def writes_through_views(x: Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    y[:, 0] = 5
    y.t()[1].sub_(1)
    y.unsqueeze(0).permute(2, 1, 0)[3].fill_(2)
    return y


@mutation
def steps(x: Tensor) -> Any:
    y = x.clone()
    y[::2] = 0
    y[1::2, ::3] += 1
    return y


@mutation
def masked(x: Tensor) -> Any:
    y = x.clone()
    y[y > 0] = 0
    y.masked_fill_(y < -1, -1)
    return y.clamp_(max=-0.1)


@mutation
def by_index(x: Tensor) -> Any:
    y = x.clone()
    y[torch.tensor([0, 2])] = 1.0
    y.scatter_(1, torch.tensor([[0], [1], [2]]), 4.0)
    y.index_add_(0, torch.tensor([1, 1]), x[:2])
    y.index_fill_(1, torch.tensor([3]), -1)
    return y


@mutation
def dtype_is_kept(x: Tensor) -> Any:
    y = x.to(torch.bfloat16)
    y += x
    n = torch.arange(3)
    n *= 2
    return y, n


@mutation
def copies_are_apart(x: Tensor) -> Any:
    y = x.clone()
    z = y + 0
    w = y.clone()
    y.zero_()
    return z, w, y


@mutation
def aliases_by_conversion(x: Tensor) -> Any:
    y = x * 1
    z, w = y.to(torch.float32), y.contiguous()
    y.add_(1)
    return z, w, y.reshape(-1)


@mutation
def through_another_library(x: Tensor) -> Any:
    y = x.clone()
    y.as_strided((2,), (1,)).fill_(3)
    return y


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_inside(name: str, check: Check) -> None:
    captured = check(MUTATIONS[name], (torch.randn(3, 4),))
    assert captured.graph.mutations == ()


# --- regions ----------------------------------------------------------------------------------------------------------


def test_regions_of_gradients_and_autocast(check: Check) -> None:
    def f(x: Tensor) -> Any:
        with torch.enable_grad():
            y = x @ x.mT
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = x @ x.mT
            w = z.softmax(-1)
        with torch.autocast("cpu", enabled=False):
            v = x * 2
        return y, z, w, v

    check(f, (torch.randn(3, 4),), (torch.randn(5, 6),))


def test_fused_paths_of_attention_are_off(check: Check) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    captured = check(model, (torch.randn(2, 5, 8),), (torch.randn(1, 3, 8),))
    assert "attention" in {node.op.name for node in captured.graph.nodes}
    assert captured.fallbacks == ()


def test_the_size_of_an_image_with_a_position_for_each_patch_is_fixed(check: Check) -> None:
    """PyTorch says only that floor(h / 4) * floor(w / 4) is the number of positions, from the shapes of an addition."""
    weight, positions = torch.randn(5, 3, 4, 4), torch.randn(6, 5)

    def embed(x: Tensor) -> Tensor:
        patches = nn.functional.conv2d(x, weight, stride=4).flatten(2).transpose(1, 2)
        assert patches.shape[1] == len(positions)
        return patches + positions

    captured = check(embed, (torch.randn(2, 3, 8, 12),), (torch.randn(3, 3, 8, 12),))
    assert captured.fallbacks == ()
    assert [s.axis for s in captured.specialised] == [1, 2, 3]


# --- fallbacks --------------------------------------------------------------------------------------------------------


def test_a_fallback_is_listed(check: Check) -> None:
    captured = check(lambda x: x.cummax(-1), (torch.randn(3, 4),), (torch.randn(5, 6),))
    (fallback,) = captured.fallbacks
    assert fallback.op == "aten.cummax.default"
    assert fallback.reason == "no lowering"
    assert fallback.sources[0].startswith("test_export.py:")


def test_a_fallback_can_be_an_error() -> None:
    with pytest.raises(UnsupportedError, match=r"aten.cummax.default: no (.|\n)*aten.cummin.default: no lowering"):
        capture(lambda x: (x.cummax(0)[0], x.cummin(0)[0]), (torch.randn(4),), fallback="error")


def test_lists_of_tensors_go_to_fallbacks(check: Check) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x.index_put([x > 0], y)

    captured = check(f, (torch.ones(3, 4), torch.randn(12)))
    assert captured.fallbacks[0].reason.startswith("an index that is a mask")


def test_random_calls_stay_apart() -> None:
    captured = capture(lambda x: (torch.rand_like(x), torch.rand_like(x)), (torch.randn(9),))
    first, second = run(captured, (torch.randn(9),)).result
    assert not torch.equal(first, second)


def test_a_decomposition_spares_a_fallback(check: Check) -> None:
    captured = check(lambda x, y: torch.einsum("bi,bj->bij", x, y), (torch.randn(3, 4), torch.randn(3, 5)))
    assert captured.fallbacks == ()


def test_a_custom_operator_falls_back(check: Check) -> None:
    with torch.library._scoped_library("smelt_test", "FRAGMENT") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
        captured = check(lambda x: torch.ops.smelt_test.double(x) + 1, (torch.randn(3),))
        assert [f.op for f in captured.fallbacks] == ["smelt_test.double.default"]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_training_mode() -> None:
    with pytest.raises(CaptureError, match=r"call \.eval\(\)"):
        capture(nn.Linear(2, 2), (torch.randn(3, 2),))
    model = nn.Sequential(nn.Dropout()).eval()
    model[0].train()
    with pytest.raises(CaptureError, match="its module 0 is"):
        capture(model, (torch.randn(3, 2),))


def test_data_dependent_python() -> None:
    with pytest.raises(CaptureError, match=r"cannot be captured as one graph(.|\n)*torch\.compile"):
        capture(lambda x: x + 1 if x.sum() > 0 else x, (torch.randn(3),))
    with pytest.raises(CaptureError, match="known only when the model runs"):
        capture(lambda x: x.nonzero(), (torch.randn(3),))


def test_an_error_of_the_model_is_told() -> None:
    with pytest.raises(CaptureError, match=r"Linear cannot be captured as one graph: .*reduction dim"):
        capture(nn.Linear(3, 2).eval(), (torch.randn(3, 2),))


def test_autocast_around_a_capture() -> None:
    with torch.autocast("cpu"), pytest.raises(CaptureError, match="call outside of it"):
        capture(nn.Linear(3, 2).eval(), (torch.randn(4, 3),))


def test_a_write_to_shared_memory() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.zeros(6)
            self.register_buffer("left", flat[:3])
            self.register_buffer("all", flat)

        def forward(self, x: Tensor) -> Tensor:
            self.left.add_(x)
            return self.all * 1

    with pytest.raises(UnsupportedError, match="shares its memory"):
        capture(Shared().eval(), (torch.randn(3),))


def test_devices() -> None:
    with pytest.raises(CaptureError, match="meta device"):
        capture(nn.Linear(3, 2, device="meta").eval(), (torch.randn(4, 3, device="meta"),))
    with pytest.raises(CaptureError, match="meta device"):
        capture(nn.Linear(3, 2, device="meta").eval(), (torch.randn(4, 3),))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="do not fit the model"):
        capture(nn.Linear(3, 2).eval(), ())


def test_odd_layouts_of_examples(check: Check) -> None:
    base = torch.randn(6, 8)
    for x in (base.t(), base[::2, ::2], base[:1].expand(4, 8), base[1:, 3:]):
        check(lambda x: (x * 2).sum(1), (x,))


def test_guards_are_conditions_of_sympy() -> None:
    captured = capture(lambda x: x.view(2, -1).sum(0), (torch.randn(6),))
    x = torch.randn(8)
    same(run(captured, (x,)).result, x.view(2, -1).sum(0))
    with pytest.raises(InputError):
        run(captured, (torch.randn(7),))
    assert all(isinstance(g.condition, sympy.Basic) for g in captured.guards)
