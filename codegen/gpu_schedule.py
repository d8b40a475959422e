"""The schedule of a kernel program on a GPU where nothing was tuned: chosen from sizes and from what the GPU has.

Nothing here was measured.
"""

from __future__ import annotations

from dataclasses import replace

import sympy
import torch

from ..ir.types import Dim, product
from .contraction import axes_of
from .gpu import (
    GpuAttentionSchedule,
    GpuMachine,
    GpuMapSchedule,
    GpuMatmulSchedule,
    GpuRecurrenceSchedule,
    GpuRowsSchedule,
    GpuSchedule,
)
from .program import (
    Apply,
    Axis,
    Expr,
    Load,
    Program,
    Ref,
    Skeleton,
    Stage,
    as_fraction,
    dot_stage,
    postorder,
    program_roots,
)
from .prologue import phases

AT_ONCE = 8192  # elements of a row that are held in registers
FEW_QUERIES = 4
FEW_ROWS = 4
FEW_ELEMENTS = 4096  # products that a program of few rows takes at a time
MOST_SPLITS = 16
RESIDENT_WARPS = (
    20  # of products of few rows that a processor runs at a time, by their registers (`smelt compile-check`)
)
# programs of attention of one query that keep a processor's memory busy: each has 8 kB of keys or values under way, of
# the 26 kB that it gives in the 800 ns that one takes to come
BUSY = 4
MOST_OWN_ROWS = 16  # of a product by ``tl.dot`` whose programs compute the statistics of the rows
OWN_ELEMENTS = 32  # of the rows in a thread at a time, for the statistics
OWN_STEPS = 4  # blocks of so many that are read for the statistics, one after the other
MOST_HELD = 112  # numbers of a thread before sm_90, where registers hold what tensor cores multiply as well
FLOAT8_CAPABILITIES = range(90, 110)  # of GPUs whose tensor cores take float8 as what is known of their sums allows
MANY_FLOAT8 = 1 << 14  # terms of float8, of more than which sums leave the tensor cores after fewer
LARGE = 1 << 20  # terms of a group, where there is none


def default_gpu_schedule(program: Program, machine: GpuMachine) -> GpuSchedule:
    """The schedule of a program that was not tuned."""
    match program.skeleton:
        case Skeleton.MAP | Skeleton.SCATTER:
            return _map_schedule(program, machine)
        case Skeleton.ROWS:
            stage = program.stages[0]
            combined = stage.combine.axes if stage.combine else ()
            return rows_schedule(program, tuple(a for a in stage.axes if a not in combined), combined)
        case Skeleton.MATMUL:
            return _matmul_schedule(program, machine)
        case Skeleton.ATTENTION:
            return _attention_schedule(program, machine)
        case Skeleton.RECURRENCE:
            return _recurrence_schedule(program)


def _recurrence_schedule(program: Program) -> GpuRecurrenceSchedule:
    if any(p.type.dtype == torch.float64 for p in program.params):
        return GpuRecurrenceSchedule(4, 16, 16, dot=False)
    return GpuRecurrenceSchedule()


def power_of_two(count: int) -> int:
    """The least power of two that is at least ``count``."""
    return 1 << max(count - 1, 0).bit_length()


def _map_schedule(program: Program, machine: GpuMachine) -> GpuMapSchedule:
    points = product(a.size for a in program.stores[0].axes) if program.stores else 1
    block = 1024
    # as many programs as processors where there are too few points for both
    while isinstance(points, int) and block > 128 and -(-points // block) < machine.processors:
        block //= 2
    # eight elements in a thread; four of eight bytes, with indices of as many, before the assembler spills some
    wide = any(p.type.dtype.itemsize == 8 for p in program.outputs)
    return GpuMapSchedule(block, warps=max(block // (128 if wide else 256), 1))


# --- rows -------------------------------------------------------------------------------------------------------------


def rows_schedule(program: Program, kept: tuple[Axis, ...], combined: tuple[Axis, ...]) -> GpuRowsSchedule:
    """The schedule of a program of rows: whole rows where they fit, several of them where they are short.

    ``kept`` are the axes that tell rows apart, ``combined`` those of their elements.
    """
    terms = product(a.size for a in combined)
    beside = contiguous_axis(program, (*combined, *kept)) in kept
    if isinstance(terms, int) and power_of_two(terms) <= AT_ONCE:
        columns = power_of_two(terms)
        rows = max(min(32 if beside else 4, 2048 // columns), 1)
        return GpuRowsSchedule(rows, columns, True, _warps(rows * columns))
    rows, columns = (32, 32) if beside else (1, 1024)
    return GpuRowsSchedule(rows, columns, False, 4)


def _warps(elements: int) -> int:
    return min(max(power_of_two(elements) // 512, 1), 8)


def contiguous_axis(program: Program, axes: tuple[Axis, ...]) -> Axis | None:
    """The axis along which most loads are contiguous; of equals, the first."""
    votes = dict.fromkeys(axes, 0)
    for expr in postorder(program_roots(program)):
        if isinstance(expr, Load):
            strides = program.param(expr.param).strides
            last = {i for i, s in zip(expr.index, strides, strict=True) if s == 1}
            for axis in axes:
                votes[axis] += axis.symbol in last
    best = max(votes, key=lambda a: votes[a]) if votes else None
    return best if best is not None and votes[best] else None


# --- products ---------------------------------------------------------------------------------------------------------


def float8_terms(program: Program, machine: GpuMachine) -> int:
    """How many terms of a product of float8 may be summed on tensor cores; 0 where it is to be taken in float16.

    Tensor cores of sm_90 add numbers of float8 with 14 bits (DeepSeek-V3's report, section 3.3.2): less than what is
    lost when a result is rounded to bfloat16, as long as few terms are added so, but more than float32 or float16 lose.
    """
    stage = dot_stage(program)
    if not isinstance(stage.value, Apply) or not all(_is_float8(x, program) for x in stage.value.args):
        return 0
    if machine.capability not in FLOAT8_CAPABILITIES or not _is_rounded(program, stage, torch.bfloat16):
        return 0
    assert stage.combine is not None
    terms = product(a.size for a in stage.combine.axes)
    return 128 if isinstance(terms, int) and terms <= MANY_FLOAT8 else 64


def _is_float8(expr: Expr, program: Program) -> bool:
    if isinstance(expr, Ref):  # rows that are read where they are multiplied
        return _is_float8(program.stage(expr.stage).value, program)
    return isinstance(expr, Apply) and expr.op == "float8_value" and isinstance(expr.args[0], Load)


def _is_rounded(program: Program, stage: Stage, dtype: torch.dtype) -> bool:
    """Whether all that is computed of a sum is computed of what it, scaled and with a bias, is rounded to."""

    def rounds(expr: Expr) -> bool:
        if not isinstance(expr, Apply) or expr.op != "cast" or expr.dtype != dtype:
            return False
        inner = expr.args[0]
        while isinstance(inner, Apply) and inner.op in ("mul", "add") and isinstance(inner.args[1], Load):
            inner = inner.args[0]
        return isinstance(inner, Ref) and inner.stage == stage.name

    found = postorder(program_roots(program), rounds)
    return not any(isinstance(e, Ref) and e.stage == stage.name for e in found)


def _matmul_schedule(program: Program, machine: GpuMachine) -> GpuMatmulSchedule:
    float8 = float8_terms(program, machine)
    found = _tile_schedule(program, machine, bool(float8))
    return replace(found, float8=float8) if found.dot else found


def _tile_schedule(program: Program, machine: GpuMachine, float8: bool) -> GpuMatmulSchedule:
    stage = dot_stage(program)
    assert stage.combine is not None
    terms = product(a.size for a in stage.combine.axes)
    rows, columns = _rows_of(stage), stage.axes[-1].size if stage.axes else 1
    if not dots(stage.dtype) and not _is_bytes(stage):
        return GpuMatmulSchedule(8, 32, 16, dot=False, stages=1)
    group = _least_group(program, stage)
    if isinstance(rows, int) and rows <= FEW_ROWS:
        found = _few_rows(rows, columns, terms, group, machine)
        return _in_turns(found, columns, machine) if _computes_rows(stage) else found
    half = _is_half(program, stage)
    is_grouped = group < LARGE  # of few bits
    # FMAs of numbers made in registers need many of them
    most = 128 if float8 else 64 if half else 16 if is_grouped else 32
    block_k = min(_clamped(terms, 32 if float8 or _is_bytes(stage) else 16, most), group)
    block_m, block_n = _clamped(rows, 16, 64), _clamped(columns, 16, 64)
    warps = _matmul_warps(block_m * block_n, half)
    if half and machine.capability < 90 and _held(program, stage, block_m, block_n, block_k) > MOST_HELD * 32 * warps:
        block_k //= 2
    made = GpuMatmulSchedule(block_m, block_n, block_k, warps=warps)
    if not isinstance(rows, int) or not isinstance(columns, int) or not isinstance(terms, int):
        return made
    if rows <= MOST_OWN_ROWS and computes_statistics(program):
        own = _own_rows(replace(made, warps=4), columns, rows * terms, machine)
        if own is not None:
            return own
    if half and -(-rows // 128) * -(-columns // 128) >= machine.processors:
        return replace(made, block_m=128, block_n=128, warps=8)
    while -(-rows // block_m) * -(-columns // block_n) < machine.processors and max(block_m, block_n) > 32:
        block_m, block_n = (block_m, block_n // 2) if block_n >= block_m else (block_m // 2, block_n)
    tiles, warps = -(-rows // block_m) * -(-columns // block_n), _matmul_warps(block_m * block_n, half)
    splits = _splits(tiles, terms, 8 * block_k, machine)
    return replace(made, block_m=block_m, block_n=block_n, warps=warps, splits=splits)


def computes_statistics(program: Program) -> bool:
    """Whether a product needs something of whole rows first."""
    computed = phases(program)
    return computed is not None and bool(computed.rows.stages)


def _own_rows(made: GpuMatmulSchedule, columns: int, elements: int, machine: GpuMachine) -> GpuMatmulSchedule | None:
    """One launch for a norm and its product: narrow tiles of all rows, whose programs compute the statistics.

    None where the rows are more than a program reads in a few steps, each of which waits for the cache, or where there
    are too few tiles for all processors: then rows come first.
    """
    found = replace(made, block_n=16, statistics=True)
    if elements > OWN_STEPS * OWN_ELEMENTS * 32 * found.warps or -(-columns // 16) < machine.processors:
        return None
    while found.block_n < made.block_n and columns >= 4 * found.block_n * machine.processors:
        found = replace(found, block_n=2 * found.block_n)
    most, tiles = machine.processors * RESIDENT_WARPS // found.warps, -(-columns // found.block_n)
    return found if tiles <= 2 * most else replace(found, persistent=-(-tiles // -(-tiles // most)))


def in_tf32(schedule: GpuSchedule, program: Program) -> GpuSchedule:
    """A schedule whose products of float32, where ``tl.dot`` takes them, round their operands to TensorFloat-32."""
    if not isinstance(schedule, GpuMatmulSchedule) or not schedule.dot or _is_half(program, dot_stage(program)):
        return schedule
    return replace(schedule, tf32=True)


def _held(program: Program, stage: Stage, block_m: int, block_n: int, block_k: int) -> int:
    """Numbers that a program has in registers at once: the sums, and what it computes its operands of."""
    assert isinstance(stage.value, Apply)
    assert stage.combine is not None
    k = stage.combine.axes[0].symbol
    left, right = (_computed_of(x, k, program) for x in stage.value.args)
    return block_m * block_n + block_m * block_k * left + block_k * block_n * right


def _computed_of(expr: Expr, k: sympy.Symbol, program: Program) -> int:
    """Of how many numbers for each term an operand is computed; 0 where it is read as it is multiplied."""
    if isinstance(expr, Ref):
        made = program.stage(expr.stage)
        rows_first = made.combine is not None or any(isinstance(e, Ref) for e in postorder([made.value]))
        return 0 if rows_first else _computed_of(made.value, made.axes[-1].symbol, program)
    plain = expr.args[0] if isinstance(expr, Apply) and expr.op == "cast" else expr
    if isinstance(plain, Load) and plain.dtype.itemsize == 2:
        return 0
    loads = {e for e in postorder([expr]) if isinstance(e, Load)}
    shared = {x: sympy.Symbol("group") for load in loads for i in load.index for x in _floors(i)}
    each = [e for e in loads if any(k in i.xreplace(shared).free_symbols for i in e.index if isinstance(i, sympy.Expr))]
    return max(len(each), 1)


def _floors(index: object) -> set[sympy.Expr]:
    """The whole parts of quotients in an index, which several terms share."""
    return set(index.atoms(sympy.floor)) if isinstance(index, sympy.Expr) else set()


def _is_half(program: Program, stage: Stage) -> bool:
    """Whether tensor cores multiply the operands in types of two bytes or one."""
    assert isinstance(stage.value, Apply)
    return all(_is_narrow(x, program) for x in stage.value.args)


def _is_narrow(expr: Expr, program: Program) -> bool:
    """Whether an operand is of a type of two bytes or one, or numbers of few bits times a scale."""
    if expr.dtype.itemsize <= 2:
        return True
    if isinstance(expr, Apply) and expr.op == "float8_value":
        return True
    if isinstance(expr, Ref):  # rows that are computed first
        return _is_narrow(program.stage(expr.stage).value, program)
    if isinstance(expr, Apply) and expr.op in ("cast", "mul", "sub"):
        first = expr.args[0]
        return _is_narrow(first, program) or (isinstance(first, Apply) and first.op == "where")
    return False


def _few_rows(rows: int, columns: Dim, terms: Dim, group: int, machine: GpuMachine) -> GpuMatmulSchedule:
    """Sums one by one, each weight read once: narrow tiles of many terms, so that every processor has some."""
    block_m, block_k = power_of_two(max(rows, 1)), min(_clamped(terms, 1, 512), group)
    block_n = max(_clamped(columns, 1, 32) if block_k < 256 else 8, 1)
    block_n = min(max(FEW_ELEMENTS // (block_m * block_k), 1), block_n, _clamped(columns, 1, 32))
    if isinstance(columns, int):
        while block_n > 1 and -(-columns // block_n) < 2 * machine.processors:
            block_n //= 2
    splits = 1
    if isinstance(columns, int) and isinstance(terms, int):
        splits = _splits(-(-columns // block_n), terms, block_k, machine)
    warps = min(max(block_m * block_n * block_k // 512, 1), 4)
    return GpuMatmulSchedule(block_m, block_n, block_k, dot=False, warps=warps, stages=1, splits=splits)


def _computes_rows(stage: Stage) -> bool:
    """Whether what a product multiplies is computed before it."""
    return any(isinstance(e, Ref) for e in postorder([stage.value]))


def _in_turns(found: GpuMatmulSchedule, columns: Dim, machine: GpuMachine) -> GpuMatmulSchedule:
    """Programs that take several tiles each, where these are many: each computes the statistics of the rows once.

    There are as many as a GPU runs at a time, and all take equally many tiles but for the last ones. A tile has as
    many columns as rows, if that leaves enough tiles: rows are read from cache for every tile.
    """
    if not isinstance(columns, int) or found.splits > 1:
        return found
    while found.block_n < found.block_m and found.block_k >= 256 and columns >= 4 * found.block_n * machine.processors:
        found = replace(found, block_n=2 * found.block_n, block_k=found.block_k // 2)
    most, tiles = machine.processors * RESIDENT_WARPS // found.warps, -(-columns // found.block_n)
    return found if tiles <= 2 * most else replace(found, persistent=-(-tiles // -(-tiles // most)))


def _splits(tiles: int, terms: int, least: int, machine: GpuMachine) -> int:
    """Parts of the terms, each of ``least`` at the least, that give every processor something to do."""
    splits = 1
    while tiles * splits < machine.processors and splits < MOST_SPLITS and terms >= 2 * splits * least:
        splits *= 2
    return splits


def _least_group(program: Program, stage: Stage) -> int:
    """The largest power of two that divides the terms which share a factor, of a weight of few bits; else a large one.

    At most so many terms at a time read the factor once.
    """
    groups = [_divisor(e, stage) for e in postorder([stage.value]) if isinstance(e, Load) and e.dtype == torch.float32]
    found = min(filter(None, groups), default=LARGE)
    return max(found & -found, 16)


def _divisor(load: Load, stage: Stage) -> int | None:
    """g of an index floor(k / g) along the axis that is summed."""
    assert stage.combine is not None
    k = stage.combine.axes[0].symbol
    for index in load.index:
        if isinstance(index, sympy.floor):
            above, below = as_fraction(index.args[0])
            if above == k and below.is_Integer:
                return int(below)
    return None


def _matmul_warps(elements: int, half: bool) -> int:
    """Warps that hold a tile in registers: those of FMAs need more than those of tensor cores."""
    warps = 4 if elements >= 2048 else 2
    return warps if half or elements < 4096 else 8


def _is_bytes(stage: Stage) -> bool:
    """Whether a sum is of products of int8, in int32, which ``tl.dot`` takes as well."""
    assert isinstance(stage.value, Apply)
    widened = [x.args[0] for x in stage.value.args if isinstance(x, Apply) and x.op == "cast"]
    return stage.dtype == torch.int32 and [x.dtype for x in widened] == [torch.int8] * 2


def dots(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are taken by ``tl.dot``."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16)


def _rows_of(stage: Stage) -> Dim:
    """How many rows a product has at the most: all its axes but the last."""
    return product(a.size for a in stage.axes[:-1]) if stage.axes else 1


def _clamped(size: Dim, least: int, most: int) -> int:
    return max(min(power_of_two(size), most), least) if isinstance(size, int) else most


# --- attention --------------------------------------------------------------------------------------------------------


def _attention_schedule(program: Program, machine: GpuMachine) -> GpuAttentionSchedule:
    scores, weighed = program.stages[0], program.stages[-1]
    assert scores.combine is not None
    assert weighed.combine is not None
    queries = scores.axes[2].size
    head = max(_clamped(scores.combine.axes[0].size, 16, 512), _clamped(weighed.axes[-1].size, 16, 512))
    keys = weighed.combine.axes[0].size
    if (isinstance(queries, int) and queries <= FEW_QUERIES) or not dots(scores.dtype):
        few_keys = max(4096 // head, 16)
        long = not isinstance(keys, int) or keys > 4 * few_keys
        if not long or not isinstance(queries, int):
            return GpuAttentionSchedule(1, few_keys, True, stages=1)
        points, enough = product(a.size for a in weighed.axes[:-1]), BUSY * machine.processors
        if isinstance(points, int):
            return GpuAttentionSchedule(1, few_keys, True, 1 if points >= enough else 8, stages=1)
        return GpuAttentionSchedule(1, few_keys, True, 8, enough, stages=1)
    most = _attention_blocks(head, program, machine)
    return GpuAttentionSchedule(_clamped(queries, 16, most[0]), _clamped(keys, 16, most[1]))


def _attention_blocks(head: int, program: Program, machine: GpuMachine) -> tuple[int, int]:
    """Queries and keys of a block, as many as registers hold without spills (`smelt compile-check`)."""
    if all(p.type.dtype.itemsize != 2 for p in program.inputs):
        return (32, 32) if head <= 64 else (32, 16) if head <= 128 else (16, 16)
    if head > 128:
        return (32, 32)
    # before sm_90 registers hold what tensor cores multiply, too: a third of what the sums and the scores take
    tight = machine.capability < 90 or (head > 64 and _has_mask(program))
    return (64, 32 if tight else 64)


def _has_mask(program: Program) -> bool:
    """Whether a number is read for each score: a mask or a bias of queries by keys."""
    combine = program.stages[-1].combine
    assert combine is not None
    query, (key,) = program.stages[0].axes[2].symbol, combine.axes
    loads = (e for e in postorder([combine.score]) if isinstance(e, Load)) if combine.score is not None else ()
    return any({query, key.symbol} <= axes_of(load) for load in loads)
