"""Recurrent layers: every step multiplies the hidden state by the packed weight, then goes over the hidden units.

Where the weight is small, a task has a block of batch rows and all their steps: rows do not depend on each other, and
tasks never wait for one another. Of a large weight a cache holds only a part, and a single row would have one task:
there all tasks share the columns of each step, and wait for each other twice in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...ir.errors import UnsupportedError
from ..program import Program
from ..schedule import RecurrenceSchedule
from .expression import Scope, compute_type, from_storage, index_text, load_text, store_line
from .nest import Nest
from .source import Source

# What becomes of the pre-activations z, gate by gate, of the states h and c, and of the inputs x of a gate that the
# recurrence scales before it adds them. Each line is a statement: its result is in memory for the next.
_CELLS: dict[str, tuple[tuple[str, str], ...]] = {
    "tanh": (("h", "vmath.tanh({z0})"),),
    "relu": (("h", "helpers.maximum({z0}, {zero})"),),
    "lstm": (
        ("z0", "vmath.sigmoid({z0})"),
        ("z1", "vmath.sigmoid({z1})"),
        ("z2", "vmath.tanh({z2})"),
        ("c", "{z1} * {c} + {z0} * {z2}"),
        ("z3", "vmath.sigmoid({z3})"),
        ("z2", "vmath.tanh({c})"),
        ("h", "{z3} * {z2}"),
    ),
    "gru": (
        ("z0", "vmath.sigmoid({z0})"),
        ("z1", "vmath.sigmoid({z1})"),
        ("z2", "{x} + {z0} * {z2}"),
        ("z2", "vmath.tanh({z2})"),
        ("h", "{z2} + {z1} * ({h} - {z2})"),
    ),
}
_GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}


def emit_recurrence(program: Program, schedule: RecurrenceSchedule, src: Source) -> None:
    """Write the loops of a RECURRENCE kernel.

    Raises:
        UnsupportedError: the hidden size is not a number.
    """
    _Recurrence(program, schedule, src).emit()


class _Recurrence(Nest):
    def __init__(self, program: Program, schedule: RecurrenceSchedule, src: Source) -> None:
        super().__init__(src, schedule.vector)
        assert program.recurrence is not None
        self.program = program
        self.schedule = schedule
        self.r = program.recurrence
        self.scope = Scope(program, src)
        self.kind = compute_type(program.param(self.r.gates).type.dtype)
        if not isinstance(self.r.hidden.size, int):
            raise UnsupportedError(f"a recurrent layer with a hidden size of {self.r.hidden.size}: it must be a number")
        self.hidden = self.r.hidden.size
        self.gates = _GATES[self.r.kind]
        self.panels = -(-self.gates * self.hidden // schedule.tile_n)
        self.cells = -(-schedule.rows * self.hidden // schedule.vector) * schedule.vector
        self.states = ("h", "c")[: len(self.r.states)]

    def emit(self) -> None:
        if self.schedule.shared:
            self._shared_steps()
        else:
            self._own_steps()

    def _own_steps(self) -> None:
        """Tasks that have rows of the batch, and all their steps."""
        s, r = self.schedule, self.r
        batch = index_text(r.batch.size, self.scope)
        rows = self.let("rows", f"T.max(T.min(({batch} + {s.tasks - 1}) // {s.tasks}, {s.rows}), T.int64(1))")
        with self.loop("task", f"({batch} + {rows} - 1) // {rows}", "T.parallel") as task:
            first = self.var("first", f"{task} * {rows}")
            self.let("count", f"T.min({batch} - {first}, {rows})")
            for state in self.states:
                self.buffer(state, self.cells, self.kind)
                self.fill(state, self.cells, f"T.{self.kind}(0)")
            self.buffer("z", s.rows * self.panels * s.tile_n, self.kind)
            self._load_states()
            with self._steps():
                with self.loop("panel", self.panels) as at:
                    self._product(self._turned(at, self.panels), "0", self["count"])
                with self.loop("r", self["count"]) as row:
                    self._units(row)
            self._store_states()

    def _shared_steps(self) -> None:
        """Steps whose columns all tasks share: each of them reads a part of the weight."""
        s, batch = self.schedule, index_text(self.r.batch.size, self.scope)
        self.let("first", "T.int64(0)")
        self.let("count", batch)
        for name, width in (*((state, self.hidden) for state in self.states), ("z", self.panels * s.tile_n)):
            # a block of rows that are not all there is computed whole
            self.workspace(name, f"({batch} + {s.rows}) * {width}", self.kind)
        with self.loop("e", f"({batch} + {s.rows}) * {self.hidden}") as e:
            for state in self.states:
                self.line(f"{self[state]}[{e}] = T.{self.kind}(0)")
        self._load_states()
        with self._steps():
            with self.loop("panel", self.panels, "T.parallel") as at:
                panel = self._turned(at, 1 if self.panels % s.tasks else self.panels // s.tasks)
                with self.loop("block", f"({batch} + {s.rows - 1}) // {s.rows}") as block:
                    row = self.var("row", f"{block} * {s.rows}")
                    self._product(panel, row, self.var("left", f"T.min({batch} - {row}, {s.rows})"))
            with self.loop("r", batch, "T.parallel") as r:
                self._units(r)
        self._store_states()

    @contextmanager
    def _steps(self) -> Iterator[None]:
        """The loop over time; ``now`` is where a step's inputs and outputs are."""
        time = index_text(self.r.time.size, self.scope)
        with self.loop("step", time) as step:
            self.let("now", f"{time} - 1 - {step}" if self.r.reverse else step)
            self.step = step
            yield

    def _turned(self, at: str, count: int) -> str:
        """Which of the panels of a thread, ``count`` of them, comes at some place in a step.

        Every other step begins with those that came last, which are in a cache still.
        """
        if count == 1:
            return at
        back = f"{at} // {count} * {count} + ({count - 1} - {at} % {count})"
        return self.var("turned", f"T.Select({self.step} % 2 == 0, {at}, {back})")

    # --- states -------------------------------------------------------------------------------------------------------

    def _load_states(self) -> None:
        with self.loop("r", self["count"]) as r, self.loop("j", self.hidden) as j:
            for state, name in zip(self.states, self.r.states, strict=True):
                param = self.program.param(name)
                value = load_text(param, (self.r.batch.symbol, self.r.hidden.symbol), self._at(r, j))
                self.line(f"{self[state]}[{r} * {self.hidden} + {j}] = {value}")

    def _store_states(self) -> None:
        with self.loop("r", self["count"]) as r, self.loop("j", self.hidden) as j:
            for state, name in zip(self.states, self.r.outputs[1:], strict=True):
                value = f"{self[state]}[{r} * {self.hidden} + {j}]"
                index = (self.r.batch.symbol, self.r.hidden.symbol)
                self.line(store_line(self.program.param(name), index, value, self._at(r, j)))

    def _at(self, r: str, j: str) -> Scope:
        return self.scope.at({self.r.batch.symbol: f"({self['first']} + {r})", self.r.hidden.symbol: j})

    # --- the product --------------------------------------------------------------------------------------------------

    def _product(self, panel: str, first: str, count: str) -> None:
        """``z[row, gate unit]``: the hidden states of at most ``rows`` rows times a panel of the weight."""
        heights = tuple(dict.fromkeys((self.schedule.rows, (self.schedule.rows + 1) // 2, 1)))
        for i, height in enumerate(heights):
            below = heights[i + 1] if i + 1 < len(heights) else 0
            head = "if" if i == 0 else "elif"
            with self.src.block(f"{head} {count} > {below}" if below or i == 0 else "else"):
                self._tile(height, panel, first)

    def _tile(self, rows: int, panel: str, first: str) -> None:
        s, width = self.schedule, self.schedule.tile_n // self.vector
        acc = self.registers("acc", rows * s.tile_n, self.kind)
        self.fill(acc, rows * s.tile_n, f"T.{self.kind}(0)", "T.unroll")
        weight = self.program.param(self.r.weight)
        with self.loop("k", self.hidden) as k, self.loop("i", rows, "T.unroll") as i, self.vectors(width) as e:
            to = f"{acc}[{i} * {s.tile_n} + {e}]"
            element = f"{weight.name}[({panel} * {self.hidden} + {k}) * {s.tile_n} + {e}]"
            state = f"{self['h']}[({first} + {i}) * {self.hidden} + {k}]"
            self.line(f"{to} = {to} + {state} * {from_storage(element, weight.type.dtype)}")
        with self.loop("i", rows, "T.unroll") as i, self.vectors(width) as e:
            to = f"{self['z']}[(({first} + {i}) * {self.panels} + {panel}) * {s.tile_n} + {e}]"
            self.line(f"{to} = {acc}[{i} * {s.tile_n} + {e}]")

    # --- the cell -----------------------------------------------------------------------------------------------------

    def _units(self, r: str) -> None:
        """The new states and the output of a row in this step."""
        whole = self.gates - (self.r.kind == "gru")  # gates whose inputs are simply added
        for j in self.along(whole * self.hidden):
            self._add_inputs(r, j, inputs=True)
        for j in self.along((self.gates - whole) * self.hidden):
            self._add_inputs(r, f"({whole * self.hidden} + {j})", inputs=False)
        for j in self.along(self.hidden):
            self._cell(r, j)
        for j in self.along(self.hidden):
            value = f"{self['h']}[{r} * {self.hidden} + {j}]"
            index = (self.r.time.symbol, self.r.batch.symbol, self.r.hidden.symbol)
            self.line(store_line(self.program.param(self.r.outputs[0]), index, value, self._now(r, j)))

    def _now(self, r: str, j: str) -> Scope:
        return self._at(r, j).at({self.r.time.symbol: self["now"]})

    def _z(self, r: str, j: str) -> str:
        return f"{self['z']}[{r} * {self.panels * self.schedule.tile_n} + {j}]"

    def _add_inputs(self, r: str, j: str, *, inputs: bool) -> None:
        unit, scope, z = self.r.hidden.symbol, self._now(r, j), self._z(r, j)
        value = f"{z} + {load_text(self.program.param(self.r.bias), (unit,), scope)}"
        if inputs:
            gates = self.program.param(self.r.gates)
            value += f" + {load_text(gates, (self.r.time.symbol, self.r.batch.symbol, unit), scope)}"
        self.line(f"{z} = {value}")

    def _cell(self, r: str, j: str) -> None:
        unit = 2 * self.hidden + self.r.hidden.symbol
        index = (self.r.time.symbol, self.r.batch.symbol, unit)
        names = {f"z{gate}": self._z(r, f"{gate * self.hidden} + {j}") for gate in range(self.gates)}
        names |= {state: f"{self[state]}[{r} * {self.hidden} + {j}]" for state in self.states}
        names["x"] = load_text(self.program.param(self.r.gates), index, self._now(r, j)) if self.gates == 3 else ""
        names["zero"] = f"T.{self.kind}(0)"
        for name, text in _CELLS[self.r.kind]:
            self.line(f"{names[name]} = {text.format(**names)}")
