"""What a kernel program means: the slow, obvious evaluation that tells a wrong kernel from a wrong program.

Every stage is evaluated over all its axes at once, one tensor dim for each axis, by PyTorch's broadcasting. Loads
gather through flat offsets into the parameter's memory, as kernels do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
import torch
from torch import Tensor

from ..ir.ops.recurrent import step
from ..ir.types import Dim, concrete
from .grid import Grid, Memory, Points
from .inplace import InPlace
from .program import Combine, Combiner, Expr, Format, Param, Program, Recurrence, Skeleton, Stage, Store

Sizes = Mapping[sympy.Symbol, int]


def interpret_program(
    program: Program,
    tensors: Sequence[Tensor],
    sizes: Sizes,
    dtype: torch.dtype | None = None,
    in_place: InPlace = (),
) -> list[Tensor]:
    """Evaluate a program; returns its outputs in the dims of its OUT parameters, in memory order as they are there.

    Args:
        program: what to evaluate.
        tensors: one for each IN parameter. For ``Format.STRIDED`` it lies in memory as the parameter's strides say,
            from its first element on, in whatever shape; for ``Format.PANELS`` it is the logical matrix [K, N].
        sizes: the value of each size symbol.
        dtype: compute in this floating-point dtype throughout and return it. Otherwise values have their own dtypes,
            half types computed in float32 and rounded where they are stored.
        in_place: pairs of a result and the operand whose memory it takes over: what is not stored is the operand's.

    Raises:
        IndexError: an index that comes from data is out of range.
        AssertionError: the program is wrong: it reads or writes outside a parameter, or does not write an output's
            elements once each.
    """
    run = _Run(program, dict(sizes), dtype)
    for param, tensor in zip(program.inputs, tensors, strict=True):
        run.memory[param.name] = run.read(param, tensor)
    for param in program.outputs:
        run.memory[param.name] = run.blank(param)
    for result, operand in in_place:
        before = run.memory[program.inputs[operand].name].flat
        run.memory[program.outputs[result].name].flat[: len(before)] = before
    if program.recurrence is not None:
        run.recurrence(program.recurrence)
        return [run.memory[p.name].tensor() for p in program.outputs]
    for stage in program.stages:
        run.stage(stage)
    for store in program.stores:
        run.store(store)
    updated = {result for result, _ in in_place}
    for number, param in enumerate(program.outputs):
        writes = run.memory[param.name].writes
        once = program.skeleton is Skeleton.SCATTER or bool((writes <= 1).all())
        once = once and (number in updated or bool((writes >= 1).all()))
        assert once, f"the elements of {param.name} are not written once each"
    return [run.memory[p.name].tensor() for p in program.outputs]


class _Run:
    """One evaluation: the sizes, the memory of every parameter, the value of every stage over its axes."""

    def __init__(self, program: Program, sizes: Sizes, dtype: torch.dtype | None) -> None:
        self.program, self.sizes, self.dtype = program, sizes, dtype
        self.memory: dict[str, Memory] = {}
        self.stages: dict[str, Tensor] = {}

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of values in memory."""
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    def read(self, param: Param, tensor: Tensor) -> Memory:
        """An input's memory. A matrix in panels is addressed as if it were row-major."""
        shape, strides = self.numbers(param.type.shape), self.numbers(param.strides)
        if param.format is Format.PANELS:
            assert tuple(tensor.shape) == shape, f"{param.name} is {list(tensor.shape)}, the program says {shape}"
            flat = tensor.reshape(-1)
        else:
            flat = torch.as_strided(tensor, (_extent(shape, strides),), (1,))
        return Memory(flat.to(self.wide(param.type.dtype)), shape, strides)

    def blank(self, param: Param) -> Memory:
        shape, strides = self.numbers(param.type.shape), self.numbers(param.strides)
        return Memory(torch.zeros(_extent(shape, strides), dtype=self.wide(param.type.dtype)), shape, strides)

    def numbers(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        return tuple(concrete(d, self.sizes) for d in dims)

    def points(self, grid: Grid) -> Points:
        return Points(grid, self.memory, self.stages, self.dtype)

    # --- stages and stores --------------------------------------------------------------------------------------------

    def stage(self, stage: Stage) -> None:
        """Compute a stage: over its own axes first, then those it combines."""
        reduced = stage.combine.axes if stage.combine else ()
        kept = tuple(a for a in stage.axes if a not in reduced)
        grid = Grid((*kept, *reduced), self.sizes)
        points = self.points(grid)
        value = points.full(stage.value)
        if stage.combine is not None:
            value = self.combined(stage.combine, value, points, len(kept))
        # a running sum keeps its axis, which may stand anywhere among the others
        if stage.axes != kept:
            value = value.permute([grid.axes.index(a) for a in stage.axes])
        self.stages[stage.name] = value

    def combined(self, combine: Combine, value: Tensor, points: Points, first: int) -> Tensor:
        """A value combined over its dims from ``first`` on."""
        dims = tuple(range(first, value.ndim))
        if combine.kind is Combiner.CUMSUM:
            assert len(dims) == 1
            return value.cumsum(first, dtype=value.dtype)
        if combine.kind is Combiner.SOFTMAX_SUM:
            return _softmax_sum(combine, value, points, dims)
        return _reduced(combine.kind, value.flatten(first) if dims else value.unsqueeze(-1))

    def store(self, store: Store) -> None:
        """Store a value over the axes, in row-major order where several points may go to one element."""
        points, memory = self.points(Grid(store.axes, self.sizes)), self.memory[store.param]
        if 0 in points.grid.shape:
            return
        value = points.full(store.value).to(memory.flat.dtype).reshape(-1)
        at = [points.value(i) if isinstance(i, Expr) else points.index(i) for i in store.index]
        offsets = memory.offsets(at, None, store.param).expand(points.grid.shape).reshape(-1)
        if store.accumulate:
            memory.flat.index_add_(0, offsets, value)
            return
        order = torch.arange(len(offsets))
        last = torch.full((len(memory.flat),), -1).scatter_reduce(0, offsets, order, "amax")
        written = last >= 0
        memory.flat[written] = value[last[written]]
        memory.writes.index_add_(0, offsets, torch.ones_like(offsets))

    # --- recurrence ---------------------------------------------------------------------------------------------------

    def recurrence(self, r: Recurrence) -> None:
        """Run a recurrent layer step by step."""
        gates, bias = self.memory[r.gates].tensor(), self.memory[r.bias].tensor()
        weight = self.memory[r.weight].tensor().T
        states = tuple(self.memory[s].tensor() for s in r.states)
        compute = torch.float32 if gates.dtype in (torch.float16, torch.bfloat16) else gates.dtype
        gates, bias, weight = gates.to(compute), bias.to(compute), weight.to(compute)
        states = tuple(s.to(compute) for s in states)
        y, *last = (self.memory[o].tensor() for o in r.outputs)
        steps = range(concrete(r.time.size, self.sizes))
        for t in reversed(steps) if r.reverse else steps:
            states = step(r.kind, gates[t], weight, bias, states)
            y[t] = states[0]
        for target, state in zip(last, states, strict=True):
            target.copy_(state)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements of memory a strided tensor spans."""
    return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _reduced(kind: Combiner, value: Tensor) -> Tensor:
    """A value combined over its last dim."""
    if value.shape[-1] == 0:
        return value.new_full(value.shape[:-1], _neutral(kind, value.dtype), dtype=_result_dtype(kind, value))
    match kind:
        case Combiner.SUM | Combiner.DOT:
            return value.sum(-1, dtype=value.dtype)
        case Combiner.PROD:
            return value.prod(-1, dtype=value.dtype)
        case Combiner.MAX:
            return value.amax(-1)
        case Combiner.MIN:
            return value.amin(-1)
        case Combiner.ANY:
            return value.any(-1)
        case Combiner.ALL:
            return value.all(-1)
        case Combiner.ARGMAX:
            return value.argmax(-1)
        case Combiner.ARGMIN:
            return value.argmin(-1)
    raise AssertionError(f"{kind.value} does not reduce")


def _neutral(kind: Combiner, dtype: torch.dtype) -> float | int | bool:
    """What a combination of nothing is; -1 for the position of an extreme, which has none."""
    if kind in (Combiner.ARGMAX, Combiner.ARGMIN):
        return -1
    if kind in (Combiner.SUM, Combiner.DOT, Combiner.ANY):
        return 0
    if kind in (Combiner.PROD, Combiner.ALL) or dtype == torch.bool:
        return kind is not Combiner.MAX
    if dtype.is_floating_point:
        return float("-inf") if kind is Combiner.MAX else float("inf")
    limits = torch.iinfo(dtype)
    return limits.min if kind is Combiner.MAX else limits.max


def _result_dtype(kind: Combiner, value: Tensor) -> torch.dtype:
    return torch.int64 if kind in (Combiner.ARGMAX, Combiner.ARGMIN) else value.dtype


def _softmax_sum(combine: Combine, value: Tensor, points: Points, dims: tuple[int, ...]) -> Tensor:
    assert combine.score is not None
    score = points.full(combine.score)
    (axis,) = combine.axes
    if combine.bound is not None:
        # an offset beyond any key must not overflow
        offset = 0 if combine.offset is None else points.full(combine.offset).clamp(max=2**62)
        beyond = points.index(axis.symbol) >= points.index(combine.bound) + offset
        assert not bool((beyond & (score > float("-inf"))).any()), "a score past the promised bound is not -inf"
    if 0 in value.shape:
        return value.sum(dims)
    top = score.amax(dims, keepdim=True)
    none = top == float("-inf")
    weights = torch.exp(score - torch.where(none, 0.0, top))
    total = torch.where(none, 1.0, weights.sum(dims, keepdim=True))
    return (weights / total * value).sum(dims)
