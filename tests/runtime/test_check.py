"""``compile(check=...)``: sound models pass and are counted, planted faults are refused and named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.codegen.program import Program
from smelt.frontend.export import capture
from smelt.ir import ops
from smelt.ir.errors import CheckError
from smelt.ir.graph import Graph
from smelt.rewrites import fusion, merge, regions
from smelt.rewrites.check import RuleChecker
from smelt.rewrites.context import Context
from smelt.rewrites.log import PLACE, Fuel
from smelt.rewrites.pipeline import run_pipeline
from smelt.rewrites.rule import Rule
from smelt.rewrites.rules import RULES
from smelt.runtime import build, dynamo_backend, kernels, placement
from smelt.runtime.check import Checker
from smelt.runtime.check_passes import PassChecker
from smelt.runtime.target import Target

from .planted import Tiny, Two
from .test_bisect import PASSES, WRONG, Patch, with_rule

GELU_IS_SILU = Rule(name="gelu-is-silu", before=lambda x: ops.gelu(x), after=lambda x: ops.silu(x), samples=())


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    return capture(Tiny().eval(), (torch.randint(0, 50, (2, 7)),))


def with_first(rule: Rule, stage: str) -> dict[str, Any]:
    return {**RULES, stage: (rule, *RULES[stage])}


# --- rules ------------------------------------------------------------------------------------------------------------


def test_every_application_of_a_model_is_checked(tiny: Any) -> None:
    context = Context()
    context.observe = checker = RuleChecker(tiny.graph, context.rules)
    run_pipeline(tiny.graph, context)
    assert checker.verdicts.checked == len(context.log) > 40
    assert not checker.verdicts.skipped
    # five equal layers are evaluated once
    assert checker.verdicts.distinct < len(context.log) / 2


def test_a_wrong_rule_is_refused_and_its_application_named(tiny: Any) -> None:
    context = Context(rules=with_first(GELU_IS_SILU, "simplify"))
    context.observe = RuleChecker(tiny.graph, context.rules)
    with pytest.raises(CheckError, match=r"application .* gelu-is-silu, changed a value") as raised:
        run_pipeline(tiny.graph, context)
    first = next(a for a in context.log if a.rule == "gelu-is-silu")
    assert (raised.value.rule, raised.value.number) == ("gelu-is-silu", first.number)
    text = str(raised.value)
    assert "layers.0" in text
    assert "planted.py:" in text
    assert "= gelu(%arg0)" in text
    assert "smelt bisect MODEL" in text


@pytest.mark.parametrize("name", WRONG)
def test_every_planted_rule_is_refused(name: str, tiny: Any) -> None:
    context = Context(rules=with_rule(name))
    context.observe = RuleChecker(tiny.graph, context.rules)
    with pytest.raises(CheckError) as raised:
        run_pipeline(tiny.graph, context)
    assert raised.value.rule == name


@pytest.mark.parametrize("plant", PASSES)
def test_every_planted_pass_is_refused(plant: Patch, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    stage, planted = PASSES[plant]
    context = Context()
    checker = Checker("rules", tiny, context)

    def compile() -> None:
        graph = run_pipeline(tiny.graph, context)
        checker.fused(graph, fusion.fuse(graph, context.fuel, None, context.log), context)

    with pytest.raises(CheckError) as raised:
        compile()
    numbers = [a.number for a in context.log if planted(a)]
    assert raised.value.number in numbers if stage == "fusion" else raised.value.number == numbers[0]


def test_a_later_layer_of_a_merge_is_checked_too(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = merge._Merger.part

    def part(merger: Any, node: Any, inputs: Any) -> Any:
        return right(merger, merger.group[1] if node is merger.group[-1] else node, inputs)

    monkeypatch.setattr(merge._Merger, "part", part)
    context = Context()
    context.observe = RuleChecker(tiny.graph, context.rules)
    with pytest.raises(CheckError, match="merge-linears"):
        run_pipeline(tiny.graph, context)


def test_what_a_guard_knows_of_the_operands_is_no_fault() -> None:
    """A rule that is right because of what its operand is computed from."""
    x = ops.input(name="x", shape=(4,), dtype=torch.float32)
    same = Rule(
        name="abs-of-square",
        before=lambda x: ops.abs(x),
        after=lambda x: x,
        when=lambda x: x.op is ops.mul and x.inputs[0] is x.inputs[1],
        samples=(),
    )
    graph = Graph([x], [ops.abs(ops.mul(x, x))])
    context = Context(rules={"canonicalise": (same,)})
    context.observe = checker = RuleChecker(graph, context.rules)
    run_pipeline(graph, context)
    assert checker.verdicts.checked == 1


def test_what_cannot_be_evaluated_is_counted_with_its_reason() -> None:
    x = ops.input(name="x", shape=(0,), dtype=torch.float32)
    least = Rule(
        name="amax-of-negative",
        before=lambda x: ops.amax(ops.neg(x), dims=(0,)),
        after=lambda x: ops.neg(ops.amin(x, dims=(0,))),
        samples=(),
    )
    graph = Graph([x], [ops.amax(ops.neg(x), dims=(0,))])
    context = Context(rules={"canonicalise": (least,)})
    context.observe = checker = RuleChecker(graph, context.rules)
    run_pipeline(graph, context)
    assert checker.verdicts.checked == 0
    (reason,) = checker.verdicts.skipped
    assert reason.startswith("amax-of-negative: ")


# --- passes -----------------------------------------------------------------------------------------------------------


def test_a_wrong_pass_is_refused(tiny: Any) -> None:
    context = Context(rules=with_first(GELU_IS_SILU, "recognise"))
    context.observe = PassChecker(tiny.graph, Checker("rules", tiny, Context()).rules.examiner.choices)
    with pytest.raises(CheckError, match="the pass recognise changed a value") as raised:
        run_pipeline(tiny.graph, context)
    assert (raised.value.rule, raised.value.number) == ("recognise", None)


def forget_relu(patch: pytest.MonkeyPatch) -> None:
    right = regions.make_region

    def make_region(*args: Any) -> Graph:
        region = right(*args)
        return region.rebuild(lambda n, inputs: inputs[0] if n.op is ops.relu else n.with_inputs(inputs))

    patch.setattr(regions, "make_region", make_region)


@pytest.mark.parametrize(
    ("mode", "message"), [("rules", "fusion changed a value"), ("passes", "the pass fuse changed")]
)
def test_a_wrong_fusion_is_refused(mode: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_relu(monkeypatch)
    with pytest.raises(CheckError, match=message):
        smelt.compile(Two().eval(), check=mode)(torch.randn(3, 8))


def test_a_wrong_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.lower

    def lower(region: Graph, *args: Any) -> Program:
        return right(region.rebuild(lambda n, i: ops.neg(i[0]) if n.op is ops.relu else n.with_inputs(i)), *args)

    monkeypatch.setattr(kernels, "lower", lower)
    with pytest.raises(CheckError, match="the program of kernel k0_linear_relu"):
        smelt.compile(Two().eval(), check="passes")(torch.randn(3, 8))


@pytest.mark.parametrize("mode", ["rules", "passes"])
def test_a_wrong_placement_is_refused(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = placement.place
    monkeypatch.setattr(placement, "place", lambda values: _at_zero(right(values)))
    monkeypatch.setattr(build, "native_hosts", lambda *args: [])

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(self.b(h)) @ h.transpose(-1, -2)

    with pytest.raises(CheckError, match="share memory while both are needed") as raised:
        smelt.compile(Three().eval(), check=mode)(torch.randn(3, 8))
    assert raised.value.rule == PLACE


def _at_zero(found: Any) -> Any:
    return type(found)(tuple(0 for _ in found.offsets), found.nbytes)


# --- the option -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rules", "passes"])
def test_the_report_counts_verdicts(mode: Any) -> None:
    fast = smelt.compile(Two().eval(), check=mode)
    smelt.verify(fast, torch.randn(3, 8))
    (found,) = fast.report().captures
    assert found.checks is not None
    assert found.checks.mode == mode
    assert found.checks.checked + found.checks.proved >= 2
    assert f"checked   {mode}: " in str(fast.report())
    assert fast.report().to_dict()["captures"][0]["checks"]["skipped"] == {}


def test_the_backend_of_torch_compile_takes_it() -> None:
    graph_functions: list[Any] = []
    right = dynamo_backend.compile_fx

    def compile_fx(*args: Any) -> Any:
        graph_functions.append(right(*args))
        return graph_functions[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(dynamo_backend, "compile_fx", compile_fx)
        torch.compile(Two().eval(), backend=dynamo_backend.backend, options={"check": "rules"})(torch.randn(3, 8))
    assert graph_functions[0].entry.executable.checks.mode == "rules"


def test_nothing_is_checked_by_default() -> None:
    fast = smelt.compile(Two().eval())
    fast(torch.randn(3, 8))
    assert fast.report().captures[0].checks is None


@pytest.mark.parametrize("bad", ["rule", True, ""])
def test_another_value_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match='"rules", "passes" or None'):
        smelt.compile(Two().eval(), check=bad)


# --- fuel -------------------------------------------------------------------------------------------------------------


def log_with(limit: int | None, captured: Any) -> list[str]:
    made = build.build_executable(captured, Target.detect("cpu", 1), fuel=Fuel(limit))
    return [f"{a.number} {a.rule} {a.before.op.name}" for a in made.applications]


def test_every_change_and_placement_is_numbered_in_one_order(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "native_hosts", lambda *args: [])
    whole = log_with(None, tiny)
    assert [int(line.split()[0]) for line in whole] == list(range(1, len(whole) + 1))
    assert {"fuse", "place", "hoist", "merge-linears"} <= {line.split()[1] for line in whole}
    for limit in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        assert log_with(limit, tiny) == whole[:limit]


def test_a_model_is_right_for_any_amount_of_fuel() -> None:
    def model(x: Tensor) -> Tensor:
        h = torch.relu(x * 1.0 + 2.0).sum(-1, keepdim=True)
        return torch.tanh(h.flip(0)) * x

    x = torch.randn(3, 8)
    captured = capture(model, (x,), dynamic=False)
    whole = build.build_executable(captured, Target.detect("cpu", 1))
    assert {"fuse", "place"} < set(whole.applications.counts())
    for limit in range(len(whole.applications) + 1):
        made = build.build_executable(captured, Target.detect("cpu", 1), fuel=Fuel(limit))
        torch.testing.assert_close(made.run([x], {})[0], model(x))


def test_without_fuel_every_kernel_is_one_operator_and_no_memory_is_shared(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "native_hosts", lambda *args: [])
    made = build.build_executable(tiny, Target.detect("cpu", 1), fuel=Fuel(0))
    assert all(len(kernel.operators) == 1 for kernel in made.kernels)
    sizes = {r.symbol: 4 for r in tiny.graph.symbols}
    binding = made._binding(sizes)
    each = [binding.shapes[position][0] for position in binding.offsets]
    assert len(each) > 100
    assert binding.arena_bytes >= sum(torch.Size(shape).numel() for shape in each)
