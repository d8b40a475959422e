"""What one needs to write a rewrite rule: ``from smelt.rules import Rule, ops, shapes``. See ``docs/rules.md``."""

from .ir import ops
from .rewrites.certify import Fault, certify
from .rewrites.pattern import ANY, constant, near, rest
from .rewrites.registry import all_rules, register_rule, unregister_rule
from .rewrites.rule import EXACT, ROUNDING, Domain, Rule, RuleError
from .rewrites.sample import Sample, shapes

__all__ = [
    "ANY",
    "EXACT",
    "ROUNDING",
    "Domain",
    "Fault",
    "Rule",
    "RuleError",
    "Sample",
    "all_rules",
    "certify",
    "constant",
    "near",
    "ops",
    "register_rule",
    "rest",
    "shapes",
    "unregister_rule",
]
