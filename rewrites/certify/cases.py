"""The harness that every rule is held to.

A certificate is earned on the rule's own samples, for random sizes, dtypes and values: the replacement has the type and
the value of what it replaces, the rule fires on its samples and refuses its near misses, its guard does refuse
something, it does not fire on its own result, and together with all other rules it comes to an end.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...ir import ops
from ...ir.errors import SmeltError
from ...ir.graph import Graph
from ...ir.node import Node, Trait, topological
from ...ir.types import Dim, symbol
from ..driver import RuleSet, rewrite
from ..instance import instantiate
from ..log import Log
from ..pattern import Match, brief
from ..rule import EXACT, Domain, Rule, RuleError
from ..sample import DTYPE_CLASSES, Sample
from ..values import Inputs, difference
from .measure import falls

SIZES = (1, 2, 3, 5, 8, 0)  # of dims in lower case; the last is rare
NUMBERS = (1, 2, 3, 4)  # of dims with a capital
CORNERS = {1: 0, 3: 1}  # the size of all dims in lower case, in the second and the fourth case of a sample


@dataclass(frozen=True)
class Fault:
    """One way in which a rule breaks a promise."""

    rule: str
    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.check}: {self.detail}"


def certify(rule: Rule, rules: Sequence[Rule] = (), cases: int = 20, seed: int = 0) -> list[Fault]:
    """The faults of a rule, none for a sound one; ``rules`` are those that it will run with, ``cases`` are per sample.

    The same arguments draw the same cases.
    """
    return list(Harness(rule, RuleSet([rule, *(r for r in rules if r is not rule)]), cases, seed).faults())


class Harness:
    """One rule on trial; ``random`` draws whatever a case leaves open."""

    def __init__(self, rule: Rule, together: RuleSet, cases: int, seed: int) -> None:
        self.rule, self.together, self.cases = rule, together, cases
        self.applications = 0  # how many were measured
        self.rising: set[str] = set()  # rules with an application that did not lower the measure of ``measure.py``
        self.random = random.Random(zlib.crc32(rule.name.encode()) + seed)

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the rule, on its samples and its near misses."""
        missing = list(self.form_faults())
        if missing:
            yield from missing
            return
        for sample in self.rule.samples:
            yield from self.sample_faults(sample)
        yield from self.near_miss_faults()

    def form_faults(self) -> Iterator[Fault]:
        """What is missing in the rule's declaration."""
        needed = {"samples": self.rule.samples, "near misses": self.rule.near_misses}
        missing = [name for name, given in needed.items() if not given]
        if missing:
            yield self.fault("samples", f"a rule needs {' and '.join(missing)}")

    def fault(self, check: str, detail: str) -> Fault:
        """A fault of this rule."""
        return Fault(self.rule.name, check, detail)

    def draw(self, sample: Sample, symbolic: bool, corner: int | None = None) -> Mapping[str, Any]:
        """What the variables stand for in one random case of a sample; ``corner`` is the size of every free dim."""
        sizes: dict[str, Dim] = {}
        for name in sample.dims:
            fixed = name[0].isupper()
            choices = NUMBERS if fixed else self.sizes() if corner is None else (corner,)
            sizes[name] = symbol(name) if symbolic and not fixed else self.random.choice(choices)
        dtypes = {word: self.random.choice(DTYPE_CLASSES[word]) for word in sample.dtypes}
        return sample.bindings(self.rule.variables, sizes, dtypes)

    def sizes(self) -> Sequence[int]:
        """The sizes to choose from for a free dim."""
        return SIZES if self.random.random() < 0.1 else SIZES[:-1]

    # --- samples

    def sample_faults(self, sample: Sample) -> Iterator[Fault]:
        """The first fault of a sample."""
        compared = 0
        for case in range(self.cases):
            bindings = self.draw(sample, symbolic=case % 2 == 0, corner=CORNERS.get(case))
            found = self.case(bindings, stepwise=case % 3 == 0)
            if isinstance(found, Fault):
                yield found
                return
            compared += found
        if not compared:
            yield self.fault("samples", "a sample has no value in any case")

    def case(self, bindings: Mapping[str, Any], stepwise: bool) -> Fault | bool:
        """What is wrong in one case, or whether there were values to compare; ``stepwise`` rounds after each step."""
        node = instantiate(self.rule.pattern, bindings)
        return self.case_fault(in_steps(node) if stepwise and self.rule.through_casts else node)

    def case_fault(self, node: Node) -> Fault | bool:
        """What is wrong with the rule on one node, or whether there were values to compare."""
        try:
            made = self.rule.apply(node)
        except RuleError as error:
            return self.fault("type", str(error))
        if made is None:
            return self.fault("fires", f"{self.rule.explain(node)}")
        if self.fires_on(made):
            return self.fault("fires twice", f"{brief(node)} -> {brief(made)}")
        self.measure(self.rule.name, node, made)
        found = self.compare(node, made, [self.rule])
        return found if isinstance(found, Fault) else self.final_fault(node) or found

    def fires_on(self, node: Node) -> bool:
        """Whether the rule fires on a node or anything below it."""
        try:
            return rewrite(Graph((), (node,)), RuleSet([self.rule])).outputs[0] is not node
        except RuleError:
            return True

    def final_fault(self, node: Node) -> Fault | None:
        """What is wrong with all rules together on one node."""
        log = Log()
        try:
            final = rewrite(Graph((), (node,)), self.together, log=log).outputs[0]
        except RuleError as error:
            return self.fault("termination", str(error))
        for application in log:
            self.measure(application.rule, application.before, application.after)
        found = self.compare(node, final, [rule for rule in self.together.rules if rule.name in log.counts()])
        return found if isinstance(found, Fault) else None

    def measure(self, rule: str, before: Node, after: Node) -> None:
        """Note whether an application of a rule lowered the measure by which rewriting ends."""
        self.applications += 1
        if rule not in self.rising and not falls(before, after, ()):
            self.rising.add(rule)

    def compare(self, before: Node, after: Node, rules: Sequence[Rule]) -> Fault | bool:
        """Whether two nodes have one value under the promises of the rules that led from one to the other."""
        tolerance = max(rule.tolerance for rule in rules)
        domain = max((rule.domain for rule in rules), key=list(Domain).index)
        inputs = Inputs((before, after), domain, tolerance != EXACT, self.random)
        try:
            expected = inputs.evaluate(before)
        except (RuntimeError, IndexError):
            return False  # no value to keep, as for the largest of no elements
        names = ", ".join(rule.name for rule in rules)
        try:
            found = difference(expected, inputs.evaluate(after), tolerance)
        except (RuntimeError, IndexError) as error:
            found = f"no value ({error})"
        return self.fault("value", f"{found}: {brief(before)} -> {brief(after)} by {names}") if found else True

    # --- near misses

    def near_miss_faults(self) -> Iterator[Fault]:
        """What the rule takes though it should not, and a guard that has never been seen to refuse."""
        guarded = False
        for i, miss in enumerate(self.rule.near_misses):
            for symbolic in (False, True):
                node = self.near_miss(miss, symbolic)
                found = self.rule.explain(node)
                if isinstance(found, Match):
                    yield self.fault("refuses", f"it fires on near miss {i}: {brief(node)}")
                    return
                guarded = guarded or "guard" in found.reason
        if self.rule.when is not None and not guarded:
            yield self.fault("guard", "no near miss reaches the guard: it has never been seen to refuse")

    def near_miss(self, miss: Any, symbolic: bool) -> Node:
        """The node of a near miss, for random sizes."""
        if isinstance(miss, Sample):
            return instantiate(self.rule.pattern, self.draw(miss, symbolic))
        return build(miss, self.draw(self.rule.samples[0], symbolic))


def in_steps(node: Node) -> Node:
    """A node whose operators on elements of a half type are each computed in float32 and rounded."""
    made: dict[Node, Node] = {}
    for x in topological((node,)):
        same = x.with_inputs(tuple(made[y] for y in x.inputs))
        half = x.has(Trait.POINTWISE) and x.dtype in ops.HALF and x.op is not ops.cast and x is not node
        made[x] = ops.cast(x.op(*map(_widened, same.inputs), **x.attrs), dtype=x.dtype) if half else same
    return made[node]


def _widened(x: Node) -> Node:
    if x.dtype not in ops.HALF:
        return x
    if x.op is ops.full:
        return ops.full(**{**x.attrs, "dtype": torch.float32})
    return ops.cast(x, dtype=torch.float32)


def build(function: Any, bindings: Mapping[str, Any]) -> Node:
    """Call a near miss with the variables that it names."""
    code = function.__code__
    plain = code.co_varnames[: code.co_argcount]
    starred = code.co_varnames[code.co_argcount : code.co_argcount + bool(code.co_flags & 4)]
    node = function(*(bindings[name] for name in plain), *(x for name in starred for x in bindings[name]))
    if not isinstance(node, Node):
        raise SmeltError(f"a near miss is {node!r}, not a node")
    return node
