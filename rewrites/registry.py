"""The rules that compilations use: the catalogue, and what users add to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from .certify.cases import certify as certify_rule
from .rule import Rule, RuleError, rules_by_name
from .rules import RULES

_ADDED: dict[str, tuple[str, Rule]] = {}  # the stage and the rule, by the rule's name
_LOCK = threading.RLock()
_certifying: ContextVar[bool] = ContextVar("certifying", default=True)


def all_rules() -> Mapping[str, Sequence[Rule]]:
    """The rules of each stage in the order in which they are tried: those registered after the catalogue's."""
    with _LOCK:
        added = list(_ADDED.values())
    return {name: (*rules, *(rule for stage, rule in added if stage == name)) for name, rules in RULES.items()}


def has_added() -> bool:
    """Whether users have registered rules."""
    return bool(_ADDED)


@contextmanager
def uncertified() -> Iterator[None]:
    """Meanwhile rules are registered as they are: for those who certify them afterwards."""
    token = _certifying.set(False)
    try:
        yield
    finally:
        _certifying.reset(token)


def register_rule(rule: Rule, stage: str = "simplify", certify: bool = True) -> Rule:
    """Let a rule take part in every compilation that begins after this.

    Args:
        rule: the rule; its name must be new.
        stage: the stage in which it joins: ``"canonicalise"``, ``"recognise"`` or ``"simplify"``. It stays for the
            stages after.
        certify: try it on random cases of its samples first, alone and together with all other rules.

    Returns:
        The rule.

    Raises:
        RuleError: there is no such stage, another rule has this name, or the rule is faulty: the message lists how.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"register_rule takes a Rule, not {rule!r}")
    with _LOCK:
        rules = all_rules()
        if stage not in rules:
            raise RuleError(f"there is no stage {stage!r} for the rule {rule.name}: choose from {', '.join(rules)}")
        together = rules_by_name(rules)
        if rule.name in together:
            raise RuleError(f"a rule is called {rule.name} already: give another name, or unregister that one first")
        faults = certify_rule(rule, list(together.values())) if certify and _certifying.get() else []
        if faults:
            listed = "\n".join(f"  {fault.check}: {fault.detail}" for fault in faults)
            raise RuleError(f"the rule {rule.name} was not registered, for it is faulty:\n{listed}")
        _ADDED[rule.name] = stage, rule
    return rule


def unregister_rule(rule: Rule | str) -> None:
    """Take a registered rule, or the one of this name, out of compilations that begin after this.

    Raises:
        RuleError: no such rule was registered.
    """
    name = rule if isinstance(rule, str) else rule.name
    with _LOCK:
        if name not in _ADDED or not (isinstance(rule, str) or _ADDED[name][1] is rule):
            raise RuleError(f"no rule {name} is registered; there are: {', '.join(_ADDED) or 'none'}")
        del _ADDED[name]
