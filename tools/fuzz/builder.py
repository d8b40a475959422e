"""A program while it grows: every step is run at once, for each call, so that shapes and values are known."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .program import DTYPES, SHORT, Program, Step, first_name, names_in

MAX_ELEMENTS = 4096
MAX_VALUE = 1e4
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64, *HALVES)
INTEGERS = (torch.int64, torch.int32)
EDGES = (0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, -1e-42, 1e18, -1e18, 6e4, 1.0, -1.0, 0.5, 2.0)
GLOBALS = {**DTYPES, "torch": torch, "F": functional, "inf": math.inf, "nan": math.nan}


class Skip(Exception):
    """A step that cannot be made here: no value fits, or PyTorch refuses it."""


class Builder:
    """Grows a program step by step.

    A size that differs between the calls is symbolic: :meth:`size` writes it as ``x0.shape[1]``, others as numbers.

    Attributes:
        rng: where every choice comes from.
        envs: for each call, the tensors by name as they are after the last step.
        usual: the floating dtype that most inputs have.
    """

    def __init__(self, rng: random.Random, calls: int = 2) -> None:
        self.rng = rng
        self.envs: list[dict[str, Tensor]] = [{} for _ in range(calls)]
        self.given: dict[str, list[Tensor]] = {}  # inputs and buffers as they were before any step
        self.steps: list[Step] = []
        self.read: set[str] = set()
        self.usual = rng.choice((torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16))
        self.wild = rng.random() < 0.1  # whether steps may overflow
        self.raising: str | None = None  # the value of a last step that raises in PyTorch

    # --- sources ------------------------------------------------------------------------------------------------------

    def give(self, name: str, tensors: Sequence[Tensor]) -> None:
        """An input or a buffer, with its value in each call."""
        self.given[name] = [t.clone() for t in tensors]
        for env, tensor in zip(self.envs, tensors, strict=True):
            env[name] = tensor.clone()

    def values(self, shape: Sequence[int], dtype: torch.dtype, kind: str) -> Tensor:
        """Random values of a kind: normal, whole, edge, large, tiny or positive."""
        generator = torch.Generator().manual_seed(self.rng.randrange(2**31))
        if dtype == torch.bool:
            return torch.rand(tuple(shape), generator=generator) < 0.6
        if dtype in INTEGERS:
            return torch.randint(-5, 6, tuple(shape), generator=generator).to(dtype)
        made = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        if kind == "edge":
            at = torch.randint(0, 2 * len(EDGES), tuple(shape), generator=generator)
            made = torch.where(at < len(EDGES), torch.tensor(EDGES, dtype=torch.float64)[at % len(EDGES)], made)
        scale = {"large": 100.0, "tiny": 1e-3}.get(kind, 1.0)
        made = (made * 2).round() if kind == "whole" else made.abs() + 0.1 if kind == "positive" else made * scale
        return made.to(dtype)

    # --- choosing -----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Everything that a step may read, oldest first."""
        return list(self.envs[0])

    def shape(self, name: str) -> torch.Size:
        """A value's shape in the first call."""
        return self.envs[0][name].shape

    def dtype(self, name: str) -> torch.dtype:
        """A value's dtype."""
        return self.envs[0][name].dtype

    def pick(self, *dtypes: torch.dtype, fits: Callable[[torch.Size], bool] = lambda shape: True) -> str:
        """A value of one of the dtypes (any, where none is given) whose shape fits; newer ones more often.

        Raises:
            Skip: there is none.
        """
        fitting = [n for n in self.names if (not dtypes or self.dtype(n) in dtypes) and fits(self.shape(n))]
        if not fitting:
            raise Skip
        return self.rng.choice(fitting[-5:] if self.rng.random() < 0.7 else fitting)

    def float(self, rank: int = 0) -> str:
        """A floating value of at least this rank."""
        return self.pick(*FLOATS, fits=lambda shape: len(shape) >= rank)

    def partner(self, name: str, *dtypes: torch.dtype) -> str:
        """A value that broadcasts with another one in every call, of its dtype unless others are given."""
        wanted = dtypes or (self.dtype(name),)
        fitting = [n for n in self.names if self.dtype(n) in wanted and self._broadcasts(name, n)]
        return self.rng.choice(fitting) if fitting else name

    def _broadcasts(self, left: str, right: str) -> bool:
        return all(_broadcast(env[left].shape, env[right].shape) for env in self.envs)

    def axis(self, name: str) -> int:
        """An axis of a value, counted from the front or from the back."""
        rank = len(self.shape(name))
        if not rank:
            raise Skip
        return self.rng.randrange(-rank, rank)

    def size(self, name: str, axis: int) -> str:
        """A size of a value as source: a number where it is fixed."""
        sizes = {env[name].shape[axis] for env in self.envs}
        return f"{name}.shape[{axis}]" if len(sizes) > 1 else str(sizes.pop())

    def sizes(self, name: str) -> list[str]:
        """All sizes of a value as source."""
        return [self.size(name, axis) for axis in range(len(self.shape(name)))]

    def least(self, name: str, axis: int) -> int:
        """A size of a value in the call where it is smallest."""
        return min(env[name].shape[axis] for env in self.envs)

    def short(self, name: str) -> str:
        """A value's dtype as source."""
        return SHORT[self.dtype(name)]

    def number(self) -> str:
        """A scalar as source."""
        return self.rng.choice(("2", "0.5", "-1", "1", "0", "3", "-0.25", "1.5", "0.1", "1e-6", "-2"))

    # --- growing ------------------------------------------------------------------------------------------------------

    def add(self, op: str, source: str, results: int = 1, may_raise: bool = False) -> None:
        """Append a step that makes ``results`` values, or changes one in place where that is 0.

        Where it ``may_raise``, one with an index out of range is the last step of the program.

        Raises:
            Skip: PyTorch refuses it, or its result is none to go on with.
        """
        first = sum(len(s.targets) for s in self.steps)
        read = first_name(source)
        step = Step(op, tuple(f"v{first + i}" for i in range(results)), source, self.short(read) if read else "f32")
        try:
            made = [self._run(step, env) for env in self.envs]
        except Skip as skip:
            if may_raise and results and "out of " in str(skip.__cause__):
                self.steps.append(step)
                self.raising = step.targets[0]
                return
            raise
        for env, values in zip(self.envs, made, strict=True):
            env.update(values)
        self.steps.append(step)
        self.read |= step.reads

    def _run(self, step: Step, env: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not step.targets:
                    exec(step.source, GLOBALS, env)
                    return {}
                made = eval(step.source, GLOBALS, env)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            raise Skip from error
        values = made if len(step.targets) > 1 else (made,)
        if len(values) != len(step.targets) or not all(self._usable(v, step, env) for v in values):
            raise Skip
        return dict(zip(step.targets, values, strict=True))

    def _usable(self, value: Tensor, step: Step, env: dict[str, Tensor]) -> bool:
        if value.numel() > MAX_ELEMENTS or value.dtype not in SHORT or value.ndim > 6:
            return False
        if not value.dtype.is_floating_point:
            return not value.numel() or value.dtype == torch.bool or int(value.abs().max()) < 2**30
        operands = [env[n] for n in step.reads if env[n].dtype.is_floating_point]
        if self.wild or not all(x.isfinite().all() for x in operands):
            return True
        return bool(value.isfinite().all()) and (not value.numel() or float(value.abs().max()) < MAX_VALUE)

    def program(self, outputs: Sequence[str]) -> Program:
        """The program with these outputs; what it does not need is left out."""
        buffers = {n: tensors[0] for n, tensors in self.given.items() if n.startswith("b")}
        inputs = tuple(n for n in self.given if n.startswith("x"))
        calls = tuple(tuple(self.given[n][i] for n in inputs) for i in range(len(self.envs)))
        return pruned(Program(inputs, buffers, tuple(self.steps), tuple(outputs), calls, len(calls) > 1))


def _broadcast(left: Sequence[int], right: Sequence[int]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(left), reversed(right), strict=False))


def pruned(program: Program) -> Program:
    """The program without the inputs and buffers that nothing reads."""
    used = frozenset().union(*(s.reads for s in program.steps), *map(names_in, program.outputs))
    kept = [i for i, name in enumerate(program.inputs) if name in used]
    return Program(
        tuple(program.inputs[i] for i in kept),
        {name: tensor for name, tensor in program.buffers.items() if name in used},
        program.steps,
        program.outputs,
        tuple(tuple(call[i] for i in kept) for call in program.calls),
        program.dynamic,
    )


def recorded(program: Program) -> list[dict[str, Tensor]]:
    """Every value of a program as it was made, for each call that PyTorch does not refuse; the last may stop early."""
    found = []
    buffers = {name: t.clone() for name, t in program.buffers.items()}
    for call in program.calls:
        env = dict(zip(program.inputs, (t.clone() for t in call), strict=True)) | buffers
        seen: dict[str, Tensor] = {}
        found.append(seen)
        try:
            _record(program, env, seen)
        except Exception:  # whatever PyTorch refuses: what came before it is known
            break
    return found


def _record(program: Program, env: dict[str, Tensor], seen: dict[str, Tensor]) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in program.steps:
            exec(step.line, GLOBALS, env)
            seen.update((name, env[name].clone()) for name in step.targets)
