"""From a wrong result to the first step that made it wrong.

Every change to a graph, and every placement, takes one unit of fuel (see ``rewrites/log.py``), so a binary search over
fuel finds the first one after which the result breaks the numeric contract. Graphs and plans are interpreted. Native
code is compiled once, and only where all of that agrees: then the kernels are tried one by one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..frontend.capture import Capture
from ..frontend.export import capture
from ..ir.errors import SmeltError
from ..ir.graph import Graph
from ..ir.node import Node
from ..rewrites.check import Examiner, place
from ..rewrites.context import Context
from ..rewrites.fusion import FusionReport, fuse
from ..rewrites.log import FUSE, Application, Fuel
from ..rewrites.pattern import brief
from ..rewrites.pipeline import PIPELINE, SEARCH_PIPELINE, run_pipeline
from ..rewrites.registry import all_rules
from ..rewrites.rule import Rule
from ..rewrites.search.settings import SearchSettings
from ..rewrites.trial import Sizes
from .build import native_hosts, thread_pool
from .check_passes import graph_values
from .contract import compare
from .entry import sizes_of
from .evidence import fusion_finding, kernel_finding, placement_finding, rewrite_finding
from .finding import Bisection, Finding
from .kernels import KernelTable, legalise
from .options import Dynamic
from .plan import Plan, TorchStep, make_plan
from .replay import Replay
from .state import preserved
from .target import Target
from .tensors import dense

Rules = Mapping[str, Sequence[Rule]]
_FAILURES = (SmeltError, RuntimeError, IndexError, ValueError, TypeError, KeyError, AssertionError)


def bisect(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = True,
    rules: Rules | None = None,
    threads: int | None = None,
    optimize: str = "rules",
) -> Bisection:
    """Find the first step of a model's compilation that breaks its result for these arguments.

    Args:
        model: a module in eval mode, or a function of tensors.
        args, kwargs: what it is called with.
        dynamic: as ``smelt.compile`` takes it.
        rules: the rules of each stage; by default those that a compilation uses, registered ones among them.
        threads: how many threads kernels may use; by default all cores that this process may run on.
        optimize: as ``smelt.compile`` takes it.

    Raises:
        CaptureError: the model cannot be captured as one graph.
        InputError: the arguments do not fit the model.
    """
    start = time.perf_counter()
    kwargs = kwargs or {}
    captured = capture(model, args, kwargs, dynamic=dynamic)
    leaves = captured.flatten(args, kwargs)
    search = Search(captured, leaves, Target.detect("cpu", threads), rules or all_rules(), optimize)
    finding = search.capture_finding(model, args, kwargs) or search.run()
    return Bisection(finding, search.applications, search.trials, time.perf_counter() - start)


@dataclass
class Compiled:
    """A graph on its way: rewritten and fused with some fuel, and what that left."""

    rewritten: Graph
    fused: Graph
    context: Context


@dataclass
class Search:
    """One bisection.

    Attributes:
        applications: how many changes were counted so far.
        trials: how many results were compared.
        context: that of the last compilation.
    """

    capture: Capture
    leaves: Sequence[Any]
    target: Target
    rules: Rules
    optimize: str = "rules"
    applications: int = 0
    trials: int = 0
    context: Context = field(default_factory=Context)
    sizes: Sizes = field(init=False)
    tensors: list[Tensor] = field(init=False)
    eager: list[Tensor] = field(init=False)
    exact: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.capture.inputs, self.leaves, strict=True)
        self.tensors = [dense(leaf).detach().clone() for spec, leaf in pairs if spec.kind == "tensor"]
        self.sizes = sizes_of(self.capture, self.leaves)
        self.examiner = Examiner(self.capture.graph.symbols, self.holds)
        self.examiner.choices = (*self.examiner.choices, self.sizes)
        self.eager = self.values(self.capture.graph, {})
        self.exact = self.values(self.capture.graph, {}, torch.float64)

    def holds(self, sizes: Sizes) -> bool:
        """Whether the capture is for these sizes."""
        return all(guard.holds(sizes) for guard in self.capture.guards)

    # --- comparing ----------------------------------------------------------------------------------------------------

    def values(self, graph: Graph, derived: Mapping[str, Node], dtype: torch.dtype | None = None) -> list[Tensor]:
        """A graph's results, then its mutations, for the arguments."""
        return graph_values(graph, self.tensors, self.capture.weights, derived, self.sizes, dtype)

    def fault_of(self, run: Callable[[], Sequence[Tensor]]) -> str:
        """How results differ from the captured graph's by the numeric contract; empty where they do not."""
        self.trials += 1
        try:
            found = run()
        except _FAILURES as error:
            return f"{type(error).__name__}: {error}"
        for i, (ours, eager, exact) in enumerate(zip(found, self.eager, self.exact, strict=False)):
            result = compare(f"result {i}", ours, eager, exact)
            if not result.passed:
                return str(result)
        return ""

    def first_bad(self, fault_at: Callable[[int], str], high: int) -> tuple[int, str]:
        """The least count, or one of the counts, from which a result is wrong, and how; ``high`` is wrong."""
        low, what = -1, ""
        while high - low > 1:
            middle = (low + high) // 2
            found = fault_at(middle)
            if found:
                high, what = middle, found
            else:
                low = middle
        return high, what

    # --- graphs -------------------------------------------------------------------------------------------------------

    def capture_finding(
        self, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Finding | None:
        """That the captured graph is not the model."""
        args, kwargs = copy.deepcopy((tuple(args), dict(kwargs)))
        with torch.no_grad(), preserved(model):
            expected = pytree.tree_leaves(model(*args, **kwargs))
        found = self.capture.unflatten(
            self.eager[: len(self.capture.graph.outputs)], list(self.leaves), dict(self.sizes)
        )
        for i, (ours, eager) in enumerate(zip(pytree.tree_leaves(found), expected, strict=True)):
            result = compare(f"result {i}", ours, eager)
            if not result.passed:
                return Finding("capture", "torch.export or the lowering of an operator", str(result))
        return None

    def run(self) -> Finding | None:
        """The first wrong step after the capture."""
        whole = self.graph_fault(None)
        if whole:
            # one more where the compiler itself fails on the next change, which it does not come to log
            number, what = self.first_bad(self.graph_fault, len(self.context.log) + 1)
            return self.graph_finding(number, what or whole)
        return self.plan_finding(self.compiled(None))

    def compiled(self, limit: int | None) -> Compiled:
        """The graph with the first ``limit`` changes."""
        # time must not end a search: the changes have to be the same in every trial
        settings = SearchSettings(self.sizes, seconds=3600.0)
        context = self.context = Context(fuel=Fuel(limit), rules=self.rules, search=settings)
        passes = SEARCH_PIPELINE if self.optimize == "search" else PIPELINE
        rewritten = run_pipeline(self.capture.graph, context, passes=passes)
        fused = fuse(rewritten, context.fuel, FusionReport(), context.log)
        self.applications = max(self.applications, len(context.log))
        return Compiled(rewritten, fused, context)

    def graph_fault(self, limit: int | None) -> str:
        """How the interpreted graph after some changes differs; empty where it does not."""

        def run() -> list[Tensor]:
            made = self.compiled(limit)
            return self.values(made.fused, made.context.derived)

        return self.fault_of(run)

    def graph_finding(self, number: int, what: str) -> Finding:
        """What to say of the change of this number; 0 is the building of groups without any fusion."""
        try:
            made = self.compiled(number)
        except _FAILURES as error:
            return self.failure(number, what, error)
        application = made.context.log.applications[number - 1] if number else None
        if application is None or application.rule == FUSE:
            return fusion_finding(application, made.rewritten, made.fused, self.examiner, what)
        rule = next((r for group in self.rules.values() for r in group if r.name == application.rule), None)
        return rewrite_finding(application, rule, self.examiner, made.context.derived, what)

    def failure(self, number: int, what: str, error: Exception) -> Finding:
        """What to say of a change that makes the compiler itself fail."""
        log = self.context.log.applications
        if not 0 < number <= len(log):  # it failed before the change was made, and says where
            return Finding("rewrite", getattr(error, "rule", type(error).__name__), what, number)
        last = log[number - 1]
        sides = (brief(last.before, 3), brief(last.after, 3))
        return Finding("rewrite", last.rule, what, number, place(last.origin), *sides)

    # --- plans and native code ----------------------------------------------------------------------------------------

    def plan_finding(self, made: Compiled) -> Finding | None:
        """The first wrong placement or kernel of a graph that is right."""
        derived = made.context.derived
        table = KernelTable(self.target.machine, frozenset(m.target for m in self.capture.graph.mutations))
        final = legalise(made.fused, table)
        fault = self.fault_of(lambda: self.values(final, derived))
        if fault:
            return Finding("fusion", "taking apart what is no one kernel", fault)
        log = made.context.log
        before = len(log)
        plan = make_plan(final, table, made.context.fuel, log)
        self.applications, places = len(log), log.applications[before:]
        run = Replay(plan=plan, weights=self.weights(), derived=derived, hosts=(), graphs={}, kernels=())
        found = self.placement(run, table, places)
        if found is not None:
            return found
        run.use(plan)
        run.hosts, run.native = native_hosts(plan, self.target), True
        if any(not isinstance(host, TorchStep) for host in run.hosts):
            run.prepare = thread_pool(self.target.threads)
        what = self.plan_fault(run)
        if not what:
            return None
        found = self.placement(run, table, places) or kernel_finding(
            plan, self.operands(plan, derived), self.sizes, self.target, what
        )
        return found or Finding("run", "the executable", what)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights, which a run may change."""
        return {name: tensor.detach().clone() for name, tensor in self.capture.weights.items()}

    def plan_fault(self, executable: Replay) -> str:
        """How the results of a plan differ; empty where they do not."""

        def run() -> list[Tensor]:
            if self.capture.graph.mutations:
                executable.refresh(self.weights())
            return executable.run([x.clone() for x in self.tensors], self.sizes)

        return self.fault_of(run)

    def placement(self, executable: Replay, table: KernelTable, places: Sequence[Application]) -> Finding | None:
        """The first placement that breaks a plan; None where none does, or where the plan is wrong without any."""
        graph = executable.plan.graph

        def fault_at(count: int) -> str:
            executable.use(make_plan(graph, table, Fuel(count)))
            return self.plan_fault(executable)

        if not fault_at(len(places)) or fault_at(0):
            return None
        number, what = self.first_bad(fault_at, len(places))
        executable.use(make_plan(graph, table, Fuel(number)))
        return placement_finding(executable, self.sizes, places[number - 1], what or fault_at(number))

    def operands(self, plan: Plan, derived: Mapping[str, Node]) -> Callable[[Node], list[Tensor]]:
        """What each step of a plan reads, by interpretation of the graph."""
        wanted = list(dict.fromkeys(x for step in plan.steps for x in step.node.inputs))
        graph = Graph(plan.graph.inputs, wanted, symbols=plan.graph.symbols)
        values = dict(zip(wanted, self.values(graph, derived), strict=True))
        return lambda node: [values[x] for x in node.inputs]
