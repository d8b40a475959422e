"""Recurrent layers: all steps in time of some rows of the batch in one program.

The states lie in memory between steps, the hidden one twice: what a step reads is never what it writes. Rows of the
batch do not depend on each other, so programs never wait for one another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from ...ir.types import TensorType, canonical_dim, contiguous_strides
from ..gpu import GpuRecurrenceSchedule
from ..program import Affine, Expr, Load, Param, Program, Recurrence, Role, axis_symbol
from .expression import store, value_of
from .file import FileWriter, ceil_div, program_id
from .indexing import dim_text
from .scope import Scope, Value, counted
from .storage import compute_dtype, compute_type

HIDDEN, CELL = "hidden", "cell"  # the scratch memory
GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
ROWS, UNITS = frozenset({0}), frozenset({1})
TERM = axis_symbol("term")


def emit_recurrence(file: FileWriter, schedule: GpuRecurrenceSchedule) -> None:
    """Write the function of a recurrence program."""
    program, r = file.program, file.program.recurrence
    assert r is not None
    dtype = compute_dtype(program.param(r.gates).type.dtype)
    states = {HIDDEN: (canonical_dim(2 * r.batch.size), r.hidden.size), CELL: (r.batch.size, r.hidden.size)}
    lent = [
        file.lend(Param(name, TensorType(states[name], dtype), contiguous_strides(states[name]), Role.OUT))
        for name in (HIDDEN, CELL)[: len(r.states)]
    ]
    whole = replace(program, params=(*program.params, *lent))
    names = [p.name for p in whole.params]
    programs = ceil_div(r.batch.size, schedule.rows)
    with file.function("", whole, [], names, programs, warps=schedule.warps) as scope:
        _Steps(whole, r, schedule, scope).emit()


@dataclass
class _Steps:
    program: Program
    r: Recurrence
    schedule: GpuRecurrenceSchedule
    scope: Scope

    def __post_init__(self) -> None:
        self.src, s = self.scope.src, self.schedule
        self.kind = compute_type(self.program.param(self.r.gates).type.dtype)
        self.rows, self.units = self.src.constant("ROWS", s.rows), self.src.constant("UNITS", s.units)
        self.terms = self.src.constant("TERMS", s.terms)
        self.states = (HIDDEN, CELL)[: len(self.r.states)]
        self.gates = GATES[self.r.kind]

    def emit(self) -> None:
        """Write the function's body."""
        src, r = self.src, self.r
        b = src.let("b", f"{program_id(self.scope)} * {self.rows} + {self.line(self.rows, 0)}")
        self.in_b = src.let("in_b", f"{b} < {dim_text(r.batch.size, self.scope)}")
        self.b, self.size = b, dim_text(r.hidden.size, self.scope)
        self.scope = self.scope.at({r.batch.symbol: Value(b, ROWS)})
        half = dim_text(canonical_dim(r.batch.size * r.hidden.size), self.scope)
        with self._units() as at:
            for state, name in zip(self.states, r.states, strict=True):
                value = value_of(self._load(name, r.batch.symbol, r.hidden.symbol), at)
                self._keep(state, "", value.text, at)
        src.line("tl.debug_barrier()")
        step, time = src.fresh("step"), dim_text(r.time.size, self.scope)
        with src.block(f"for {step} in range(0, {time})"):
            if self.scope.bits == 64:  # sizes that are numbers leave it one of 32
                step = src.let("step", f"tl.full((), {step}, tl.int64)")
            now = src.let("now", f"{time} - 1 - {step}" if r.reverse else step)
            old, new = (src.let(n, f"({step} + {i}) % 2 * {half}") for i, n in enumerate(("old", "new")))
            self.scope = self.scope.at({r.time.symbol: Value(now)})
            with self._units() as at:
                self._step(old, new, at)
            src.line("tl.debug_barrier()")
        last = src.let("last", f"{time} % 2 * {half}")
        with self._units() as at:
            for state, name in zip(self.states, r.outputs[1:], strict=True):
                value = self._kept(state, last if state == HIDDEN else "", at)
                store(self.program.param(name), (r.batch.symbol, r.hidden.symbol), value, at)

    def _units(self) -> _Units:
        return _Units(self)

    def line(self, extent: str, dim: int) -> str:
        """Numbers of the index type along one dim of a block."""
        return counted(extent, 2, dim, self.scope.bits)

    # --- states -------------------------------------------------------------------------------------------------------

    def _place(self, state: str, start: str, unit: str) -> str:
        return f"{state} + " + (f"{start} + " if start else "") + f"{self.b} * {self.size} + {unit}"

    def _keep(self, state: str, start: str, value: str, at: Scope) -> None:
        unit = at.axes[self.r.hidden.symbol].text
        self.src.line(
            f"tl.store({self._place(state, start, unit)}, {value}, mask={' & '.join(filter(None, at.masks))})"
        )

    def _kept(self, state: str, start: str, at: Scope) -> Value:
        unit, mask = at.axes[self.r.hidden.symbol].text, " & ".join(filter(None, at.masks))
        text = f"tl.load({self._place(state, start, unit)}, mask={mask}, other=0)"
        return Value(self.src.let(state[0], text), ROWS | UNITS)

    # --- a step -------------------------------------------------------------------------------------------------------

    def _load(self, name: str, *index: Affine) -> Expr:
        return Load(name, tuple(index), self.program.param(name).type.dtype)

    def _step(self, old: str, new: str, at: Scope) -> None:
        """The new states of some units, and their output."""
        src, r, size = self.src, self.r, sympy.sympify(self.r.hidden.size)
        z = [src.let(f"z{g}", f"tl.zeros(({self.rows}, {self.units}), {self.kind})") for g in range(self.gates)]
        start = src.fresh("start")
        with src.block(f"for {start} in range(0, {self.size}, {self.terms})"):
            k = src.let("k", f"{start} + {self.line(self.terms, 1)}")
            mask = f"{self.in_b} & ({k} < {self.size})"
            h = src.let("h", f"tl.load({self._place(HIDDEN, old, k)}, mask={mask}, other=0)")
            k = src.let("k", f"{start} + {self.line(self.terms, 0)}")
            in_k = src.let("in_k", f"{k} < {self.size}")
            weights = replace(at.block((self.terms, self.units), (in_k, at.masks[1])), fill=True)
            weights = weights.at({TERM: Value(k, ROWS)})
            for g, name in enumerate(z):
                w = value_of(self._load(r.weight, TERM, r.hidden.symbol + g * size), weights)
                src.line(f"{name} = {self._product(h, w.text, name)}")
        for g, name in enumerate(z):
            text = f"{name} + {value_of(self._load(r.bias, r.hidden.symbol + g * size), at).text}"
            if not (r.kind == "gru" and g == 2):  # the recurrence scales that gate before its input is added
                text += f" + {self._input(g, at).text}"
            src.line(f"{name} = {text}")
        value = self._cell(z, old, at)
        self._keep(HIDDEN, new, value.text, at)
        store(self.program.param(r.outputs[0]), (r.time.symbol, r.batch.symbol, r.hidden.symbol), value, at)

    def _input(self, gate: int, at: Scope) -> Value:
        r = self.r
        unit = r.hidden.symbol + gate * sympy.sympify(r.hidden.size)
        return value_of(self._load(r.gates, r.time.symbol, r.batch.symbol, unit), at)

    def _product(self, h: str, w: str, z: str) -> str:
        if self.schedule.dot:
            return f'tl.dot({h}, {w}, {z}, input_precision="ieee")'
        return f"{z} + tl.sum({h}[:, :, None] * {w}[None, :, :], axis=1)"

    def _cell(self, z: list[str], old: str, at: Scope) -> Value:
        """The new hidden state."""
        src = self.src
        match self.r.kind:
            case "tanh":
                text = f"lib.tanh({z[0]})"
            case "relu":
                text = f"lib.maximum({z[0]}, tl.full((), 0.0, {self.kind}))"
            case "lstm":
                before = self._kept(CELL, "", at).text
                gates = f"lib.sigmoid({z[1]}) * {before} + lib.sigmoid({z[0]}) * lib.tanh({z[2]})"
                c = src.let("c", gates)
                self._keep(CELL, "", c, at)
                text = f"lib.sigmoid({z[3]}) * lib.tanh({c})"
            case _:
                before = self._kept(HIDDEN, old, at).text
                n = src.let("n", f"lib.tanh({self._input(2, at).text} + lib.sigmoid({z[0]}) * {z[2]})")
                text = f"{n} + lib.sigmoid({z[1]}) * ({before} - {n})"
        return Value(src.let("h", text), ROWS | UNITS)


class _Units:
    """A loop over the hidden units: the scope of a block of [rows, units]."""

    def __init__(self, steps: _Steps) -> None:
        self.steps = steps

    def __enter__(self) -> Scope:
        s = self.steps
        first = s.src.fresh("first")
        self.block = s.src.block(f"for {first} in range(0, {s.size}, {s.units})")
        self.block.__enter__()
        j = s.src.let("j", f"{first} + {s.line(s.units, 1)}")
        in_j = s.src.let("in_j", f"{j} < {s.size}")
        at = s.scope.block((s.rows, s.units), (s.in_b, in_j))
        return at.at({s.r.hidden.symbol: Value(j, UNITS)})

    def __exit__(self, *error: object) -> None:
        self.block.__exit__(None, None, None)
