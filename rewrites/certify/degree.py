"""How likely two different rational functions are to agree at a random point of a finite field.

The lemma of Schwartz and Zippel: a polynomial of degree d that is not zero is zero at a random point of a field of q
elements with probability d / q at most. The degrees of numerator and denominator are followed through every operator;
a random function of an operand is a new variable, as long as no two of its operands agree by chance, which is counted.
"""

from __future__ import annotations

import math

from ...ir import ops
from ...ir.node import Node, Trait, topological

Degrees = tuple[int, int]  # of the numerator and the denominator


def error_bound(before: Node, after: Node, field: int) -> float:
    """The probability, at most, that two nodes that differ agree in a field of that many elements. Sizes are numbers.

    All nodes are primitives. The result may exceed 1: it is a bound.
    """
    degrees: dict[Node, Degrees] = {}
    chances, compared = 0, 0
    for node in topological([before, after]):
        degrees[node] = _degrees(node, [degrees[x] for x in node.inputs])
        if _is_random(node):
            compared += max((_count(x) for x in node.inputs), default=1)
            chances = max([chances, *(2 * sum(degrees[x]) for x in node.inputs)])
    result = _count(before) * (sum(degrees[before]) + sum(degrees[after]))
    return (result + compared * compared * chances) / field


def _count(node: Node) -> int:
    return math.prod(int(n) for n in node.shape)


_EXACT = {ops.add, ops.sub, ops.mul, ops.div, ops.neg, ops.reciprocal, ops.pow, ops.where, ops.cast, ops.sigmoid}


def _is_random(node: Node) -> bool:
    """Whether a value is a random function of its operands, or their random order."""
    return (node.has(Trait.POINTWISE) and node.op not in _EXACT) or node.op in (ops.amax, ops.amin, ops.sigmoid)


def _degrees(node: Node, of: list[Degrees]) -> Degrees:
    if node.op in (ops.input, ops.weight):
        return 1, 0
    if node.op in (ops.add, ops.sub):
        return _sum(of[0], of[1])
    if node.op is ops.mul:
        return of[0][0] + of[1][0], of[0][1] + of[1][1]
    if node.op is ops.div:
        return of[0][0] + of[1][1], of[0][1] + of[1][0]
    if node.op is ops.reciprocal:
        return of[0][::-1]
    if node.op is ops.pow:
        return 3 * max(of[0]), 3 * max(of[0])
    if node.op in (ops.rsqrt, ops.sigmoid):
        return 1, 1
    if node.op in (ops.sum, ops.prod):
        terms = max(1, _count(node.inputs[0]) // max(1, _count(node)))
        n, d = of[0]
        return (n + (terms - 1) * d if node.op is ops.sum else terms * n), terms * d
    if node.op is ops.matmul:
        terms = max(1, int(node.inputs[0].shape[-1]))
        n, d = of[0][0] + of[1][0], of[0][1] + of[1][1]
        return n + (terms - 1) * d, terms * d
    if _is_random(node) and node.op not in (ops.amax, ops.amin, ops.maximum, ops.minimum):
        return 1, 0
    return max((n for n, _ in of), default=0), max((d for _, d in of), default=0)


def _sum(a: Degrees, b: Degrees) -> Degrees:
    return max(a[0] + b[1], b[0] + a[1]), a[1] + b[1]
