"""Bisection finds planted faults: the first wrong application is named, and a script shows it."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from smelt.frontend.capture import Capture
from smelt.frontend.export import capture
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.node import Node, Var
from smelt.rewrites import hoist, merge, regions
from smelt.rewrites.log import FUSE, PLACE, Application
from smelt.rewrites.memory import Placement
from smelt.rewrites.rule import Domain, Rule
from smelt.rewrites.rules import RULES
from smelt.runtime import kernels, placement, plan
from smelt.runtime.bisect import Search, bisect
from smelt.runtime.finding import Finding
from smelt.runtime.script import MAX_LINES
from smelt.runtime.target import Target

from .planted import Tiny, Two

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def tiny() -> tuple[Capture, list[Any]]:
    torch.manual_seed(0)
    args = (torch.randint(0, 50, (2, 7)),)
    found = capture(Tiny().eval(), args)
    assert len(found.graph.nodes) >= 200
    return found, found.flatten(args, {})


def search(captured: tuple[Capture, list[Any]], rules: Any = RULES) -> Search:
    return Search(*captured, Target.detect("cpu", 2), rules)


def log_of(found: Search) -> list[Application]:
    """All changes to the graph, as far as the compiler gets."""
    with contextlib.suppress(Exception):
        found.compiled(None)
    return found.context.log.applications


def shows(script: str) -> str:
    """What a script prints; it must end with an exit code that says that there is a fault."""
    assert 0 < len(script.splitlines()) <= MAX_LINES
    assert all(len(line) <= 300 for line in script.splitlines())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})
    assert ended.value.code in (1, True), printed.getvalue()
    return printed.getvalue()


def named(prefix: str) -> Callable[..., bool]:
    """A guard: the weight is one of these, as the model has it."""
    return lambda w: w.op is ops.weight and str(w.attrs["name"]).startswith(prefix)


# --- wrong rules ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A wrong rule and the stage that it is planted in."""

    stage: str
    before: Callable[..., Node]
    after: Callable[..., Node]
    when: Callable[..., bool] | None = None


_EPS = Var("eps")
WRONG: dict[str, Wrong] = {
    "gelu-is-silu": Wrong("canonicalise", lambda x: ops.gelu(x), lambda x: ops.silu(x)),
    "gelu-of-the-last-layer-is-silu": Wrong(
        "simplify", lambda x: ops.gelu(x), lambda x: ops.silu(x), lambda root: "layers.4" in root.origin.module
    ),
    "silu-is-sigmoid": Wrong("canonicalise", lambda x: ops.silu(x), lambda x: ops.sigmoid(x)),
    "tanh-is-itself": Wrong("canonicalise", lambda x: ops.tanh(x), lambda x: x),
    "residual-is-subtracted": Wrong(
        "simplify", lambda x, y: ops.add(x, ops.gelu(y)), lambda x, y: ops.sub(x, ops.gelu(y))
    ),
    "operands-of-difference-swapped": Wrong("simplify", lambda x, y: ops.sub(x, y), lambda x, y: ops.sub(y, x)),
    "bias-lost": Wrong(
        "simplify", lambda x, w, b: ops.linear(x, w, b), lambda x, w: ops.linear(x, w), named("layers.3.down")
    ),
    "weight-transposed": Wrong(
        "simplify",
        lambda x, w, b: ops.linear(x, w, b),
        lambda x, w, b: ops.linear(x, ops.permute(w, dims=(1, 0)), b),
        named("layers.2.mix"),
    ),
    "norm-with-another-epsilon": Wrong(
        "canonicalise",
        lambda x, w, b: ops.layer_norm(x, w, b),
        lambda x, w, b: ops.layer_norm(x, w, b, eps=0.5),
        named("layers.1."),
    ),
    "softmax-along-the-wrong-axis": Wrong(
        "canonicalise", lambda x: ops.softmax(x, dim=3), lambda x: ops.softmax(x, dim=2)
    ),
    "first-token-skipped": Wrong(
        "canonicalise",
        lambda w, ids: ops.embedding(w, ids),
        lambda w, ids: ops.embedding(w, ops.maximum(ids, ops.scalar(25, torch.int64))),
        lambda ids: ids.op is ops.input,
    ),
    "gate-and-up-swapped": Wrong(
        "canonicalise", lambda g, u: ops.mul(ops.silu(g), u), lambda g, u: ops.mul(g, ops.sigmoid(u))
    ),
    "attention-sees-the-future": Wrong(
        "simplify",
        lambda q, k, v, s: ops.attention(q, k, v, causal=True, scale=s),
        lambda q, k, v, s: ops.attention(q, k, v, causal=False, scale=s),
    ),
}


def with_rule(name: str) -> dict[str, Any]:
    """The rules with a wrong one before the others of its stage."""
    wrong = WRONG[name]
    made = Rule(name=name, before=wrong.before, after=wrong.after, when=wrong.when, samples=(), domain=Domain.FINITE)
    return {**RULES, wrong.stage: (made, *RULES[wrong.stage])}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found(name: str, tiny: tuple[Capture, list[Any]]) -> None:
    found = search(tiny, with_rule(name))
    finding = found.run()
    assert finding is not None
    first = next(application for application in log_of(found) if application.rule == name)
    assert (finding.stage, finding.rule, finding.number) == ("rewrite", name, first.number)
    assert "test_bisect" not in finding.where
    assert ".py:" in finding.where
    assert found.trials <= 12
    shows(finding.script)


# --- wrong passes -----------------------------------------------------------------------------------------------------


def merge_with_parts_swapped(patch: pytest.MonkeyPatch) -> None:
    """Each layer of a merge gets the results of another one."""
    right = merge._Merger.part

    def part(merger: Any, node: Node, inputs: Any) -> Node:
        made = right(merger, merger.group[::-1][merger.group.index(node)], inputs)
        return made if made.type == node.type else right(merger, node, inputs)

    patch.setattr(merge._Merger, "part", part)


def merge_without_biases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(merge, "_bias", lambda layer: ops.full(shape=layer.inputs[1].shape[:1], value=0.0, dtype=layer.dtype))


def hoist_to_a_constant(patch: pytest.MonkeyPatch) -> None:
    """What the table of places becomes is taken for zero."""
    right = hoist._replacement

    def replacement(node: Node, names: Iterator[str]) -> Node | None:
        if node.op is ops.sin:
            return ops.full(shape=node.shape, value=0.0, dtype=node.dtype)
        return right(node, names)

    patch.setattr(hoist, "_replacement", replacement)


def changed_regions(patch: pytest.MonkeyPatch, change: Callable[[Node, tuple[Node, ...]], Node | None]) -> None:
    """Regions of more than one operator are changed, where ``change`` gives another node."""
    right = regions.make_region

    def make_region(*args: Any) -> Graph:
        region = right(*args)
        if sum(1 for node in region.nodes if node.op is not ops.input) < 2:
            return region
        return region.rebuild(lambda node, inputs: change(node, inputs) or node.with_inputs(inputs))

    patch.setattr(regions, "make_region", make_region)


def fusion_without_gelu(patch: pytest.MonkeyPatch) -> None:
    changed_regions(patch, lambda node, inputs: inputs[0] if node.op is ops.gelu else None)


def fusion_with_operands_swapped(patch: pytest.MonkeyPatch) -> None:
    changed_regions(patch, lambda node, inputs: ops.sub(*inputs[::-1]) if node.op is ops.sub else None)


def fusion_that_forgets_tanh(patch: pytest.MonkeyPatch) -> None:
    changed_regions(patch, lambda node, inputs: ops.sigmoid(inputs[0]) if node.op is ops.tanh else None)


PASSES: dict[Patch, tuple[str, Callable[[Application], bool]]] = {
    merge_with_parts_swapped: ("rewrite", lambda a: a.rule == "merge-linears"),
    merge_without_biases: ("rewrite", lambda a: a.rule == "merge-linears" and len(a.before.inputs) == 3),
    hoist_to_a_constant: ("rewrite", lambda a: a.rule == "hoist" and a.before.op is ops.sin),
    fusion_without_gelu: ("fusion", lambda a: _fuses(a, ops.gelu)),
    fusion_with_operands_swapped: ("fusion", lambda a: _fuses(a, ops.sub)),
    fusion_that_forgets_tanh: ("fusion", lambda a: _fuses(a, ops.tanh)),
}


def _fuses(application: Application, op: Any) -> bool:
    return application.rule == FUSE and op in (application.before.op, application.after.op)


@pytest.mark.parametrize("plant", PASSES)
def test_a_wrong_pass_is_found(plant: Patch, tiny: tuple[Capture, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    stage, planted = PASSES[plant]
    found = search(tiny)
    finding = found.run()
    assert finding is not None
    first = next(application for application in log_of(found) if planted(application))
    assert (finding.stage, finding.rule, finding.number) == (stage, first.rule, first.number)
    shows(finding.script)


# --- wrong placements and kernels -------------------------------------------------------------------------------------


def place_without_regard(patch: pytest.MonkeyPatch) -> None:
    """Every value lies at the start of the arena that lives for less than the whole run."""
    right = placement.place

    def place(intervals: Any) -> Placement:
        found = right(intervals)
        ends = max((i.last for i in intervals), default=0)
        offsets = [o if i.first == 0 and i.last == ends else 0 for o, i in zip(found.offsets, intervals, strict=True)]
        return replace(found, offsets=tuple(offsets))

    patch.setattr(placement, "place", place)


def lives_too_short(patch: pytest.MonkeyPatch) -> None:
    """The residual stream is taken to be read for the last time by the next kernel."""
    right = plan._Planner.find_lifetimes

    def find_lifetimes(self: Any) -> None:
        right(self)
        live = self.plan.live
        live.update({at: (first, min(last, first + 1)) for at, (first, last) in live.items()})

    patch.setattr(plan._Planner, "find_lifetimes", find_lifetimes)


@pytest.mark.parametrize("plant", [place_without_regard, lives_too_short])
def test_a_wrong_placement_is_found(
    plant: Patch, tiny: tuple[Capture, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = search(tiny)
    finding = found.run()
    assert finding is not None
    assert (finding.stage, finding.rule) == ("placement", PLACE)
    assert finding.number is not None
    assert "still needed" in shows(finding.script)


def program_of_another_region(patch: pytest.MonkeyPatch) -> None:
    """The program of a region with relu computes its negative."""
    right = kernels.lower

    def lower(region: Graph, *args: Any) -> Any:
        changed = region.rebuild(lambda n, inputs: ops.neg(inputs[0]) if n.op is ops.relu else n.with_inputs(inputs))
        return right(changed, *args)

    patch.setattr(kernels, "lower", lower)


def code_of_another_program(patch: pytest.MonkeyPatch) -> None:
    """The code of a program with sigmoid computes tanh."""
    right = kernels._emitter()
    patch.setattr(kernels, "_emitter", lambda: lambda *args: right(*args).replace("floats.sigmoid", "floats.tanh"))


KERNELS: dict[Patch, tuple[str, str]] = {
    program_of_another_region: ("program", "k0_linear_relu"),
    code_of_another_program: ("kernel", "k1_linear_sigmoid"),
}


@pytest.mark.parametrize("plant", KERNELS)
def test_a_wrong_kernel_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    finding = bisect(Two().eval(), (torch.randn(3, 8),), threads=1).finding
    assert isinstance(finding, Finding)
    assert (finding.stage, finding.rule) == KERNELS[plant]
    assert finding.number is None
    assert "not close" in shows(finding.script)


def test_as_many_faults_are_planted_as_promised() -> None:
    assert len(WRONG) + len(PASSES) + 2 + len(KERNELS) >= 20


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_rule_that_cannot_build_its_replacement_is_named(tiny: tuple[Capture, list[Any]]) -> None:
    made = Rule(name="of-another-type", before=lambda x: ops.tanh(x), after=lambda x: ops.sum(x, dims=(0,)), samples=())
    finding = search(tiny, {**RULES, "simplify": (made, *RULES["simplify"])}).run()
    assert finding is not None
    assert "of-another-type" in finding.what


def test_a_wrong_capture_is_told_from_a_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Two().eval()
    right = capture

    def captured(model: Any, *args: Any, **options: Any) -> Capture:
        found = right(model, *args, **options)
        graph = found.graph.with_roots(ops.neg)
        return replace(found, graph=graph)

    monkeypatch.setattr("smelt.runtime.bisect.capture", captured)
    finding = bisect(model, (torch.randn(3, 8),)).finding
    assert finding is not None
    assert finding.stage == "capture"


def test_a_state_that_is_wrong_afterwards_is_found() -> None:
    """The result is right, and what is written to the argument is not."""

    def model(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        state.add_(torch.tanh(x))
        return x * 2

    made = Rule(name="tanh-is-itself", before=lambda x: ops.tanh(x), after=lambda x: x, samples=())
    found = bisect(model, (torch.randn(3), torch.zeros(3)), rules={**RULES, "simplify": (made, *RULES["simplify"])})
    assert found.finding is not None
    assert found.finding.rule == "tanh-is-itself"
