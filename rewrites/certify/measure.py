"""Why rewriting comes to an end: a measure of graphs that falls with every application of a rule.

The measure is a triple, compared in order, of interpretations of nodes as natural numbers: an operator with operands of
measures x, y, ... has the measure ``a (x + y + ...) + b``, with ``a >= 1`` and ``b >= 0`` of its own. Such a function
grows with each operand, so what falls at one node falls in every graph around it; and a triple of natural numbers
cannot fall for ever. (One weight looks at an operand: a reshape of a constant. What turns an operand into a constant
has to save as much.) Both sides of an application are polynomials over what its operands measure, at least 1 each:
compared coefficient by coefficient, which covers all operands and not those of one case.

The first component weighs operators and moves ``expand`` outwards, the second moves reshapes out of linear layers, the
third moves slices and reshapes in front of permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ...ir import ops
from ...ir.node import Node, OpDef, Trait, topological

Polynomial = Mapping[Node | None, int]  # the coefficient of each operand's measure; of None, the constant
Weight = tuple[int, int]  # a and b of an operator

_FIRST: dict[OpDef, Weight] = {
    ops.reshape: (1, 0),
    ops.expand: (1, 10),
    ops.permute: (2, 4),
    ops.slice_: (2, 0),
    ops.arange: (1, 24),
    ops.cast: (2, 10),
    ops.clamp: (1, 5),
    ops.div: (2, 26),
    ops.gt: (2, 26),
    ops.ge: (2, 26),
    ops.where: (4, 100),
    ops.pow: (16, 100),
    ops.matmul: (32, 50),
    ops.linear: (2, 1),
    ops.index: (4, 50),
    **dict.fromkeys((ops.gelu, ops.relu, ops.silu, ops.tanh), (2, 2)),  # transposes move behind them
}
_SECOND: dict[OpDef, Weight] = {ops.reshape: (1, 1), ops.linear: (2, 0)}
_THIRD: dict[OpDef, Weight] = {ops.reshape: (4, 2), ops.expand: (1, 10), ops.permute: (2, 4), ops.slice_: (8, 0)}
_THIRD |= {ops.gelu: (2, 0), ops.relu: (2, 0)}  # reshapes move behind them
_SHAPED_CONSTANT = 8  # in the first component; a scalar is 1
_ON_CONSTANT = 8  # for a reshape of a constant; what makes an operand a constant has to save more than that


def _first(node: Node) -> Weight:
    if node.op is ops.full:
        return 1, _SHAPED_CONSTANT if node.shape else 1
    if node.op is ops.reshape and node.inputs[0].op is ops.full:
        return 1, _ON_CONSTANT
    return _FIRST.get(node.op) or ((1, 4) if node.has(Trait.COMPOSITE) else (2, 24))


def _second(node: Node) -> Weight:
    return _SECOND.get(node.op, (1, int(not node.inputs)))


def _third(node: Node) -> Weight:
    a, b = _THIRD.get(node.op, (2, 2))
    constant_first = len(node.inputs) > 1 and node.inputs[0].op is ops.full and node.inputs[1].op is not ops.full
    return a, b + constant_first


_COMPONENTS: tuple[Callable[[Node], Weight], ...] = (_first, _second, _third)


def falls(before: Node, after: Node, operands: Iterable[Node]) -> bool:
    """Whether the measure of ``after`` is below that of ``before``, whatever the operands of both measure."""
    atoms = set(operands)
    needed = _ON_CONSTANT if after.op is ops.full else 0
    for weigh in _COMPONENTS:
        old, new = _measured(before, weigh, atoms), _measured(after, weigh, atoms)
        if any(new[x] > old.get(x, 0) for x in new if x is not None):
            return False
        least = sum(old.values()) - sum(new.values())  # where every operand measures 1
        if least != needed:
            return least > needed
        needed = 0
        if any(new.get(x, 0) != old[x] for x in old if x is not None):
            return False  # it is no smaller for the smallest operands, and so not for all
    return False


def _measured(root: Node, weigh: Callable[[Node], Weight], atoms: set[Node]) -> Polynomial:
    found: dict[Node, dict[Node | None, int]] = {}
    for node in topological([root]):
        if node in atoms or node.op in (ops.input, ops.weight):
            found[node] = {node: 1}
            continue
        a, b = weigh(node)
        total: dict[Node | None, int] = {None: b}
        for x in node.inputs:
            for atom, coefficient in found[x].items():
                total[atom] = total.get(atom, 0) + a * coefficient
        found[node] = total
    return found[root]
