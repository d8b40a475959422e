"""``torch.compile(model, backend="smelt")`` as PyTorch's users know it: breaks, guards, recompiles, modes, memory."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from smelt.runtime import dynamo_backend, graph_function
from smelt.runtime.dynamo_backend import backend
from smelt.runtime.graph_function import GraphFunction

from .dynamo import QUIET, fresh_dynamo

__all__ = ["fresh_dynamo"]  # which every test here has

pytestmark = QUIET


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> list[GraphFunction]:
    """The graphs that are compiled."""
    found: list[GraphFunction] = []
    right = dynamo_backend.compile_fx

    def compile_fx(*args: Any) -> GraphFunction:
        found.append(right(*args))
        return found[-1]

    monkeypatch.setattr(dynamo_backend, "compile_fx", compile_fx)
    return found


def check(model: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> Any:
    """Compare compiled and eager calls, results and arguments, strides too; the compiled model."""
    compiled: Any = torch.compile(model, backend=backend, **options)
    with torch.no_grad():
        for args in calls:
            copies = copy.deepcopy(list(args))  # strides too
            same(compiled(*args), model(*copies))
            same(list(args), copies)
    return compiled


def same(ours: Any, eager: Any) -> None:
    torch.testing.assert_close(ours, eager, check_stride=True)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).eval()


# --- graphs, guards and recompiles ------------------------------------------------------------------------------------


def counted(model: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> int:
    """How many graphs Dynamo asks for."""
    counter = CompileCounterWithBackend(backend)
    compiled: Any = torch.compile(model, backend=counter, **options)
    with torch.no_grad():
        for args in calls:
            torch.testing.assert_close(compiled(*args), model(*args))
    return counter.frame_count


@pytest.mark.parametrize(("dynamic", "graphs"), [(True, 1), (False, 3), (None, 2)])
def test_sizes(dynamic: bool | None, graphs: int) -> None:
    calls = [(torch.randn(rows, 8),) for rows in (3, 5, 7)]
    assert counted(mlp(), *calls, dynamic=dynamic) == graphs


def test_a_size_of_one_and_marked_sizes() -> None:
    calls = [(torch.randn(rows, 8),) for rows in (4, 1, 6)]
    assert counted(mlp(), *calls, dynamic=True) == 2  # Dynamo makes a graph of its own for 1
    torch._dynamo.reset()
    marked = torch.randn(4, 8)
    torch._dynamo.mark_dynamic(marked, 0)
    assert counted(mlp(), (marked,), (torch.randn(9, 8),)) == 1


def test_other_dtypes_and_constants_are_other_graphs() -> None:
    def scaled(x: Tensor, how: str) -> Tensor:
        return x * 2 if how == "double" else x * 3

    calls = [(torch.randn(3), "double"), (torch.randn(3), "triple"), (torch.ones(3, dtype=torch.int64), "double")]
    assert counted(scaled, *calls, *calls) == 3


def test_sizes_that_one_capture_is_not_for(functions: list[GraphFunction]) -> None:
    """A relation of sizes that Dynamo leaves open, and the capture does not, is another capture and no error."""

    def f(x: Tensor) -> Tensor:
        return x.flatten().softmax(0)

    check(f, (torch.randn(3, 4),), dynamic=True)
    (function,) = functions
    function.entries[0].match = function.entries[0].match  # type: ignore[method-assign]
    narrow = function.entries[0].capture.guards
    assert narrow == ()
    function._known.clear()
    first = function.entries[0]
    real = first.match

    def refuse(spec: Any, leaves: Any) -> Any:
        if any(isinstance(leaf, Tensor) and leaf.shape[0] == 5 for leaf in leaves):
            raise graph_function.Mismatch("for the test", 0)
        return real(spec, leaves)

    first.match = refuse  # type: ignore[method-assign]
    x = torch.randn(5, 4)
    sizes = [x.shape[0], x.shape[1]]
    given = [x if isinstance(leaf, Tensor) else sizes.pop(0) for leaf in _example(function, x)]
    torch.testing.assert_close(function(*given)[0], f(x))
    assert len(function.entries) == 2


def _example(function: GraphFunction, x: Tensor) -> list[Any]:
    return [x if spec.kind == "tensor" else 0 for spec in function.entry.capture.inputs]


def test_fullgraph() -> None:
    def broken(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    check(mlp(), (torch.randn(3, 8),), fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        torch.compile(broken, backend=backend, fullgraph=True)(torch.randn(3))
    check(broken, (torch.randn(3),))


def test_functions_that_are_not_to_be_compiled(functions: list[GraphFunction]) -> None:
    seen = []

    @torch.compiler.disable
    def plain(x: Tensor) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return x + 1

    def f(x: Tensor) -> Tensor:
        return plain(x.sin()).cos()

    check(f, (torch.randn(3),), (torch.randn(3),))
    assert len(functions) == 2
    assert not any(seen)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor, *, scale: dict[str, Any]) -> dict[str, Any]:
        def mixed(y: Tensor) -> Tensor:
            for layer in self.inner:
                y = layer(y).relu()
            return y

        y = self.norm(x)
        return {"y": (mixed(y), y * scale["by"]), "scale": scale["by"]}


def test_nested_modules_and_functions() -> None:
    block = Block().eval()
    compiled: Any = torch.compile(block, backend=backend)
    for by in (2, 3, 3):
        x = torch.randn(2, 8)
        with torch.no_grad():
            same(compiled(x, scale={"by": by}), block(x, scale={"by": by}))
    # a part of a model may be compiled, and be within another compiled one
    outer = nn.Sequential(nn.Linear(8, 8), torch.compile(mlp(), backend=backend)).eval()  # type: ignore[arg-type]
    check(outer, (torch.randn(3, 8),))


def test_a_graph_that_cannot_be_compiled_runs_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo_backend, "_told", set())
    x = torch.randn(6)

    def f(x: Tensor) -> Tensor:
        return x[1:].as_strided((2, 2), (1, 2)).cos()

    with pytest.warns(UserWarning, match="PyTorch runs a graph that smelt cannot compile") as said:
        check(f, (x,))
    assert len(said) == 1
    torch._dynamo.reset()
    with pytest.raises(Exception, match="as_strided of a view"):
        check(f, (x,), options={"fallback": "error"})


# --- memory between graphs --------------------------------------------------------------------------------------------


def test_a_view_of_an_argument_stays_one() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.t()[1:]
        torch._dynamo.graph_break()
        y.add_(1)
        return x, y

    for dynamic in (False, True):
        check(f, (torch.randn(4, 3),), (torch.randn(5, 3),), dynamic=dynamic)
    # whose own memory begins elsewhere
    compiled: Any = torch.compile(f, backend=backend)
    base = torch.zeros(6, 3)
    with torch.no_grad():
        compiled(base[2:])
    assert base[:2].sum() == 0
    assert base[2:, 1:].eq(1).all()


def test_views_of_one_another_stay_so() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        first, second = y[0], y.t()[1]
        torch._dynamo.graph_break()
        first.zero_()
        return first, second, y

    def parts(x: Tensor) -> tuple[Tensor, ...]:
        first, second = (x * 2).chunk(2)
        whole = first.view(-1)
        torch._dynamo.graph_break()
        whole.zero_()
        return first, second

    for dynamic in (False, True):
        check(f, (torch.randn(4, 3),), (torch.randn(5, 3),), dynamic=dynamic)
        check(parts, (torch.randn(4, 3),), (torch.randn(6, 3),), dynamic=dynamic)


def test_results_have_the_strides_of_eager() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.transpose(1, 2) * 2
        torch._dynamo.graph_break()
        return y.transpose(1, 2).view(-1)

    def repeated(x: Tensor) -> Tensor:
        return x.sum(1).unsqueeze(1).expand(-1, 4, -1)

    for dynamic in (False, True):
        check(f, (torch.randn(2, 3, 4),), (torch.randn(2, 5, 4),), dynamic=dynamic)
        check(repeated, (torch.randn(2, 3, 4),), dynamic=dynamic)


def test_arguments_that_are_written_to_and_returned() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = x.add_(y)
        return z, z[0]

    compiled = check(f, (torch.randn(3), torch.randn(3)), (torch.randn(3), torch.randn(3)))
    x = torch.randn(3)
    with torch.no_grad():
        z, first = compiled(x, torch.randn(3))
    assert z.data_ptr() == x.data_ptr() == first.data_ptr()


def test_arguments_that_share_memory() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return y * 2

    compiled: Any = torch.compile(f, backend=backend)
    base, twin = torch.zeros(2, 4), torch.zeros(2, 4)
    with torch.no_grad():
        compiled(torch.randn(4), torch.randn(4))
        torch.testing.assert_close(compiled(base[0], base[0]), f(twin[0], twin[0]))
        torch.testing.assert_close(compiled(base[0], base.view(-1)[2:6]), f(twin[0], twin.view(-1)[2:6]))
    torch.testing.assert_close(base, twin)


def test_reshape_of_a_strided_argument_is_a_copy() -> None:
    def f(x: Tensor) -> Tensor:
        return x.reshape(-1).add_(1)

    for dynamic in (False, True):
        check(f, (torch.randn(3, 4).t(),), dynamic=dynamic)
        check(f, (torch.randn(3, 4),), dynamic=dynamic)
        check(f, (torch.randn(3, 8)[:, ::2],), dynamic=dynamic)


# --- modes of PyTorch -------------------------------------------------------------------------------------------------


def test_autocast() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.first(x)
            with torch.autocast("cpu", enabled=False):
                z = self.second(x)
            return y, z

    model, x = Regions().eval(), torch.randn(3, 8)
    check(model, (x,))
    compiled: Any = torch.compile(mlp(), backend=backend)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            around = compiled(x)
        assert (around.dtype, compiled(x).dtype) == (torch.bfloat16, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(around, compiled(x))


def test_a_region_without_autocast_inside_of_autocast() -> None:
    def f(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            exact = nn.functional.linear(x, weight)
        return exact, nn.functional.linear(x, weight)

    compiled: Any = torch.compile(f, backend=backend)
    x, weight = torch.randn(9, 4), torch.randn(3, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = compiled(x, weight)
        assert [t.dtype for t in found] == [torch.float32, torch.bfloat16]
        torch.testing.assert_close(found, f(x, weight))


def test_what_pytorch_runs_is_not_cast_twice() -> None:
    """The graph that was traced under autocast holds the casts."""

    def f(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.conv1d(x, weight).cummax(-1).values

    compiled: Any = torch.compile(f, backend=backend)
    x, weight = torch.randn(1, 2, 9), torch.randn(3, 2, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        same(compiled(x, weight), f(x, weight))


def test_inference_mode_and_no_grad() -> None:
    class Counter(nn.Module):
        total: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x.sum(0))
            return self.inner(x) + self.total

    for first, second in ((torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)):
        torch._dynamo.reset()
        model, twin = Counter().eval(), Counter().eval()
        twin.load_state_dict(model.state_dict())
        compiled: Any = torch.compile(model, backend=backend)
        for mode in (first, second, first):
            x = torch.randn(3, 4)
            with mode():
                same(compiled(x), twin(x))
                assert compiled(x).is_inference() == twin(x).is_inference()
        with torch.no_grad():
            model.inner.weight.mul_(2)
            twin.inner.weight.mul_(2)
            same(compiled(x), twin(x))


def test_a_region_without_gradients_is_compiled(functions: list[GraphFunction]) -> None:
    model = mlp()

    @torch.no_grad()
    def generate(x: Tensor) -> Tensor:
        return model(x)

    x = torch.randn(3, 8)
    compiled: Any = torch.compile(generate, backend=backend)
    same(compiled(x), generate(x))
    assert len(functions) == 1


def test_gradients_flow_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo_backend, "_told", {"grad"})
    model = mlp()
    x = torch.randn(3, 8, requires_grad=True)
    compiled: Any = torch.compile(model, backend=backend)
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(model(x).sum(), x)[0])


def test_modes(functions: list[GraphFunction]) -> None:
    for mode, tune in ((None, "cached"), ("reduce-overhead", "cached"), ("max-autotune", "full")):
        with pytest.MonkeyPatch.context() as patch:
            asked: list[Any] = []
            patch.setattr("smelt.runtime.captures.tuned_now", lambda *a, asked=asked: asked.append(a))
            torch._dynamo.reset()
            check(mlp(), (torch.randn(3, 8),), mode=mode)
        assert functions[-1]._options.tune == tune
        assert len(asked) == (tune == "full")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_reset_frees(functions: list[GraphFunction]) -> None:
    model = nn.Linear(64, 64).eval()
    check(model, (torch.randn(3, 64),))
    executable = functions[0].entry.executable
    kept = [weakref.ref(functions[0]), weakref.ref(executable), *map(weakref.ref, executable._packed.values())]
    assert len(kept) > 2
    weight = weakref.ref(model.weight)
    functions.clear()
    del executable
    torch._dynamo.reset()
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)
    del model
    gc.collect()
    assert weight() is None


def test_graphs_share_the_memory_of_weights(functions: list[GraphFunction]) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()
    check(model, *((torch.randn(rows, 64),) for rows in (24, 48, 96)), dynamic=False)
    packed = [{t.data_ptr() for t in f.entry.executable._packed.values()} for f in functions]
    assert len(packed) == 3
    assert packed[0] == packed[1] == packed[2]
    assert len(packed[0] - {parameter.data_ptr() for parameter in model.parameters()}) == 2
    # and follow the weights together
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[operator, union-attr]
    compiled: Any = torch.compile(model, backend=backend, dynamic=False)
    with torch.no_grad():
        for rows in (24, 48):
            x = torch.randn(rows, 64)
            torch.testing.assert_close(compiled(x), model(x))


def _refuse_others(function: GraphFunction, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let a graph's first capture take only so many rows."""
    first = function.entries[0]
    match = first.match

    def narrow(spec: Any, leaves: Any) -> Any:
        if any(isinstance(leaf, Tensor) and leaf.shape[0] != rows for leaf in leaves):
            raise graph_function.Mismatch("for the test", 0)
        return match(spec, leaves)

    monkeypatch.setattr(first, "match", narrow)


def test_a_later_capture_is_of_the_weights_and_the_autocast_of_its_call(
    functions: list[GraphFunction], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(8, 8).eval()
    compiled: Any = torch.compile(model, backend=backend, dynamic=True)
    few, many = torch.randn(3, 8), torch.randn(5, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled(few).dtype == torch.bfloat16
        (function,) = functions
        _refuse_others(function, monkeypatch, 3)
        model.weight.mul_(2.0)
        model.bias.add_(1.0)
        same(compiled(many), model(many))
        assert len(function.entries) == 2
        same(compiled(few), model(few))


def test_what_cannot_be_captured_later_runs_in_pytorch(
    functions: list[GraphFunction], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(8, 8).eval()
    compiled: Any = torch.compile(model, backend=backend, dynamic=True)
    few, many = torch.randn(3, 8), torch.randn(5, 8)
    with torch.no_grad():
        compiled(few)
        (function,) = functions
        _refuse_others(function, monkeypatch, 3)
        tried: list[int] = []

        def refuse(*args: Any, **kwargs: Any) -> Any:
            tried.append(1)
            raise graph_function.CaptureError("for the test")

        monkeypatch.setattr(graph_function, "lower_fx", refuse)
        same(compiled(many), model(many))
        same(compiled(many), model(many))
    assert len(tried) == 1


def test_a_weight_that_one_graph_writes_is_seen_by_the_next() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.randn(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            self.w.mul_(0.5)
            torch._dynamo.graph_break()
            return x @ self.w

    torch.manual_seed(0)
    model = Two().eval()
    eager, x = copy.deepcopy(model), torch.randn(4, 64)
    compiled: Any = torch.compile(model, backend=backend)
    with torch.no_grad():
        for _ in range(3):
            same(compiled(x), eager(x))


def test_views_of_a_result_that_is_laid_out_anew_share_it() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.t() * 2
        return y, y[0]

    compiled: Any = torch.compile(f, backend=backend)
    with torch.no_grad():
        whole, row = compiled(torch.randn(3, 5))
        whole.zero_()
    assert not row.any()


def test_shared_weights_are_forgotten() -> None:
    from smelt.runtime import shared

    before = len(shared._known)
    made, share = shared.shared(torch.randn(64, 64))
    assert len(shared._known) == before + 1
    del made, share
    gc.collect()
    assert len(shared._known) == before
