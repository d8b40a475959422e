"""Results that take over the memory of an operand: what they keep of it is not stored again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.errors import UnsupportedError
from .program import Load, Program, Store, postorder, program_roots, stage_roots, store_roots

InPlace = Sequence[tuple[int, int]]  # pairs of a result and an operand, by number


def updating(program: Program, in_place: InPlace) -> Program:
    """The program with some results in the memory of operands, before its indices are simplified.

    Raises:
        UnsupportedError: the operand lies in memory otherwise, or may be read where it was changed before.
    """
    for result, operand in in_place:
        program = _updating(program, f"out{result}", f"in{operand}")
    return program


def _updating(program: Program, result: str, operand: str) -> Program:
    if program.param(result).strides != program.param(operand).strides:
        raise UnsupportedError(f"{result} in place of {operand}: they lie in memory in different ways")
    kept = tuple(s for s in program.stores if not _keeps(s, result, operand))
    left = replace(program, stores=kept)
    reads = [e for e in postorder(program_roots(left)) if isinstance(e, Load) and e.param == operand]
    if reads and not _is_only_own(reads, [s for s in kept if s.param == result], left):
        raise UnsupportedError(f"{result} in place of {operand}: it may be read after it was changed")
    if not kept:
        raise UnsupportedError(f"{result} in place of {operand}: nothing is left to store")
    return left


def _keeps(store: Store, result: str, operand: str) -> bool:
    """Whether a store only puts an operand's element where it is already."""
    value = store.value
    return (
        store.param == result
        and not store.accumulate
        and isinstance(value, Load)
        and value.param == operand
        and value.index == store.index
    )


def _is_only_own(reads: Sequence[Load], changes: Sequence[Store], program: Program) -> bool:
    """Whether an operand is read only where the one store of the result writes the very element that was read."""
    if len(changes) != 1 or any(load.index != changes[0].index for load in reads):
        return False
    (store,) = changes
    others = [x for s in program.stores if s is not store for x in store_roots(s)]
    others += [x for stage in program.stages for x in stage_roots(stage)]
    elsewhere = set(postorder(others))
    once = all(store.index.count(a.symbol) == 1 for a in store.axes)
    return once and not any(load in elsewhere for load in reads)
