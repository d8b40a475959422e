"""What a bisection says of the step that it found, and the script that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..ir import ops
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node
from ..ir.text import print_graph
from ..rewrites.check import Examiner, Fault, application_fault, place, promised
from ..rewrites.inline import inline
from ..rewrites.log import FUSE, Application
from ..rewrites.neighbourhood import first_differences
from ..rewrites.pattern import brief
from ..rewrites.rule import ROUNDING, Rule
from ..rewrites.trial import NoValue, Sizes, Style, draw_inputs
from .check_kernels import run_program
from .check_plan import conflicts
from .contract import compare
from .finding import Finding
from .kernels import layouts_of, region_of
from .plan import KernelStep, Plan
from .probe import Probes
from .replay import Replay
from .script import MAX_LINES, kernel_script, placement_script, rewrite_script
from .target import Target

_SEEDS = 3  # draws of operands in which a script tries to show a wrong kernel


def rewrite_finding(
    application: Application, rule: Rule | None, examiner: Examiner, derived: Mapping[str, Node], what: str
) -> Finding:
    """A wrong application of a rule, a merge, or a weight computed at load."""
    try:
        fault = application_fault(examiner, application, rule, derived)
    except NoValue:
        fault = None
    return _finding("rewrite", application, application.before, fault, promised(application, rule), what)


def fusion_finding(
    application: Application | None, graph: Graph, fused: Graph, examiner: Examiner, what: str
) -> Finding:
    """A wrong fusion; without an application, groups that are wrong before any two became one."""
    fault, at = None, None if application is None else application.after
    for before, after in first_differences(graph.roots, inline(fused).roots):
        at = at or before
        try:
            fault = fault or examiner.fault(before, after, ROUNDING)
        except NoValue:
            continue
    return _finding("fusion", application, at, fault, ROUNDING, what)


def _finding(
    stage: str, application: Application | None, at: Node | None, fault: Fault | None, tolerance: float, what: str
) -> Finding:
    number, rule = (None, FUSE) if application is None else (application.number, application.rule)
    where = "" if at is None else place(at.origin)
    if fault is None:
        sides = ("", "") if application is None else (brief(application.before, 3), brief(application.after, 3))
        return Finding(stage, rule, what, number, where, *sides)
    title = f"Application {number}, {rule}, changes a value: {fault.example.what}."
    if fault.example.style.widen:
        tolerance = max(tolerance, ROUNDING)
    script = rewrite_script(_with_place(title, where), fault, tolerance)
    before, after = print_graph(fault.pair.before), print_graph(fault.pair.after)
    return Finding(stage, rule, what, number, where, before, after, _short(script))


def placement_finding(executable: Replay, sizes: Sizes, application: Application, what: str) -> Finding:
    """A wrong placement: the values that share memory while both are needed."""
    value = application.before
    where, names = place(value.origin), executable.plan.owners()
    found = conflicts(executable, sizes)
    mine = [pair for pair in found if value in (names[pair[0].position], names[pair[1].position])] or found
    if not mine:
        return Finding("placement", application.rule, what, application.number, where, brief(value))
    texts = [f"{lies}: {brief(names[lies.position])}" for lies in mine[0]]
    title = f"Application {application.number}, {application.rule}: two values share memory while both are needed."
    script = placement_script(_with_place(title, where), mine[0], max(lies.stop for lies in mine[0]))
    one, other = texts
    return Finding("placement", application.rule, what, application.number, where, one, other, _short(script))


def kernel_finding(
    plan: Plan, operands: Callable[[Node], list[Tensor]], sizes: Sizes, target: Target, what: str
) -> Finding | None:
    """The first kernel that differs from its region; None where all agree."""
    steps = [step for step in plan.steps if isinstance(step, KernelStep)]
    probes = Probes(steps, target)
    for step in steps:
        given = operands(step.node)
        if not kernel_fault(probes, step, given, sizes):
            continue
        stage = "program" if _program_fault(step, given, sizes) else "kernel"
        where = place(step.node.origin)
        region = region_of(step.node)
        script = _kernel_script(probes, step, sizes, stage, where)
        program = f"{stage} {step.kernel.name}"
        return Finding(stage, step.kernel.name, what, None, where, print_graph(region), program, script)
    return None


def kernel_fault(probes: Probes, step: KernelStep, operands: Sequence[Tensor], sizes: Sizes) -> str:
    """How a kernel differs from its region for some operands; empty where it does not."""
    try:
        found = probes.run(step, operands, sizes)
    except IndexError as error:
        return str(error)
    return _fault(step, operands, sizes, found)


def _program_fault(step: KernelStep, operands: Sequence[Tensor], sizes: Sizes) -> str:
    try:
        found = run_program(step, operands, sizes)
    except (AssertionError, IndexError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return _fault(step, operands, sizes, found)


def _fault(step: KernelStep, operands: Sequence[Tensor], sizes: Sizes, found: Sequence[Tensor]) -> str:
    region = region_of(step.node)
    eager = interpret(region, operands, {}, sizes=sizes).outputs
    exact = interpret(region, operands, {}, sizes=sizes, dtype=torch.float64).outputs
    results = (compare("result", *values) for values in zip(found, eager, exact, strict=True))
    return next((str(result) for result in results if not result.passed), "")


def _kernel_script(probes: Probes, step: KernelStep, sizes: Sizes, stage: str, where: str) -> str:
    """A script for the first draw of operands in which the kernel is wrong."""
    region = region_of(step.node)
    weights = [i for i, x in enumerate(step.node.inputs) if x.is_a(ops.weight)]
    wrong = "program differs from its region" if stage == "program" else "code differs from its program"
    title = _with_place(f"The kernel of this region is wrong: its {wrong}.", where)
    for seed in range(_SEEDS):
        if kernel_fault(probes, step, draw_inputs(region, sizes, Style(), seed), sizes):
            return _short(kernel_script(title, region, sizes, layouts_of(step.node), weights, seed))
    return ""


def _with_place(title: str, where: str) -> str:
    return f"{title}\n\nIn the model: {where}." if where else title


def _short(script: str) -> str:
    """A script that fits on a screen; none where it does not."""
    return script if script.count("\n") <= MAX_LINES else ""
