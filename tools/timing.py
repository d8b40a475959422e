"""Timing several ways to compute one thing against each other, in one interleaved run on an idle machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Other processes may take this share of one core before the machine counts as loaded.
IDLE_SHARE = 0.1
WAIT_SECONDS = 20.0
SETTLE_SECONDS = 0.5
_STAT = Path("/proc/stat")
_OWN_STAT = Path("/proc/self/stat")

Runner = Callable[[], object]


@dataclass
class Timings:
    """The seconds of one call, for each runner and round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median over rounds."""
        return statistics.median(self.seconds[name])

    def best(self, name: str) -> float:
        """The shortest."""
        return min(self.seconds[name])

    def only(self, names: Iterable[str]) -> Timings:
        """Those of some runners."""
        return Timings({name: self.seconds[name] for name in names})

    def ratio(self, name: str, to: str) -> float:
        """How many times as long a runner takes as another: the median over rounds of the ratio within the round.

        What else the machine does changes from round to round and falls on both alike.
        """
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleave(
    runners: Mapping[str, Runner],
    rounds: int,
    *,
    turn_seconds: float = 0.05,
    progress: Callable[[int], None] = lambda done: None,
) -> Timings:
    """Time runners in turns, A B C A B C. Each turn is one call that does not count, then enough calls to last.

    A turn begins when the threads of the one before it have gone to sleep: after a call they wait for the next one,
    spinning, for up to 120 ms, which would take a core from whoever comes next. Then the first call of the turn wakes
    the runner's own threads, and fills caches that the runner before it used.
    """
    calls = {name: _calls(runner, turn_seconds) for name, runner in runners.items()}
    found = Timings({name: [] for name in runners})
    for number in range(rounds):
        for name, runner in runners.items():
            settle()
            runner()
            found.seconds[name].append(_time(runner, calls[name]))
        progress(number + 1)
    return found


def settle(seconds: float = SETTLE_SECONDS) -> None:
    """Wait until no thread of this process is busy, but no longer than some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before, start = time.process_time(), time.perf_counter()
        time.sleep(0.005)
        if time.process_time() - before < IDLE_SHARE * (time.perf_counter() - start):
            return


def _calls(runner: Runner, turn_seconds: float) -> int:
    runner()
    return max(1, min(1000, int(turn_seconds / max(_time(runner, 1), 1e-9))))


def _time(runner: Runner, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        runner()
    return (time.perf_counter() - start) / calls


# --- load -------------------------------------------------------------------------------------------------------------


def load_of_others(seconds: float = 0.3) -> float | None:
    """How many cores other processes keep busy, measured over some seconds; None where the system does not tell."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None:
        return None
    busy, own = (after[i] - before[i] for i in range(2))
    return max(busy - own, 0.0) / (seconds * os.sysconf("SC_CLK_TCK"))


def wait_for_idle(seconds: float = WAIT_SECONDS) -> float | None:
    """Wait until other processes leave the machine alone, but no longer than some seconds; returns their load then."""
    end = time.monotonic() + seconds
    load = load_of_others()
    while load is not None and load > IDLE_SHARE and time.monotonic() < end:
        load = load_of_others(1.0)
    return load


class LoadClock:
    """Tells how many cores other processes kept busy since it was made."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), _ticks()

    def load(self) -> float | None:
        """Cores; None where the system does not tell, or no time has passed."""
        now, seconds = _ticks(), time.monotonic() - self._start
        if now is None or self._before is None or seconds <= 0:
            return None
        busy, own = (now[i] - self._before[i] for i in range(2))
        return max(busy - own, 0.0) / (seconds * os.sysconf("SC_CLK_TCK"))


def _ticks() -> tuple[float, float] | None:
    """Clock ticks that the machine was busy, and those of this process."""
    try:
        first = _STAT.read_text().splitlines()[0].split()[1:]
        own = _OWN_STAT.read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[:8])
    return float(user + nice + system + irq + softirq + steal), float(int(own[11]) + int(own[12]))
