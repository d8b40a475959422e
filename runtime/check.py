"""What ``compile(check=...)`` does on the way: rules, or passes and kernel programs, held to what came before.

``"rules"`` evaluates the neighbourhood of every application (see ``rewrites/check.py``). ``"passes"`` interprets the
whole graph around each pass, on small sampled inputs and weights, and every kernel program beside its region. Both look
at fusion and at the placement of intermediates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ..frontend.capture import Capture
from ..ir.errors import CheckError
from ..ir.graph import Graph
from ..ir.node import Node
from ..rewrites.check import HOW_TO_BISECT, RuleChecker, Verdicts, fault_text, shown
from ..rewrites.context import Context, Step
from ..rewrites.inline import inline
from ..rewrites.log import FUSE, PLACE, Log
from ..rewrites.neighbourhood import first_differences
from ..rewrites.rule import ROUNDING
from ..rewrites.trial import NoValue, Sizes
from .check_kernels import program_fault
from .check_passes import PassChecker
from .check_plan import conflicts
from .compiled import Compiled
from .plan import KernelStep, Plan

CHECKS = ("rules", "passes")
Check = Literal["rules", "passes"] | None


class Checker:
    """The check of one compilation; its parts are called in the order of the pipeline."""

    def __init__(self, mode: Check, capture: Capture, context: Context) -> None:
        self.capture = capture
        self.rules = RuleChecker(capture.graph, context.rules, self.holds)
        self.passes = PassChecker(capture.graph, self.rules.examiner.choices) if mode == "passes" else None
        self.verdicts = self.rules.verdicts if self.passes is None else self.passes.verdicts
        context.observe = self.rules if self.passes is None else self.passes

    def holds(self, sizes: Sizes) -> bool:
        """Whether the capture is for these sizes."""
        return all(guard.holds(sizes) for guard in self.capture.guards)

    def fused(self, graph: Graph, fused: Graph, context: Context) -> None:
        """Check fusion.

        Raises:
            CheckError: it changed more than how operators are grouped.
        """
        if self.passes is not None:
            self.passes(Step(FUSE, graph, fused, (), context.derived))
        else:
            check_fusion(self.rules, graph, fused, context.log)

    def lowered(self, fused: Graph, final: Graph, plan: Plan, derived: Mapping[str, Node]) -> None:
        """Check kernel programs, where that was asked for.

        Raises:
            CheckError: a program differs from its region.
        """
        if self.passes is not None:
            self.passes(Step("lower", fused, final, (), derived))
            check_programs(plan, self.rules.examiner.choices, self.verdicts)

    def placed(self, executable: Compiled) -> None:
        """Check where intermediates lie.

        Raises:
            CheckError: two values share memory while both are needed.
        """
        if not self.rules.examiner.choices:
            self.verdicts.skip(PLACE, "no sizes were found that the guards allow")
        for sizes in self.rules.examiner.choices:
            for one, other in conflicts(executable, sizes):
                what = f"placement is wrong: {one} and {other} share memory while both are needed"
                raise CheckError(f"{what}\n{HOW_TO_BISECT}", PLACE)
        self.verdicts.checked += bool(self.rules.examiner.choices)
        executable.checks = self.verdicts


def check_fusion(rules: RuleChecker, graph: Graph, fused: Graph, log: Log) -> None:
    """That a fused graph is the graph with its operators grouped, or means the same.

    Raises:
        CheckError: it means something else; the message names the fusions around the first difference.
    """
    plain, count = inline(fused), log.counts()[FUSE]
    if plain is graph:
        rules.verdicts.proved += count
        return
    for before, after in first_differences(graph.roots, plain.roots):
        try:
            fault = rules.examiner.fault(before, after, ROUNDING)
        except NoValue as error:
            rules.verdicts.skip(FUSE, str(error))
            continue
        if fault is not None:
            near = [a.number for a in log if a.rule == FUSE and before in (a.before, a.after)]
            message = fault_text(f"fusion changed a value: {fault.example.what}", before.origin, fault)
            raise CheckError(message, FUSE, near[-1] if near else None)
    rules.verdicts.checked += count


def check_programs(plan: Plan, choices: Sequence[Sizes], verdicts: Verdicts) -> None:
    """That the program of every kernel computes its region, on sampled operands.

    Raises:
        CheckError: one does not.
    """
    steps = {step.kernel.name: step for step in plan.steps if isinstance(step, KernelStep)}
    for name, step in steps.items():
        try:
            found = next(filter(None, (program_fault(step, sizes) for sizes in choices)), "")
        except NoValue as error:
            verdicts.skip("kernel program", str(error))
            continue
        if found:
            lines = [f"the program of kernel {name} is not what its region means: {found}"]
            lines += shown("region", step.kernel.region)
            raise CheckError("\n".join([*lines, HOW_TO_BISECT]), name)
        verdicts.checked += bool(choices)
        verdicts.distinct += bool(choices)
