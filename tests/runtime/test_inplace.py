"""Results in the memory of operands, and intermediates in that of results: allowed where it is safe, and exact."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import smelt
from smelt.codegen.tvm import module as tvm_module
from smelt.rewrites.memory import Interval, place_within
from smelt.runtime import executable as executable_module
from smelt.runtime.entry import Entry
from smelt.runtime.footprint import eager_peak, footprint_of
from smelt.runtime.inplace import overwritable
from smelt.runtime.plan import KernelStep, Place, Plan
from smelt.tools.zoo import ZOO


class Residual(nn.Module):
    """Layers of a transformer's shape without attention: products, residuals, norms."""

    def __init__(self, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = norm(x + down(up(x).relu()))
        return self.last(x.flip(0) + x.sin())  # type: ignore[no-any-return]


def compiled(model: nn.Module, *args: Tensor) -> tuple[Entry, Tensor]:
    fast = smelt.compile(model.eval())
    return (fast.entries or (fast(*args), fast.entries)[1])[-1], fast(*args)


def without_reuse(entry: Entry, *args: Tensor) -> Tensor:
    """The result of the same kernels with all intermediates apart."""
    plan = entry.executable.plan
    reuse, plan.reuse = plan.reuse, {}
    entry.executable._bindings.clear()
    result: Tensor = entry.run(list(args), entry.sizes or {})
    plan.reuse = reuse
    entry.executable._bindings.clear()
    return result


def test_residuals_are_added_in_place_and_nothing_changes() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    model = Residual(layers=1)
    entry, result = compiled(model, x)
    executable, sizes = entry.executable, entry.sizes or {}
    check_lifetimes(executable.plan)
    assert len(executable.plan.reuse) >= 1
    assert executable.arena_bytes(sizes) < executable.arena_apart(sizes)
    torch.testing.assert_close(result, model(x))
    assert torch.equal(result, without_reuse(entry, x))


@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3, 16, 17, 33]), st.sampled_from([16, 33]))
@settings(deadline=None, derandomize=True, max_examples=10)
def test_in_place_is_exact_at_awkward_sizes(batch: int, rows: int, seed: int, width: int) -> None:
    torch.manual_seed(seed)
    entry, _ = MODELS.setdefault(width, compiled(Residual(width, 1), torch.randn(2, 5, width)))
    x = torch.randn(batch, rows, width)
    sizes = entry.match(*_call(x))
    result = entry.run([x], sizes)
    assert torch.equal(result, without_reuse(entry, x))


MODELS: dict[int, tuple[Entry, Tensor]] = {}


def _call(x: Tensor) -> tuple[torch.utils._pytree.TreeSpec, list[Tensor]]:
    (entry, _) = MODELS[x.shape[-1]]
    return entry.capture.in_spec, [x]


def test_what_may_be_overwritten() -> None:
    class Cases(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            a = x.exp()
            return (
                a.sin() @ a.cos().transpose(0, 1),  # an operand of a product is read many times
                a.sum(0) + a,  # a vector beside it
                a.flip(0) * a,  # other positions
                a.bool(),  # another size
            )

    x = torch.randn(8, 8)
    fast = smelt.compile(Cases().eval(), dynamic=False)
    for got, want in zip(fast(x), Cases()(x), strict=True):
        torch.testing.assert_close(got, want)
    for step in fast.entries[0].executable.plan.steps:
        if isinstance(step, KernelStep):
            program = step.kernel.program
            for i in overwritable(program):
                param, out = program.inputs[i], program.outputs[0]
                assert param.type.numel == out.type.numel
                assert param.type.dtype.itemsize == out.type.dtype.itemsize
                assert step.kernel.program.skeleton.value in ("map", "matmul")


def programs(model: nn.Module, *args: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    entry, _ = compiled(model, *args)
    steps = [s for s in entry.executable.plan.steps if isinstance(s, KernelStep)]
    return [(s.kernel.program.skeleton.value, overwritable(s.kernel.program)) for s in steps]


def test_of_a_product_only_what_follows_it() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x) + y

    # x, the weight's panels, the bias, y
    assert programs(Add(), torch.randn(3, 16), torch.randn(3, 16)) == [("matmul", (3,))]


@pytest.mark.parametrize(
    ("function", "allowed"),
    [
        (lambda x: x.exp() + 1, (0,)),
        (lambda x: x.t().contiguous().exp(), ()),
        (lambda x: x + x.flip(0), ()),
        (lambda x: torch.softmax(x, -1), ()),
        (lambda x: (x.exp(), x.exp() + x), ()),  # the second store would read what the first one wrote
        (lambda x: x.to(torch.float64).exp(), ()),
        (lambda x: x.to(torch.int32) + 1, (0,)),  # of one size, read before it is written
        (lambda x: x[:4].exp(), (0,)),  # its first elements, at the same places; the plan looks at sizes
        (lambda x: torch.cat([x, x]).exp(), ()),
    ],
)
def test_programs(function: object, allowed: tuple[int, ...]) -> None:
    class Function(nn.Module):
        def forward(self, x: Tensor) -> object:
            return function(x)  # type: ignore[operator]

    fast = smelt.compile(Function().eval(), dynamic=False)
    fast(torch.randn(8, 8))
    (step,) = fast.entries[0].executable.plan.steps
    assert isinstance(step, KernelStep)
    assert overwritable(step.kernel.program) == allowed


def test_operands_that_are_read_later_or_twice_are_kept() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            z = self.linear(y) + y
            return self.linear(z).sum(0) + y.sum(0)

    x = torch.randn(4, 16)
    model = Later()
    entry, result = compiled(model, x)
    torch.testing.assert_close(result, model(x))
    plan = entry.executable.plan
    check_lifetimes(plan)


def check_lifetimes(plan: Plan) -> None:
    """Whoever takes an operand's memory is the last to read it."""
    for result, operand in plan.reuse.items():
        assert plan.live[operand][1] == plan.live[result][0]
        assert plan.buffers[operand].place is plan.buffers[result].place is Place.ARENA
        readers = [s for s in plan.steps if isinstance(s, KernelStep) and operand in s.buffers]
        assert readers[-1].buffers.count(operand) == 1
        assert result in readers[-1].buffers


def test_pointers_may_alias_for_the_compiler() -> None:
    entry, _ = compiled(Residual(), torch.randn(2, 3, 16))
    plan = entry.executable.plan
    steps = [s for s in plan.steps if isinstance(s, KernelStep)]
    kernels = {s.kernel.name: s.kernel for s in steps}
    symbols = tuple(r.symbol for r in plan.graph.symbols)
    host = tvm_module.Host(
        "main", tuple(tvm_module.Call(s.kernel.name, s.buffers) for s in steps), len(plan.buffers), symbols
    )
    built = tvm_module.build([k.source for k in kernels.values()], [host], tvm_module.host_cpu())
    text = built.mod.inspect_source("ll") if hasattr(built, "mod") else built.inspect_source("ll")
    assert "define" in text
    assert "noalias" not in text


# --- intermediates in results -----------------------------------------------------------------------------------------


@contextmanager
def lending(nbytes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executable_module, "LENT_BYTES", nbytes)
        yield


class Head(nn.Module):
    """A large result at the end, and something that PyTorch runs between."""

    def __init__(self, torch_step: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.torch_step = Residual(), nn.Linear(3, 1000), torch_step

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.torch_step:
            y = torch.linalg.matrix_exp(y.unsqueeze(-1) * y.unsqueeze(-2)).sum(-1)
        return self.head(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("torch_step", [False, True])
def test_intermediates_lie_in_results_until_these_are_written(torch_step: bool) -> None:
    x, model = torch.randn(2, 9, 16), Head(torch_step)
    with lending(0):
        entry, result = compiled(model, x)
        executable, sizes = entry.executable, entry.sizes or {}
        binding = executable._binding(sizes)
        assert len(binding.lent) > 3
        assert executable.arena_bytes(sizes) < executable.arena_apart(sizes) / 4
        torch.testing.assert_close(result, model(x), rtol=1e-3, atol=1e-3)
        again = entry.run([x], sizes)
        assert torch.equal(result, again)
        for position, (output, offset) in binding.lent.items():
            nbytes = executable_module.nbytes_of(executable.plan.buffers[position], binding.shapes)
            assert executable.plan.live[position][1] < executable.plan.written[output]
            assert offset + nbytes <= executable_module.nbytes_of(executable.plan.buffers[output], binding.shapes)


def test_small_results_hold_nothing() -> None:
    entry, _ = compiled(Head(), torch.randn(2, 9, 16))
    assert entry.executable._binding(entry.sizes or {}).lent == {}


def test_an_empty_result_holds_nothing() -> None:
    with lending(0):
        entry, result = compiled(Head(), torch.randn(2, 0, 16))
        assert result.shape == (2, 0, 1000)
        assert entry.executable._binding(entry.sizes or {}).lent == {}


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9)), max_size=20), st.integers(0, 900))
@settings(derandomize=True)
def test_places_within_a_limit_never_overlap(drawn: list[tuple[int, int, int]], limit: int) -> None:
    values = [Interval(n, min(a, b), max(a, b)) for n, a, b in drawn]
    offsets = place_within(values, limit)
    for i, at in offsets.items():
        assert at + values[i].nbytes <= limit
        for j, other in offsets.items():
            if i != j and values[i].meets(values[j]):
                assert at + values[i].nbytes <= other or other + values[j].nbytes <= at


@pytest.mark.parametrize("name", ["gpt2", "nn-transformer"])
def test_no_more_memory_than_eager(name: str) -> None:
    model, args, kwargs = ZOO[name].make(tiny=True)
    with lending(0):
        fast = smelt.compile(model)
        entry, sizes, _ = fast.entry_for(args, kwargs)
        found = footprint_of(entry.executable, sizes)
        assert found.peak <= eager_peak(model, args, kwargs)
