"""Certificates: what is known of a rule, and how strongly.

A certificate has one of four statuses.

- **proved**: for every sample and every choice of its dtypes, a solver proved both sides equal at every position, for
  all values of the operands and all sizes, as symbols; and for the sizes of a grid of numbers, since a rule may build
  something else where a size is a number. What an attribute of a sample fixes (an axis, a constant) is proved for that.
  Equal means: the same operations on the same elements, in any arithmetic; or the same bits, in IEEE 754 and machine
  integers of the dtype; or, for rules that promise the same real function of finite operands, the same real number.
  Operators on elements are taken to be functions of these alone, composites to be their decomposition, and sizes not to
  overflow 64 bits.
- **exact**: the two sides are the same rational functions (with exponentials, and random functions for all else) at
  random points of a finite field, at sizes that were drawn; or the same bits for all values of a finite domain. The
  probability of an error is reported.
- **tested**: no fault was found in the cases drawn.
- **faulty**: a fault was found, whatever else holds.

All but the last have passed the harness of ``cases.py`` as well. A proof does not replace it: it is of the graph's
meaning, and the cases run the real operators, NaN, infinities and rounding included.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ...ir.errors import UnsupportedError
from ...ir.node import Node
from ..driver import RuleSet
from ..instance import instantiate
from ..rule import EXACT, Rule
from ..sample import DTYPE_CLASSES
from .cases import Fault, Harness
from .field import agree
from .positions import BeyondProofError

STATUSES = ("proved", "exact", "tested", "faulty")
POINTS = 4  # of each sample at which a rule is evaluated over finite fields
FIELD_SIZES = (2, 1, 3)


@dataclass(frozen=True)
class Certificate:
    """What is known of one rule.

    Attributes:
        rule: its name.
        status: one of ``STATUSES``.
        faults: what is wrong with it, one fault for each check that failed.
        cases: how many cases were drawn.
        compared: in how many of them there were values to compare.
        readings: how the solver read elements, for a proof; empty without one.
        instances: how many pairs of graphs were proved equal.
        points: at how many points of a finite field the sides agreed; 0 where they could not be evaluated.
        error: the probability, at most, that different functions agree at one of the points.
        why: why there is no proof, and no exact evaluation; empty where there is.
        seconds: how long it took.
    """

    rule: str
    status: str
    faults: Sequence[Fault]
    cases: int
    compared: int
    readings: Sequence[str] = ()
    instances: int = 0
    points: int = 0
    error: float = 0.0
    why: Sequence[str] = field(default_factory=tuple)
    seconds: float = 0.0

    @property
    def evidence(self) -> str:
        """What the status rests on, in a few words."""
        if self.faults:
            return str(self.faults[0])
        if self.readings:
            return ", ".join(self.readings)
        return f"{self.points} points, error below {self.error:.0e}" if self.points else f"{self.compared} cases"


def examine(rule: Rule, rules: Sequence[Rule] = (), cases: int = 200, seed: int = 0) -> Certificate:
    """The certificate of a rule, which will run with ``rules``; the same arguments draw the same cases.

    Raises:
        UnsupportedError: z3-solver or hypothesis is not installed.
    """
    started = time.perf_counter()
    prover, drawn = _optional("proof", "z3", "z3-solver"), _optional("drawn", "hypothesis", "hypothesis")
    harness = Harness(rule, RuleSet([rule, *(r for r in rules if r is not rule)]), 1, seed)
    faults = list(harness.form_faults())
    tried = drawn.Drawn()
    if not faults:
        tried = drawn.search(harness, cases, seed)
        faults += [tried.fault] if tried.fault else []
        faults += harness.near_miss_faults()
    found = _Evidence() if faults else _evidence(rule, prover, seed)
    return Certificate(
        rule=rule.name,
        status="faulty" if faults else found.status(rule),
        faults=tuple(faults),
        cases=tried.cases,
        compared=tried.compared,
        readings=found.readings,
        instances=found.instances,
        points=found.points,
        error=found.error,
        why=tuple(found.why),
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Evidence:
    """What goes beyond cases."""

    readings: Sequence[str] = ()
    instances: int = 0
    points: int = 0
    error: float = 0.0
    why: list[str] = field(default_factory=list)

    def status(self, rule: Rule) -> str:
        """The status of a rule without faults."""
        if self.readings:
            return "proved"
        return "exact" if self.points and rule.tolerance != EXACT else "tested"


def _evidence(rule: Rule, prover: Any, seed: int) -> _Evidence:
    found = _Evidence()
    try:
        proof = prover.prove(rule)
        found.readings, found.instances = proof.readings, proof.instances
    except BeyondProofError as error:
        found.why.append(str(error))
    try:
        errors = [agree(before, after, seed + i) for i, (before, after) in enumerate(_points(rule))]
        found.points, found.error = len(errors), max(errors)
    except BeyondProofError as error:
        found.why.append(str(error))
    return found


def _points(rule: Rule) -> Iterator[tuple[Node, Node]]:
    """A rule's samples at small sizes, and what it makes of them."""
    for sample in rule.samples:
        for point in range(POINTS):
            turns = itertools.cycle(FIELD_SIZES[point % len(FIELD_SIZES) :] + FIELD_SIZES[: point % len(FIELD_SIZES)])
            sizes = {name: next(turns) for name in sample.dims}
            dtypes = {word: DTYPE_CLASSES[word][point % len(DTYPE_CLASSES[word])] for word in sample.dtypes}
            node = instantiate(rule.pattern, sample.bindings(rule.variables, sizes, dtypes))
            made = rule.apply(node)
            if made is None:
                raise BeyondProofError("it does not fire at the sizes of a point")
            yield node, made


def _optional(module: str, package: str, install: str) -> Any:
    """A module of this folder that needs a package which smelt does not."""
    try:
        return import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UnsupportedError(
            f"certifying rules needs {install}, which is not installed: pip install 'smelt[verify]'"
        ) from error
