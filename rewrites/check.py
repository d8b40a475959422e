"""Translation validation: each application of a rule is held to its promise where it was made.

The nodes that an application replaced and their replacements are cut out down to what both share, and both are
evaluated on small sampled inputs. Where they differ, more of what is below is taken in: a guard may have looked
there. What differs even then is a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..ir import ops
from ..ir.errors import CheckError
from ..ir.graph import Graph
from ..ir.node import Node, Origin, topological
from ..ir.text import print_graph
from ..ir.types import SymbolRange
from .context import Step
from .log import Application
from .neighbourhood import MAX_DEPTH, Neighbourhoods, Pair
from .rule import EXACT, ROUNDING, Domain, Rule
from .trial import Counterexample, Holds, NoValue, disagreement, size_choices, tells

MAX_SHOWN = 16  # lines of a graph in a message
# How far to look: steps below which shared nodes become inputs, and steps after which anything does.
# No further: what a rule may know of its operands is near, and far below values saturate, which hides faults.
_REACH = ((0, MAX_DEPTH), (4, 2 * MAX_DEPTH), (12, 4 * MAX_DEPTH))
QUANTIZE = "quantize"  # the pass that puts weights of few bits in the place of others
HOW_TO_BISECT = "to find and reproduce it: smelt bisect MODEL, or smelt.runtime.bisect.bisect(model, args)"


@dataclass
class Verdicts:
    """What a check found.

    Attributes:
        mode: ``"rules"`` or ``"passes"``.
        checked: how many applications, passes and kernels were evaluated and agree.
        proved: how many were found equal without an evaluation: the two sides are one graph.
        distinct: how many different ones were evaluated; equal ones are evaluated once.
        skipped: how often each reason kept something from being checked.
    """

    mode: str
    checked: int = 0
    proved: int = 0
    distinct: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def skip(self, what: str, reason: str) -> None:
        """Note that something could not be checked."""
        self.skipped[f"{what}: {' '.join(reason.split())[:160]}"] += 1


@dataclass(frozen=True)
class Fault:
    """Two graphs that differ, and a trial in which they do."""

    pair: Pair
    example: Counterexample


class Examiner:
    """Compares nodes with their replacements, equal neighbourhoods once."""

    def __init__(self, symbols: Sequence[SymbolRange], holds: Holds = lambda sizes: True) -> None:
        self.around = Neighbourhoods(symbols)
        self.choices = size_choices(tuple(symbols), holds)
        self.known: dict[object, Fault | str | None] = {}

    def fault(self, before: Node, after: Node, tolerance: float = EXACT, domain: Domain = Domain.ANY) -> Fault | None:
        """How a replacement differs from what it replaces; None where it does not.

        Raises:
            NoValue: they could not be compared.
        """
        nearest: Fault | None = None
        for keep, depth in _REACH:
            pair = self.around.pair(before, after, keep, depth)
            try:
                found = self._judge(pair, tolerance, domain)
            except NoValue:
                if nearest is None:
                    raise
                continue
            if found is None and (nearest is None or tells(pair.before, self.choices, domain)):
                return None
            nearest = nearest or found
        return nearest

    def _judge(self, pair: Pair, tolerance: float, domain: Domain) -> Fault | None:
        key = (pair.before, pair.after, tolerance, domain)
        if key not in self.known:
            try:
                example = None if pair.before is pair.after else self._tried(pair, tolerance, domain)
                self.known[key] = None if example is None else Fault(pair, example)
            except NoValue as error:
                self.known[key] = str(error)
        found = self.known[key]
        if isinstance(found, str):
            raise NoValue(found)
        return found

    def _tried(self, pair: Pair, tolerance: float, domain: Domain) -> Counterexample | None:
        if any(node.attrs.get("serial") for graph in (pair.before, pair.after) for node in graph.nodes):
            raise NoValue("it draws random numbers")
        return disagreement(pair, self.choices, tolerance, domain)


class RuleChecker:
    """Checks every application of each pass; to be the observer of a :class:`Context`."""

    def __init__(self, graph: Graph, rules: Mapping[str, Sequence[Rule]], holds: Holds = lambda sizes: True) -> None:
        self.examiner = Examiner(graph.symbols, holds)
        self.rules = {rule.name: rule for group in rules.values() for rule in group}
        self.verdicts = Verdicts("rules")

    def __call__(self, step: Step) -> None:
        """Check what a pass did.

        Raises:
            CheckError: an application changed a value.
        """
        for application in step.applications:
            if application.rule == QUANTIZE:
                self.verdicts.skip(QUANTIZE, "it changes values, as was asked for: smelt.verify judges it")
            else:
                self.check(application, step.derived)
        self.verdicts.distinct = len(self.examiner.known)

    def check(self, application: Application, derived: Mapping[str, Node]) -> None:
        """Check one application; ``derived`` are the definitions of weights that are computed at load.

        Raises:
            CheckError: it changed a value.
        """
        try:
            fault = application_fault(self.examiner, application, self.rules.get(application.rule), derived)
        except NoValue as error:
            self.verdicts.skip(application.rule, str(error))
            return
        if fault is not None:
            raise CheckError(describe(application, fault), application.rule, application.number)
        self.verdicts.checked += 1


def application_fault(
    examiner: Examiner, application: Application, rule: Rule | None, derived: Mapping[str, Node]
) -> Fault | None:
    """How an application changed a value. A merge must keep values up to rounding, a constant in its own dtype.

    Raises:
        NoValue: its nodes could not be evaluated.
    """
    tolerance = promised(application, rule)
    domain = Domain.ANY if rule is None else rule.domain
    for before, after in application.replaced:
        fault = examiner.fault(before, defined(after, derived), tolerance, domain)
        if fault is not None:
            return fault
    return None


def promised(application: Application, rule: Rule | None) -> float:
    """The tolerance under which an application keeps values."""
    if rule is not None:
        return rule.tolerance
    return EXACT if application.rule == "hoist" else ROUNDING


def defined(node: Node, derived: Mapping[str, Node]) -> Node:
    """A node with the definitions of weights that are computed at load in their places."""
    names = {x: str(x.attrs["name"]) for x in topological((node,)) if x.op is ops.weight}
    if not any(name in derived for name in names.values()):
        return node
    new: dict[Node, Node] = {}
    for x in topological((node,)):
        definition = derived.get(names.get(x, ""))
        new[x] = x.with_inputs(tuple(new[y] for y in x.inputs)) if definition is None else definition
    return new[node]


# --- words ------------------------------------------------------------------------------------------------------------


def describe(application: Application, fault: Fault) -> str:
    """The message of a fault."""
    title = f"application {application.number}, {application.rule}, changed a value: {fault.example.what}"
    return fault_text(title, application.origin, fault)


def fault_text(title: str, origin: Origin, fault: Fault) -> str:
    """A title, the place in the model, both sides, and what to do next."""
    where = [f"  at {place(origin)}"] if place(origin) else []
    sides = [*shown("before", fault.pair.before), *shown("after", fault.pair.after)]
    return "\n".join([title, *where, *sides, HOW_TO_BISECT])


def place(origin: Origin) -> str:
    """Where in the model something came from: module and line."""
    return ", ".join(part for part in (origin.module, origin.source) if part)


def shown(title: str, graph: Graph, most: int = MAX_SHOWN) -> list[str]:
    """A graph in indented lines, the middle left out where it is long."""
    lines = print_graph(graph).splitlines()[1:-1]
    if len(lines) > most:
        lines = [*lines[: most // 2], f"  … {len(lines) - most + 1} more", *lines[-(most // 2 - 1) :]]
    return [f"  {title}:", *(f"  {line}" for line in lines)]
