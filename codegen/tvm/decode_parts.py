"""Attention of a few queries where there are fewer heads than threads: the keys of a head in parts, a task for each.

A part leaves its largest score, its sum of weights and its weighted sum of values; a second loop puts the parts of a
row together, in order. How many parts there are follows from sizes and threads alone, so that results do not
differ from run to run. What parts leave lies on the stack: TVM's allocator takes longer than a short context. After
"Flash-Decoding for long-context inference" (T. Dao et al., 2023).
"""

from __future__ import annotations

from ...ir.types import Dim
from ..attention import AttentionProblem
from ..schedule import AttentionSchedule
from .contraction import flat_size
from .decode import Decode
from .expression import index_text

MOST_BLOCKS = 4  # of keys: as many are enough for a part, however few its rows
PART_TERMS = 1 << 17  # multiplications that are enough in fewer blocks, too: below, a second thread gains nothing
STACK_BYTES = 128 << 10  # for what parts leave


def cuts_keys(problem: AttentionProblem, schedule: AttentionSchedule) -> bool:
    """Whether there may be fewer heads than tasks, and keys enough for parts."""
    known = 1
    for axis in problem.outer:
        known *= axis.size if isinstance(axis.size, int) else 1
    return known // problem.group < schedule.tasks and _most_parts(problem, schedule) != 1


def _most_parts(problem: AttentionProblem, schedule: AttentionSchedule) -> Dim:
    """How many parts there are keys for; 2 where nobody knows yet."""
    keys = problem.key.size
    return max(-(-keys // _part_keys(problem, schedule)), 1) if isinstance(keys, int) else 2


def _part_keys(problem: AttentionProblem, schedule: AttentionSchedule) -> int:
    """How many keys a part has at least, in whole blocks: fewer where more heads share them."""
    block = schedule.keys * problem.group * (problem.head + problem.width)
    return min(max(-(-PART_TERMS // block), 1), MOST_BLOCKS) * schedule.keys


class DecodeParts(Decode):
    """Lanes along the head, keys in parts."""

    def emit(self) -> None:
        """Write the loops."""
        base = self.scope
        heads = f"({index_text(flat_size(self.p.outer), self.scope)} // {self.group})"
        rows = f"({self.queries} * {self.group})"
        # where few queries are one of two cases, the other one has rows that nothing is kept for
        kept = f"T.min({rows}, T.int64({self.schedule.few * self.group}))"
        self._share(heads, kept)
        self.let("count", rows)
        with self.loop("task", f"{heads} * {self['parts']}", "T.parallel") as task:
            self.task = self.var("head", f"{task} // {self['parts']}")
            limit = self._begin()
            self._part(f"({task} % {self['parts']})", limit)
            with self.src.block(f"if {self['parts']} == 1"):
                self._results()
            with self.src.block("else"):
                self._leave(task)
        self.scope = base
        rows = f"{heads} * {self['count']}"  # few: heads were fewer than threads
        with self.src.block(f"if {self['parts']} > 1"), self.loop("flat", rows) as flat:
            self.task = self.var("head", f"{flat} // {self['count']}")
            self._put_together(self.var("row", f"{flat} % {self['count']}"))

    def _share(self, heads: str, rows: str) -> None:
        """Name how many parts a head has, and the memory that they leave their results in."""
        s, total = self.schedule, self.size_of(self.p.key)
        threads, least = f"T.int64({s.tasks})", _part_keys(self.p, s)
        # where heads do not divide the threads, smaller parts keep more of them busy to the end
        wanted = f"T.Select({threads} % T.max({heads}, 1) == 0, {threads}, T.int64({2 * s.tasks}))"
        parts = f"T.Select({heads} >= {threads}, T.int64(1), ({wanted} + {heads} - 1) // T.max({heads}, 1))"
        self.let("parts", f"T.max(T.min({parts}, ({total} + {least - 1}) // {least}), T.int64(1))")
        self.width_pitch = self.padded(self.p.width)
        for name, size in (("part_sums", self.width_pitch), ("part_weights", 2)):
            self._keep(name, size, rows)

    def _keep(self, name: str, size: int, rows: str) -> None:
        """Declare memory for ``size`` numbers of each row of each task."""
        tasks = 3 * self.schedule.tasks  # more than heads times parts, where there are several parts
        most = tasks * self.group * self.most_queries * size
        if most * int(self.kind.removeprefix("float")) // 8 <= STACK_BYTES:
            self.buffer(name, most, self.kind)
        else:
            self.workspace(name, f"{tasks} * {rows} * {size}", self.kind)

    def _part(self, part: str, limit: str) -> None:
        """Write what is done with the blocks of one part."""
        keys = self.schedule.keys
        blocks = self.let("blocks", f"({limit} + {keys - 1}) // {keys}")
        share = self.let("share", f"({blocks} + {self['parts']} - 1) // {self['parts']}")
        first = self.let("first", f"T.min({part} * {share}, {blocks})")
        with self.loop("block", f"T.min({share}, {blocks} - {first})") as block:
            self._block(f"({first} + {block})", limit)

    def _leave(self, task: str) -> None:
        """Keep what a part found."""
        with self.loop("r", self["count"]) as r:
            at = self.let("at", f"{task} * {self['count']} + {r}")
            lanes = self.registers("sum", self.vector, self.kind)
            with self.lanes() as v:
                self.line(f"{lanes}[{v}] = {self['total']}[{r} * {self.vector} + {v}]")
            self._fold(lanes, "{0} + {1}", self["best"])
            self.line(f"{self['part_weights']}[{at} * 2] = {self['top']}[{r}]")
            self.line(f"{self['part_weights']}[{at} * 2 + 1] = {self['best']}")
            with self.vectors(self.width_pitch // self.vector, "range") as e:
                value = f"{self['o']}[{r} * {self.width_pitch} + {e}]"
                self.line(f"{self['part_sums']}[{at} * {self.width_pitch} + {e}] = {value}")

    def _put_together(self, row: str) -> None:
        """One row of the result, of what its parts left."""
        zero, pitch = self.zero(), self.width_pitch
        self.buffer("o", pitch, self.kind)
        best, total = self.var("best", self.low(), self.kind), self.var("total", zero, self.kind)
        shift = self.var("shift", zero, self.kind)
        self.fill("o", pitch, zero)

        def part_at(part: str) -> str:
            return self.let("at", f"({self.task} * {self['parts']} + {part}) * {self['count']} + {row}")

        with self.loop("part", self["parts"]) as part:
            top = f"{self['part_weights']}[{part_at(part)} * 2]"
            self.line(f"{best} = T.Select({top} > {best}, {top}, {best})")
        self.line(f"{shift} = T.Select({best} == {self.low()}, {zero}, {best})")
        with self.loop("part", self["parts"]) as part:
            at = part_at(part)
            scale = self.var("scale", f"vmath.exp({self['part_weights']}[{at} * 2] - {shift})", self.kind)
            self.line(f"{total} = {total} + {self['part_weights']}[{at} * 2 + 1] * {scale}")
            with self.vectors(pitch // self.vector, "range") as e:
                self.line(f"{self['o']}[{e}] = {self['o']}[{e}] + {self['part_sums']}[{at} * {pitch} + {e}] * {scale}")
        self.line(f"{shift} = T.Select({total} == {zero}, {zero}, T.{self.kind}(1) / {total})")
        self._name_row(row)
        for e in self.along(self.p.width):
            self.finish(self.row.at({self.p.value.symbol: e}), f"({self['o']}[{e}] * {shift})")
