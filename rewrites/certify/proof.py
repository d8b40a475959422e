"""Proofs that a rule's two sides have the same elements, for all values and all sizes of a sample's ranks.

For each sample and each choice of its dtypes, both sides are built with symbols for all sizes. The element of each at
an arbitrary position is a term (``elements.py``), and the solver is asked for sizes, positions and operands where the
two differ: that there are none is the proof. A rule may build something else where a size is a number, so the same is
asked for a grid of numbers, zero and one among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import z3

from ...ir import ops
from ...ir.errors import SmeltError
from ...ir.node import Node, Trait, topological
from ...ir.types import Dim, Shape, symbol, symbols_of
from ..instance import instantiate
from ..pattern import brief
from ..rule import EXACT, Domain, Rule
from ..sample import DTYPE_CLASSES, Sample
from .cases import in_steps
from .elements import Elements
from .positions import BeyondProofError, SplitIndex
from .scalars import Bits, Free, Reals, whole_number
from .unfold import decomposed, sizes_of

MILLISECONDS = 1500  # for one query
FOR_BITS = 14  # as many times as long for one about machine numbers
MAX_SPLITS = 12
GRID = (  # sizes of the dims of a sample, taken in turns
    (0, 1),
    (1,),
    (2, 3),
    (3, 2, 1),
    (1, 4, 2),
    (4, 0, 3),
)
NUMBERS = (1, 2, 3)  # for dims that have to be numbers, where symbols were refused


@dataclass(frozen=True)
class Instance:
    """One pair of nodes to prove equal: a rule's sample for some sizes and dtypes, and what the rule makes of it."""

    before: Node
    after: Node
    symbolic: bool


def instances(rule: Rule) -> Iterator[Instance]:
    """All instances of a rule's samples that a proof has to cover.

    Raises:
        BeyondProofError: a sample cannot be built for sizes that are symbols.
    """
    for sample in rule.samples:
        choices = [DTYPE_CLASSES[word] for word in sample.dtypes]
        for i, dtypes in enumerate(itertools.product(*choices)):
            named = dict(zip(sample.dtypes, dtypes, strict=True))
            yield from _symbolic(rule, sample, named)
            if i == 0:
                yield from _on_grid(rule, sample, named)


def _symbolic(rule: Rule, sample: Sample, dtypes: Mapping[str, torch.dtype]) -> Iterator[Instance]:
    """The sample with symbols for all dims, or, where that is refused, numbers for those with a capital."""
    found = _instance(rule, sample, {name: symbol(name) for name in sample.dims}, dtypes, symbolic=True)
    if found:
        yield from found
        return
    capitals = [name for name in sample.dims if name[0].isupper()]
    for numbers in itertools.product(NUMBERS, repeat=len(capitals)):
        sizes: dict[str, Dim] = {name: symbol(name) for name in sample.dims}
        sizes.update(zip(capitals, numbers, strict=True))
        found = _instance(rule, sample, sizes, dtypes, symbolic=True)
        if not found:
            raise BeyondProofError("it does not fire for sizes that are symbols")
        yield from found


def _on_grid(rule: Rule, sample: Sample, dtypes: Mapping[str, torch.dtype]) -> Iterator[Instance]:
    for row in GRID if sample.dims else ():
        turns = itertools.cycle(row)
        sizes: dict[str, Dim] = {name: next(turns) for name in sample.dims}
        yield from _instance(rule, sample, sizes, dtypes, symbolic=False)


def _instance(
    rule: Rule, sample: Sample, sizes: Mapping[str, Dim], dtypes: Mapping[str, torch.dtype], symbolic: bool
) -> list[Instance]:
    """The instances for some sizes: none where the sample cannot be built or the rule does not fire."""
    try:
        node = instantiate(rule.pattern, sample.bindings(rule.variables, sizes, dtypes))
        nodes = [node, in_steps(node)] if rule.through_casts else [node]
        pairs = [(x, rule.apply(x)) for x in dict.fromkeys(nodes)]
    except SmeltError:
        return []
    if any(made is None for _, made in pairs):
        return []
    return [Instance(before, made, symbolic) for before, made in pairs if made is not None]


@dataclass(frozen=True)
class Proof:
    """That a rule is proved: in which readings of scalars, and of how many instances."""

    readings: tuple[str, ...]
    instances: int


def prove(rule: Rule, milliseconds: int = MILLISECONDS) -> Proof:
    """The proof of a rule.

    Raises:
        BeyondProofError: there is none; the message says what stood in the way.
    """
    found: dict[str, None] = {}
    known: set[tuple[Node, Node]] = set()
    for instance in instances(rule):
        if (instance.before, instance.after) not in known:
            known.add((instance.before, instance.after))
            found[prove_instance(rule, instance, milliseconds)] = None
    if not known:
        raise BeyondProofError("no sample fires")
    return Proof(tuple(found), len(known))


def readings(rule: Rule, node: Node) -> Iterator[Free]:
    """The readings of scalars that are sound for a rule, from the one that asks least of arithmetic."""
    sources = [x for x in topological([node]) if x.op in (ops.input, ops.weight)]
    whole = all(x.dtype.is_floating_point or x.dtype == torch.bool for x in sources)
    yield Free(whole)
    if rule.tolerance != EXACT and rule.domain is not Domain.ANY:
        yield Reals(whole)
    if not any(x.has(Trait.REDUCTION, Trait.CONTRACTION) for x in topological([node])):
        yield Bits()


def prove_instance(rule: Rule, instance: Instance, milliseconds: int) -> str:
    """The name of the reading in which two nodes are equal.

    Raises:
        BeyondProofError: there is none.
    """
    before, after = decomposed(instance.before), decomposed(instance.after)
    reasons = []
    for reading in readings(rule, before):
        try:
            if equal(before, after, reading, milliseconds):
                return reading.name
            reasons.append(f"not equal in {reading.name}")
        except BeyondProofError as error:
            reasons.append(str(error))
    raise BeyondProofError(f"{'; '.join(dict.fromkeys(reasons))}: {brief(instance.before)}")


def equal(before: Node, after: Node, reading: Free, milliseconds: int = MILLISECONDS) -> bool:
    """Whether two nodes of primitives and of one type have the same elements under a reading.

    Raises:
        BeyondProofError: a node has no meaning that the solver takes.
    """
    if before is after or 0 in before.shape:
        return True
    parts = {d: _Parts(d, size) for d, size in enumerate(before.shape)}
    for _ in range(MAX_SPLITS):
        try:
            return _equal_at(before, after, list(parts.values()), reading, milliseconds)
        except SplitIndex as request:
            for part in parts.values():
                part.split(request.index, request.sizes)
    raise BeyondProofError("too many indices had to be split")


class _Parts:
    """The index along one axis, as the indices that it is composed of."""

    def __init__(self, axis: int, size: Dim) -> None:
        self.indices: list[tuple[Any, Dim]] = []
        self._axis = axis
        self.value: Any = self._new(size) if size != 1 else sympy.Integer(0)

    def _new(self, size: Dim) -> Any:
        index = sympy.Symbol(f"_i{self._axis}_{len(self.indices)}", integer=True, nonnegative=True)
        self.indices.append((index, size))
        return index

    def split(self, index: Any, sizes: Shape) -> None:
        """Write an index as several: they run through all that it did, once each."""
        if index not in [own for own, _ in self.indices]:
            return
        merged: Any = sympy.Integer(0)
        for size in sizes:
            merged = merged * size + self._new(size)
        self.value = sympy.expand(self.value.subs(index, merged))

    def facts(self) -> Iterator[Any]:
        """The ranges of the indices in use."""
        for index, size in self.indices:
            if index in self.value.free_symbols:
                number = whole_number(index)
                yield z3.And(number >= 0, number < whole_number(size))


def _equal_at(before: Node, after: Node, parts: Sequence[_Parts], reading: Free, milliseconds: int) -> bool:
    position = tuple(part.value for part in parts)
    sizes = {s for x in topological([before, after]) for s in symbols_of(sizes_of(x))}
    facts = [whole_number(s) >= 0 for s in sizes]
    facts.extend(fact for part in parts for fact in part.facts())
    elements = Elements(reading, facts, milliseconds)
    expected = elements.at(before, position)
    given, elements.claims = elements.claims, []
    found = elements.at(after, position)
    if z3.eq(expected, found) and not elements.claims:
        return True
    goal = reading.generalised(z3.And(*elements.claims, expected == found))
    # bits know nothing of positions, and are decided sooner where nothing is said of these
    assumed = [*facts, *given] if elements.claims or not isinstance(reading, Bits) else []
    return _valid(goal, assumed, milliseconds * (FOR_BITS if isinstance(reading, Bits) else 1))


def _valid(goal: Any, assumed: Sequence[Any], milliseconds: int) -> bool:
    # a solver of its own: one that has been pushed does not use the tactics for bits
    solver = z3.Solver()
    solver.set("timeout", milliseconds)
    solver.add(*assumed, z3.Not(goal))
    return bool(solver.check() == z3.unsat)
