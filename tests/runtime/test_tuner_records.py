"""Records of tuning: lines that stand for themselves, and what of them counts when a model is compiled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import smelt
from smelt.codegen.machine import Machine
from smelt.codegen.program import Program
from smelt.codegen.schedule import MatmulSchedule, RowsSchedule, default_schedule
from smelt.codegen.schedule_data import schedule_from_dict, schedule_to_dict
from smelt.codegen.space import space
from smelt.ir.types import symbol
from smelt.runtime import tuned
from smelt.runtime.cache import CacheWarning, KernelCache
from smelt.runtime.target import Target
from smelt.runtime.tuned import Tuned, fault_of
from smelt.runtime.tuner_lock import read_lock, write_lock
from smelt.runtime.tuner_records import Choice, Records, Trial, key_of, record_from_dict, record_to_dict, versions

from .tuning import linear, target

MACHINE = Machine()


def program_of(width: int = 64) -> Program:
    return linear(columns=width).step(target().machine).kernel.program


def choice(program: Program, at: Target | None = None, rows: int = 24, **changes: object) -> Choice:
    at = at or target()
    default = default_schedule(program, at.machine)
    other = next(s for s in space(program, at.machine) if s != default)
    made = Choice(
        key_of(program, at), versions(), {"m": rows}, other, default, 0.5, 1.0, 7, "k0", str(at), "2026-01-02"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# --- text -------------------------------------------------------------------------------------------------------------


def test_records_read_back() -> None:
    made = choice(program_of())
    trial = Trial(made.key, made.versions, made.sizes, made.schedule, "crash", 0.0, "the process ended with -11")
    for record in (made, trial):
        assert record_from_dict(json.loads(json.dumps(record_to_dict(record)))) == record


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "loop"}, "no schedule of kind 'loop'"),
        ({"kind": "rows"}, r"has the fields \['vector'\]: got \[\]"),
        ({"kind": "rows", "vector": 8, "lanes": 1}, "got"),
        ({"kind": "rows", "vector": None}, "are numbers"),
        ([], "is an object"),
    ],
)
def test_schedules_that_are_none(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_from_dict(data)  # type: ignore[arg-type]


def test_schedules_read_back() -> None:
    for schedule in (RowsSchedule(8), MatmulSchedule(4, 32, blocked=True)):
        assert schedule_from_dict(json.loads(json.dumps(schedule_to_dict(schedule)))) == schedule


def test_damaged_lines_cost_themselves(tmp_path: Path) -> None:
    good = json.dumps(record_to_dict(choice(program_of())))
    bad = [
        "",
        "{",
        "[]",
        "{}",
        good.replace('"format": 1', '"format": 2'),
        good.replace('"m": 24', '"m": "x"'),
        good[:-9],
    ]
    path = tmp_path / "tuning.jsonl"
    path.write_text("\n".join([*bad, good, good.replace('"tried"', '"tired"')]))
    assert Records(path).choices() == [choice(program_of())]


def test_an_end_that_was_not_written_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "tuning.jsonl"
    path.write_text('{"format": 1, "wh')
    Records(path).add([choice(program_of())])
    assert Records(path).choices() == [choice(program_of())]


def test_later_choices_replace_earlier_ones(tmp_path: Path) -> None:
    records, program = Records(tmp_path / "a" / "tuning.jsonl"), program_of()
    records.add([choice(program), choice(program, rows=1)])
    records.add([choice(program, tried=9)])
    assert [(c.sizes["m"], c.tried) for c in Records(records.path).choices()] == [(24, 9), (1, 7)]
    assert records.choices() == Records(records.path).choices()


def test_files_are_merged(tmp_path: Path) -> None:
    here, there = Records(tmp_path / "here"), Records(tmp_path / "there")
    here.add([choice(program_of())])
    there.add([choice(program_of()), choice(program_of(32))])
    assert here.merge(there) == 1
    assert here.merge(there) == 0
    assert len(Records(here.path).choices()) == 2


# --- what counts ------------------------------------------------------------------------------------------------------


def test_a_choice_for_the_program_counts() -> None:
    program = program_of()
    found = Tuned(target(), [choice(program)])
    assert found(program) == choice(program).schedule
    assert found(program_of(32)) is None
    assert Tuned(target().with_threads(2), [choice(program)])(program) is None


def test_the_nearest_sizes_count() -> None:
    program, other = program_of(), space(program_of(), target().machine)[5]
    known = [choice(program, rows=1), choice(program, rows=128, schedule=other)]
    assert Tuned(target(), known, {symbol("m"): 100})(program) == other
    assert Tuned(target(), known, {symbol("m"): 2})(program) == known[0].schedule
    assert Tuned(target(), known)(program) == other  # the last


def test_what_does_not_count_any_more() -> None:
    program, made = program_of(), choice(program_of())
    assert fault_of(made, program, target()) is None
    for changes, fault in (
        ({"versions": "old"}, "another version"),
        ({"default": made.schedule}, "default schedule is another"),
        ({"schedule": MatmulSchedule(8, 48, vector=3)}, "not in the space"),
    ):
        stale = replace(made, **changes)  # type: ignore[arg-type]
        assert fault in str(fault_of(stale, program, target()))
        assert Tuned(target(), [stale])(program) is None


def test_the_digest_changes_with_the_choices() -> None:
    program = program_of()
    digests = {Tuned(target(), known).digest for known in ([], [choice(program)], [choice(program, tried=8)])}
    assert len(digests) == 3


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_lock_reads_back_whatever_the_order(tmp_path: Path) -> None:
    path, both = tmp_path / "smelt.lock", [choice(program_of()), choice(program_of(32), kernel="k1")]
    write_lock(path, both)
    text = path.read_text()
    assert read_lock(path) == both
    write_lock(path, both[::-1])
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "choices": [1]}'])
def test_a_damaged_lock_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "smelt.lock"
    path.write_text(text)
    with pytest.warns(CacheWarning, match=r"smelt\.lock is not used .* make it again"):
        assert read_lock(path) == []
    assert read_lock(tmp_path / "none") == []


# --- compile ----------------------------------------------------------------------------------------------------------


def model_and_input() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 72), nn.ReLU()).eval(), torch.randn(24, 40)


def test_compile_takes_what_was_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_and_input()
    cache, at = KernelCache(tmp_path / "cache"), Target.detect(threads=1)

    def compiled(tune: str) -> tuple[torch.Tensor, object]:
        fast = smelt.compile(model, threads=1, cache=cache, tune=tune)  # type: ignore[arg-type]
        with torch.no_grad():
            return fast(x), fast.entries[0].executable.kernels[0].schedule

    first, default = compiled("cached")
    (kernel,) = smelt_programs(model, x, cache)
    made = choice(kernel, at, schedule=next(s for s in space(kernel, at.machine) if s.tile_n != default.tile_n))  # type: ignore[union-attr, attr-defined]
    Records.of_user(cache).add([made])
    second, tuned_schedule = compiled("cached")
    assert tuned_schedule == made.schedule != default
    assert compiled("off")[1] == default
    torch.testing.assert_close(first, second)
    # a lock goes before the user's records
    monkeypatch.chdir(tmp_path)
    other = [s for s in space(kernel, at.machine) if s not in (made.schedule, default)][3]
    write_lock(tmp_path / "smelt.lock", [replace(made, schedule=other)])
    assert compiled("cached")[1] == other


def smelt_programs(model: nn.Module, x: torch.Tensor, cache: KernelCache) -> list[Program]:
    fast = smelt.compile(model, threads=1, cache=cache, tune="off")
    with torch.no_grad():
        fast(x)
    return [info.program for info in fast.entries[0].executable.kernels]


def test_compile_tunes_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_and_input()
    asked: list[int] = []

    def now(executable: object, tensors: object, sizes: object, at: Target, cache: KernelCache) -> Tuned:
        asked.append(len(tensors))  # type: ignore[arg-type]
        (program,) = smelt_programs(model, x, cache)
        return Tuned(at, [choice(program, at)])

    monkeypatch.setattr("smelt.runtime.captures.tuned_now", now)
    cache = KernelCache(tmp_path)
    fast = smelt.compile(model, threads=1, cache=cache, tune="full")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert asked == [1]
    (program,) = smelt_programs(model, x, cache)
    assert fast.entries[0].executable.kernels[0].schedule == choice(program, Target.detect(threads=1)).schedule


def test_tuning_within_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of ``tune="full"``, with a tuner that chooses at once."""
    from smelt.ir.cost import Roofs
    from smelt.runtime import roofs, tuner

    def run(self: tuner.Tuner) -> list[tuner.Progress]:
        for kernel in self.kernels:
            program = kernel.task.step(self.target.machine).kernel.program
            kernel.choice = choice(program, self.target)
        return self.kernels

    monkeypatch.setattr(tuner.Tuner, "run", run)
    monkeypatch.setattr(roofs, "roofs_of", lambda target, cache: Roofs())
    model, x = model_and_input()
    for cache in (KernelCache(tmp_path), False):
        fast = smelt.compile(model, threads=1, cache=cache, tune="full")
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x))
        kernel = fast.entries[0].executable.kernels[0]
        assert kernel.schedule != default_schedule(kernel.program, Target.detect(threads=1).machine)


def test_an_unknown_way_to_tune() -> None:
    with pytest.raises(ValueError, match='tune is \'always\': say "off", "cached" or "full"'):
        smelt.compile(nn.Identity(), tune="always")  # type: ignore[arg-type]


def test_nothing_is_read_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned.Records, "choices", lambda self: pytest.fail("records were read"))
    assert tuned.tuned_for(target(), None)(program_of()) is None
