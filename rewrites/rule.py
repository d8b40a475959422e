"""Rules: a picture before, a picture after, and everything needed to hold the two to the same meaning."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir.errors import SmeltError, TypeRuleError
from ..ir.node import WILDCARD, Node, OpDef, Var
from ..ir.types import UnknownType
from .instance import variables
from .pattern import REST, Bindings, Furthest, Match, Mismatch, brief, matches, rest, without_casts
from .sample import Sample

EXACT = 0.0  # the same bits, in every dtype
ROUNDING = 1e-10  # the same real function: float64 results differ by rounding alone


class RuleError(SmeltError, ValueError):
    """A rule that is not well formed, or that broke its promise when it was applied: a bug in the rule it names."""


class Domain(enum.Enum):
    """The values of floating-point operands for which a rule promises its tolerance."""

    ANY = "any"  # NaN, infinities, both zeros, the smallest and the largest numbers
    FINITE = "finite"  # finite numbers of moderate size, where nothing overflows
    POSITIVE = "positive"  # the same, above zero


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rule:
    """A rewrite: wherever ``before`` fits and ``when`` agrees, ``after`` may stand instead.

    The parameters of ``before`` are the variables: it is called with them once, and what it builds with the IR's
    constructors is the pattern. A starred parameter stands for the operands that are left. ``after`` and ``when`` name
    the variables that they use, and ``root`` for the node that ``before`` fits; they get nodes and attribute values.
    A double-starred parameter gets all variables that are not named.

    Attributes:
        name: in kebab-case.
        before: builds the pattern.
        after: builds the replacement, of exactly the type of what it replaces.
        samples: operands and attributes on which the rule must fire.
        near_misses: what it must refuse: samples that fit the pattern and fail the guard, and functions that build
            another node from the first sample's operands.
        when: the guard.
        tolerance: ``EXACT``, ``ROUNDING`` or a relative error, in float64.
        domain: the values for which that is promised.
        through_casts: fit what computes some steps of a half type in float32 as well. Operands are then bound without
            casts to float32, so ``after`` has to bring them to the dtype of the root.

    Raises:
        RuleError: a variable of ``after`` or ``when`` is not in the pattern, or one of ``before`` is not used.
    """

    name: str
    before: Callable[..., Node]
    after: Callable[..., Node]
    samples: Sequence[Sample]
    near_misses: Sequence[Sample | Callable[..., Node]] = ()
    when: Callable[..., bool] | None = None
    tolerance: float = EXACT
    domain: Domain = Domain.ANY
    through_casts: bool = False
    pattern: Node = field(init=False)
    variables: Mapping[str, OpDef | None] = field(init=False)

    def __post_init__(self) -> None:
        self._check_fields()
        self._set("pattern", self._draw())
        self._set("variables", self._ordered(variables(self.pattern)))
        self._set("_after", _by_name(self.after, self, "after"))
        self._set("_when", _by_name(self.when, self, "when") if self.when else None)
        needs = (x.op for x in self.pattern.inputs if x.op not in (WILDCARD, REST))
        self._set("_needs", frozenset(needs))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_fields(self) -> None:
        wrong = {
            "name": not isinstance(self.name, str) or not self.name,
            "before": not callable(self.before),
            "after": not callable(self.after),
            "when": not (self.when is None or callable(self.when)),
            "samples": not _is_list(self.samples, lambda x: isinstance(x, Sample)),
            "near_misses": not _is_list(self.near_misses, lambda x: isinstance(x, Sample) or callable(x)),
            "tolerance": not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < 1,
            "domain": not isinstance(self.domain, Domain),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise RuleError(f"rule {self.name}: `{name}` is {_WANTED[name]}, not {getattr(self, name)!r}")

    def _draw(self) -> Node:
        """Call ``before`` on variables."""
        parameters = inspect.signature(self.before).parameters.values()
        starred = inspect.Parameter.VAR_POSITIONAL
        arguments = [rest(p.name) if p.kind is starred else Var(p.name) for p in parameters]
        try:
            pattern = self.before(*arguments)
        except TypeRuleError as error:
            raise RuleError(f"rule {self.name}: `before` is no pattern: {error}") from error
        if not isinstance(pattern, Node) or not isinstance(pattern.type, UnknownType) or pattern.op in (WILDCARD, REST):
            raise RuleError(f"rule {self.name}: `before` must build a pattern around an operator, not {pattern!r}")
        return pattern

    def _ordered(self, found: dict[str, OpDef | None]) -> dict[str, OpDef | None]:
        """The pattern's variables in the order of the parameters of ``before``."""
        declared = list(inspect.signature(self.before).parameters)
        unused = [name for name in declared if name not in found]
        if unused or "root" in declared:
            raise RuleError(f"rule {self.name}: `before` does not use its variable {', '.join(unused or ['root'])}")
        return {name: found[name] for name in declared}

    @property
    def op(self) -> OpDef:
        """The operator of the nodes that the rule may fire on."""
        return self.pattern.op

    def may_fit(self, node: Node) -> bool:
        """Whether the operators directly below the node allow a match: a cheap test before the real one."""
        operands = map(without_casts, node.inputs) if self.through_casts else node.inputs
        return not self._needs or self._needs.issubset([x.op for x in operands])

    def apply(self, node: Node) -> Node | None:
        """The replacement of a node, or None where the rule does not apply.

        Raises:
            RuleError: ``after`` failed or built a node of another type.
        """
        if not self.may_fit(node):
            return None
        for bindings in self._agreed(node, None):
            return self._replacement(node, bindings)
        return None

    def replacement(self, node: Node, bindings: Bindings) -> Node | None:
        """The replacement of a node that equals the pattern for these bindings; None where the guard refuses it.

        Raises:
            RuleError: ``after`` failed or built a node of another type.
        """
        agreed = self._when is None or self._when(node, bindings)
        return self._replacement(node, bindings) if agreed else None

    def explain(self, node: Node) -> Match | Mismatch:
        """How the rule fits a node, or why it does not."""
        furthest = Furthest()
        for bindings in self._agreed(node, furthest):
            return Match(node, bindings)
        return furthest.mismatch(node)

    def _agreed(self, node: Node, furthest: Furthest | None) -> Iterator[Bindings]:
        for bindings in matches(self.pattern, node, furthest, self.through_casts):
            if self._when is None or self._when(node, bindings):
                yield bindings
            elif furthest is not None:
                furthest.note(COMPLETE, node, lambda: f"the guard of {self.name} refused it")

    def _replacement(self, node: Node, bindings: Bindings) -> Node:
        try:
            made = self._after(node, bindings)
        except TypeRuleError as error:
            raise RuleError(f"rule {self.name} cannot build its replacement of {brief(node)}: {error}") from error
        if not isinstance(made, Node):
            raise RuleError(f"rule {self.name}: `after` must build a node, not {made!r}")
        if made.type != node.type:
            raise RuleError(f"rule {self.name} replaced {brief(node)} by another type: {brief(made)}")
        return made

    def __repr__(self) -> str:
        return f"<rule {self.name}>"

    # set when the rule is built
    _after: Callable[[Node, Bindings], Any] = field(init=False, repr=False)
    _when: Callable[[Node, Bindings], Any] | None = field(init=False, repr=False)
    _needs: frozenset[OpDef] = field(init=False, repr=False)


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and all(map(fits, value))


_WANTED = {
    "name": "a text that is not empty",
    "before": "a function of the variables",
    "after": "a function of the variables",
    "when": "a function of the variables or None",
    "samples": "a list of samples, which shapes(...) makes",
    "near_misses": "a list of samples and of functions that build nodes",
    "tolerance": "EXACT, ROUNDING or a relative error below 1",
    "domain": "a Domain",
}
COMPLETE = 1_000_000  # further than any pattern: all of it matched


def _by_name(function: Callable[..., Any], rule: Rule, role: str) -> Callable[[Node, Bindings], Any]:
    """A function of the matched node and its bindings that calls ``function`` with the variables that it names."""
    parameters = inspect.signature(function).parameters
    starred = [name for name, p in parameters.items() if p.kind is inspect.Parameter.VAR_POSITIONAL]
    double = [name for name, p in parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD]
    plain = [name for name in parameters if name not in starred + double]
    unbound = [name for name in plain + starred if name not in rule.variables and name != "root"]
    if unbound:
        raise RuleError(f"rule {rule.name}: `{role}` uses {', '.join(unbound)}, which `before` does not bind")
    others = [name for name in rule.variables if name not in plain + starred] if double else []

    def call(root: Node, bindings: Bindings) -> Any:
        given = [root if name == "root" else bindings[name] for name in plain]
        operands = (node for name in starred for node in bindings[name])
        return function(*given, *operands, **{name: bindings[name] for name in others})

    return call


def rules_by_name(groups: Mapping[str, Sequence[Rule]]) -> dict[str, Rule]:
    """The rules of all groups by name.

    Raises:
        RuleError: two rules have one name.
    """
    found: dict[str, Rule] = {}
    for rule in (rule for group in groups.values() for rule in group):
        if found.setdefault(rule.name, rule) is not rule:
            raise RuleError(f"two rules are called {rule.name}")
    return found
