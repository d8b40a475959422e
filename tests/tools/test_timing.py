"""Timing: turns are interleaved, ratios stay within rounds, and the load of others is seen."""

import os
import threading
import time

import pytest

from smelt.tools import timing
from smelt.tools.timing import Timings, interleave, load_of_others, settle, wait_for_idle


def test_everyone_has_a_turn_in_each_round() -> None:
    order: list[str] = []
    runners = {name: (lambda name=name: (order.append(name), time.sleep(0.002))) for name in "abc"}
    found = interleave(runners, 3, turn_seconds=0)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    # once to find out how long a call takes, then round by round
    assert "".join(turns) == "abc" * 4
    assert {name: len(seconds) for name, seconds in found.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(seconds >= 0.002 for each in found.seconds.values() for seconds in each)


def test_a_turn_begins_when_threads_of_the_one_before_sleep() -> None:
    ends: list[float] = []
    begins: list[float] = []

    def spin() -> None:
        end = time.perf_counter() + 0.05
        ends.append(end)

        def wait() -> None:
            while time.perf_counter() < end:
                sum(range(2000))

        threading.Thread(target=wait).start()

    def after() -> None:
        begins.append(time.perf_counter())

    interleave({"spinning": spin, "after": after}, 2, turn_seconds=0)
    # two calls to find out how long one takes, then two in each round, of which the first begins the turn
    assert all(begin >= end - 0.01 for begin, end in zip(begins[2::2], ends[3::2], strict=True))


def test_what_never_sleeps_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spun = iter(range(1_000_000))
    monkeypatch.setattr(time, "process_time", lambda: next(spun) * 0.01)
    start = time.monotonic()
    settle(0.05)
    assert 0.05 <= time.monotonic() - start < 1.0


def test_short_calls_are_repeated() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    interleave({"a": run}, 2, turn_seconds=0.01)
    assert calls > 20


def test_progress_is_told() -> None:
    done: list[int] = []
    interleave({"a": lambda: None}, 3, turn_seconds=0, progress=done.append)
    assert done == [1, 2, 3]


def test_ratios_are_within_rounds() -> None:
    # The machine was ten times slower in the second round: the ratio is 2 in each.
    timings = Timings({"a": [2.0, 20.0, 2.0], "b": [1.0, 10.0, 1.0]})
    assert timings.ratio("a", "b") == 2.0
    assert timings.median("a") == 2.0
    assert timings.best("b") == 1.0


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="this system does not tell its load")
def test_the_load_of_others_is_without_ours() -> None:
    load = load_of_others(0.05)
    assert load is not None
    assert 0 <= load <= (os.cpu_count() or 1) + 0.5


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([1.5, 0.8, 0.05, 9.0])
    monkeypatch.setattr(timing, "load_of_others", lambda seconds=0.3: next(loads))
    assert wait_for_idle(5) == 0.05
    assert wait_for_idle(0) == 9.0


def test_a_system_that_does_not_tell_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ticks", lambda: None)
    assert load_of_others(0) is None
    assert wait_for_idle() is None
