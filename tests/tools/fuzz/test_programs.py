"""Random programs: what they are made of, that they print as Python, and that all ways agree on them."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from smelt.tools.fuzz.builder import Builder, Skip
from smelt.tools.fuzz.check import Raised, check, observe
from smelt.tools.fuzz.generate import FEWEST, MOST, STEPS, program_of, programs, sources
from smelt.tools.fuzz.program import DTYPES, Program, literal, load

GOLDEN = Path(__file__).parents[2] / "golden" / "fuzz"


def test_a_program_is_decided_by_its_seed_and_number() -> None:
    again = program_of(3, 5)
    assert program_of(3, 5).source() == again.source()
    assert program_of(3, 6).source() != again.source() != program_of(4, 5).source()


def test_every_step_is_made() -> None:
    b = Builder(random.Random(0))
    sources(b)
    missing = {make.__name__: make for _, make in STEPS}
    for seed in range(400):
        if seed % 20 == 0:
            b = Builder(random.Random(seed))
            sources(b)
        for name, make in list(missing.items()):
            before = len(b.steps)
            try:
                make(b)
            except Skip:
                assert len(b.steps) <= before + 1  # of two steps the second may not fit
                continue
            assert len(b.steps) > before
            del missing[name]
    assert not missing


def test_programs_are_of_many_sizes_operators_and_dtypes() -> None:
    made = [program_of(0, number) for number in range(150)]
    assert all(p.steps and len(p.steps) <= MOST + 1 for p in made)
    assert sum(len(p.steps) >= FEWEST for p in made) > 140
    dtypes = Counter(step.dtype for p in made for step in p.steps)
    assert {"f32", "bf16", "f16", "f64", "i64", "i32", "boolean"} <= set(dtypes)
    assert len({step.op for p in made for step in p.steps}) > 120
    twice = [p.calls for p in made if len(p.calls) == 2]
    sizes = [[[t.shape for t in call] for call in calls] for calls in twice]
    assert sum(first != second for first, second in sizes) > 40  # symbolic sizes
    assert sum(not p.dynamic for p in made) > 60
    assert any(p.buffers and any(not s.targets for s in p.steps) for p in made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_literals_are_exact(dtype: torch.dtype) -> None:
    b = Builder(random.Random(1))
    for shape in ((3, 5), (), (4,), (0, 2)):
        tensor = b.values(shape, dtype, "edge")
        code = literal(tensor)
        names = {"torch": torch, "inf": float("inf"), "nan": float("nan")}
        found = eval(code, names | DTYPES)
        assert found.dtype == dtype
        assert found.shape == tensor.shape
        torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found.signbit(), tensor.signbit()) or tensor.isnan().any()


def test_some_programs_raise() -> None:
    for number in range(400):
        program = program_of(0, number)
        if len(program.outputs) == 2 and program.steps[-1].op in ("index", "index_select", "gather", "embedding"):
            loaded = load(program.source())
            if isinstance(observe(loaded.module(), loaded.calls)[-1], Raised):
                return
    pytest.fail("no program raises")


def test_source_runs_as_the_program_did_when_it_was_made() -> None:
    for number in range(10):
        program = program_of(1, number)
        loaded = load(program.source("a note"))
        first, second = observe(loaded.module(), loaded.calls), observe(loaded.module(), program.calls)
        for a, b in zip(first, second, strict=True):
            assert isinstance(a, dict)
            assert isinstance(b, dict)
            for path in a:
                torch.testing.assert_close(a[path], b[path], rtol=0, atol=0, equal_nan=True)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(programs())
def test_all_ways_agree_on_what_hypothesis_draws(program: Program) -> None:
    verdict = check(program.source())
    assert verdict.finding is None, f"{verdict.finding}\n{program.source()}"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.py")), ids=lambda path: path.stem)
def test_what_failed_before(path: Path) -> None:
    finding = check(path.read_text(encoding="utf-8"), native=True).finding
    assert finding is None, f"{path}: {finding}"
