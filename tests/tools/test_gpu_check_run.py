"""How `make gpu-check` runs: processes that crash or hang, the time of each part, turns, a dry run of some rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smelt.tools.gpu_check import builders, clock, record, supervisor, table
from smelt.tools.gpu_check.child import Child, NoAnswer
from smelt.tools.gpu_check.kernels import kernel
from smelt.tools.gpu_check.measure import measure
from smelt.tools.gpu_check.row import COMPILED, EAGER, GRAPHS, PARTS, SMELT, TUNED, Row, Target
from smelt.tools.gpu_check.rows import rows_of
from smelt.tools.gpu_check.state import state_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


# --- time -------------------------------------------------------------------------------------------------------------


class Event:
    """Time that passes by one millisecond at each call of a runner."""

    now = 0.0

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_event", Event)
    called: list[str] = []

    def call(name: str, milliseconds: float) -> clock.Call:
        def run() -> None:
            called.append(name)
            Event.now += milliseconds

        return run

    found = clock.in_turns({"a": call("a", 1), "b": call("b", 4)}, 3, flush=False)
    assert found.seconds == {"a": pytest.approx([0.001] * 3), "b": pytest.approx([0.004] * 3)}
    turns = [name for name, before in zip(called, ["", *called], strict=False) if name != before]
    assert turns == ["a", "b"] * 4  # one more to see how long a call takes
    assert called.count("a") == 6 + 3 * (1 + 20)
    assert found.to_dict("b") == {"median": 0.004, "best": 0.004, "rounds": [0.004] * 3}


@pytest.fixture
def played_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in the place of a GPU, with its own clock."""
    monkeypatch.setattr(clock, "DEVICE", "cpu")
    monkeypatch.setattr(clock, "PRODUCT_SIZE", 16)
    monkeypatch.setattr(clock, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(clock, "FLUSH_BYTES", 1 << 12)
    monkeypatch.setattr(clock, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(clock, "_synchronize", lambda: None)
    monkeypatch.setattr(clock, "_event", Timer)
    monkeypatch.setattr(clock, "launches", lambda call: {"kernels": 9, "graph_launches": 1})


class Timer(Event):
    """An event of the CPU."""

    def record(self) -> None:
        self.at = time.perf_counter() * 1e3


@pytest.mark.usefixtures("played_gpu")
def test_a_row_measured_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.tools.gpu_check import measure as module

    monkeypatch.setattr(module, "ready", lambda name, work: work.eager)
    for row in (rows_of("kernels")[2], rows_of("decode")[0], rows_of("decode")[3], rows_of("encoders")[0]):
        build = kernel if row.kind == "kernel" else builders.BUILDERS[row.kind]
        work = build(CPU, True, **row.options)
        work.model = work.eager  # what stands for smelt here
        found = json.loads(json.dumps(measure([SMELT, EAGER, COMPILED], work, lambda *_: None, dry=False)))
        assert found["status"] == "ok"
        assert {len(found["peers"][n]["rounds"]) for n in (SMELT, EAGER, COMPILED)} == {module.ROUNDS}
        _, [line] = table.cells_of(PARTS[row.part], {row.name: found}, [row])
        assert line[1][0].isdigit()
        assert line[-3].isdigit()
        if row.part == "decode":
            assert "<= 1 graph launches: reached" in line[-1] or row.options["quantize"]
            assert line[-2].startswith("2 tokens")


def test_launches_are_told_from_what_a_profiler_lists() -> None:
    cuda, cpu = "DeviceType.CUDA", "DeviceType.CPU"
    events = [
        (cpu, "cudaGraphLaunch", "graph_launches"),
        (cpu, "cuLaunchKernelEx", "launches"),
        (cpu, "cudaLaunchKernel", "launches"),
        (cpu, "aten::mm", ""),
        (cuda, "kernel_0a1b", "kernels"),
        (cuda, "Memcpy DtoD (Device -> Device)", ""),
        (cuda, "Memset (Device)", ""),
    ]
    for device, name, kind in events:
        assert clock._kind(SimpleNamespace(device_type=device, name=name)) == kind


def test_what_nvidia_smi_says() -> None:
    found = state_of("1980, 3201, 45, 500.5, 0x0000000000000000\n1755, 3201, 61, 690.1, 0x0000000000000005\nnonsense\n")
    assert found == {
        "samples": 2,
        "sm_mhz": [1755, 1980],
        "memory_mhz": [3201, 3201],
        "celsius": [45, 61],
        "watts": [500.5, 690.1],
        "slowed_by": "0x4",  # 0x1 is that it was idle
    }
    assert state_of("") == {"samples": 0, "slowed_by": "0x0"}


# --- processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    what = json.loads(line)["what"]
    if what == "die":
        sys.stderr.write("a fault\\n")
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    print(json.dumps({"pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path) -> Any:
    made = Child({}, tmp_path / "log", [sys.executable, "-c", SCRIPT])
    yield made
    made.close()


def test_a_process_answers_and_is_started_again(child: Child) -> None:
    first = child.ask({"what": "answer"}, 20)
    assert child.ask({"what": "answer"}, 20) == first
    with pytest.raises(NoAnswer, match=r"ended with exit code 3: a fault"):
        child.ask({"what": "die"}, 20)
    second = child.ask({"what": "answer"}, 20)
    assert second != first
    with pytest.raises(NoAnswer, match="it took more than 0 seconds"):
        child.ask({"what": "hang"}, 0.3)
    assert child.ask({"what": "answer"}, 20) not in (first, second)


class Played(Child):
    """A process that is played: ``does`` says what the peers asked for lead to."""

    def __init__(self, does: Any) -> None:
        self.does, self.asked, self.closed = does, list[list[str]](), 0

    def ask(self, request: Any, seconds: float) -> Any:
        self.asked.append(request["peers"])
        return self.does(request["peers"], Path(request["progress"]))

    def close(self) -> None:
        self.closed += 1


ROW = Row("decode", "a row", "decode", {}, (SMELT, EAGER, GRAPHS, COMPILED, TUNED))


def plan(out: Path, seconds: float = 100.0) -> supervisor.Plan:
    return supervisor.Plan({"decode": [ROW]}, out, time.monotonic() + seconds, dry=False)


def timed(names: list[str]) -> dict[str, Any]:
    return {"status": "ok", "peers": {n: {"median": 0.001, "rounds": [0.001]} for n in names}}


def test_a_peer_that_ends_the_process_is_left_out(tmp_path: Path) -> None:
    def does(names: list[str], progress: Path) -> Any:
        if GRAPHS in names:
            progress.write_text(json.dumps({"peer": GRAPHS, "doing": "first call"}))
            raise NoAnswer("it ended")
        return timed(names)

    child = Played(does)
    found = supervisor.computed(plan(tmp_path), ROW, ROW.quick, child, 0, time.monotonic() + 50)
    assert child.asked == [[SMELT, EAGER, GRAPHS], [SMELT, EAGER]]
    assert found["peers"][GRAPHS] == {"failed": "first call: it ended"}
    assert "median" in found["peers"][SMELT]


def test_a_process_whose_gpu_is_lost_is_ended(tmp_path: Path) -> None:
    def does(names: list[str], progress: Path) -> Any:
        if EAGER not in names:
            return timed(names)
        failed = {EAGER: {"failed": "an illegal access"}, GRAPHS: {"failed": "the GPU is lost"}}
        return {"status": "ok", "peers": {SMELT: {}} | failed, "lost": True}

    child = Played(does)
    found = supervisor.computed(plan(tmp_path), ROW, ROW.quick, child, 0, time.monotonic() + 50)
    assert (child.closed, child.asked) == (1, [[SMELT, EAGER, GRAPHS], [SMELT, GRAPHS]])
    assert found["peers"][EAGER] == {"failed": "an illegal access"}
    assert "median" in found["peers"][GRAPHS]


def test_an_end_that_nobody_can_be_blamed_for(tmp_path: Path) -> None:
    def does(names: list[str], progress: Path) -> Any:
        raise NoAnswer("it ended")

    child = Played(does)
    found = supervisor.computed(plan(tmp_path), ROW, ROW.quick, child, 0, time.monotonic() + 50)
    assert (found["status"], found["error"], len(child.asked)) == ("failed", "it ended", 1)


def test_no_time_is_left(tmp_path: Path) -> None:
    found = supervisor.computed(plan(tmp_path), ROW, ROW.quick, Played(None), 0, time.monotonic() + 1)
    assert found["status"] == "not reached"


def test_who_compiles_for_long_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are measured without them first, and keep those figures where they take too long."""
    rows = [ROW, Row("decode", "another", "decode", {}, (SMELT, EAGER, TUNED))]

    def does(names: list[str], progress: Path) -> Any:
        if COMPILED in names:
            progress.write_text(json.dumps({"peer": COMPILED, "doing": "first call"}))
            raise NoAnswer("it took too long")
        return timed(names)

    child = Played(does)
    monkeypatch.setattr(supervisor, "Child", lambda *_: child)
    results = record.Results(tmp_path / "a.json", False, {})
    supervisor.run(supervisor.Plan({"decode": rows}, tmp_path, time.monotonic() + 99, False), results, lambda _: None)
    quick = [SMELT, EAGER, GRAPHS]
    everyone = [[*quick, COMPILED, TUNED], [*quick, TUNED], [SMELT, EAGER, TUNED]]
    assert child.asked == [quick, [SMELT, EAGER], *everyone]
    kept = record.load(tmp_path / "a.json")["parts"]["decode"]["rows"]
    assert kept["a row"]["peers"][COMPILED] == {"failed": "first call: it took too long"}
    assert "median" in kept["a row"]["peers"][TUNED]


def test_rows_with_aims_are_complete_before_others_are_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aim = (Target("ms", "<=", 1.0),)
    rows = [Row("decode", "b", "decode", peers=(SMELT, TUNED)), Row("decode", "a", "decode", {}, (SMELT, TUNED), aim)]
    child = Played(lambda names, progress: timed(names))
    monkeypatch.setattr(supervisor, "Child", lambda *_: child)
    said: list[str] = []
    results = record.Results(tmp_path / "a.json", False, {})
    supervisor.run(supervisor.Plan({"decode": rows}, tmp_path, time.monotonic() + 99, False), results, said.append)
    assert [line.split(":")[0].strip() for line in said[1:]] == ["a", "a, everyone", "b", "b, everyone"]


def test_time_not_used_is_for_later_parts(tmp_path: Path) -> None:
    wanted = {name: list(rows_of(name)) for name in PARTS}
    whole = supervisor.Plan(wanted, tmp_path, time.monotonic() + 540, dry=False)
    first = supervisor._until(whole, "tests") - time.monotonic()
    last = supervisor._until(whole, "encoders") - time.monotonic()
    assert first == pytest.approx(532 * PARTS["tests"].weight / sum(p.weight for p in PARTS.values()), abs=1)
    assert last == pytest.approx(532, abs=1)


# --- a dry run --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_dry_run_take_what_time_they_need(tmp_path: Path) -> None:
    wanted = {name: list(rows_of(name)) for name in PARTS}
    whole = supervisor.Plan(wanted, tmp_path, time.monotonic() + 540, dry=True)
    assert [supervisor._until(whole, name) - time.monotonic() for name in PARTS] == [pytest.approx(532, abs=1)] * 6


def test_a_dry_run_computes_all_parts_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes answers once the other was asked, too."""
    both = threading.Barrier(2, timeout=10)

    def does(names: list[str], progress: Path) -> Any:
        both.wait()
        return timed(names)

    monkeypatch.setattr(supervisor, "Child", lambda *_: Played(does))
    rows = [Row("decode", name, "decode") for name in "ab"]
    plan = supervisor.Plan({"decode": rows}, tmp_path, time.monotonic() + 99, dry=True, workers=2)
    supervisor.run(plan, record.Results(tmp_path / "a.json", True, {}), lambda _: None)
    assert not both.broken


# what PyTorch and Triton need themselves
ALLOWED = {"torch", "torchgen", "functorch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe"}
ALLOWED |= {"filelock", "fsspec", "typing_extensions", "setuptools", "pkg_resources", "smelt"}
HIDE = f"""
import sys
from importlib.machinery import PathFinder
allowed, find = {sorted(ALLOWED)!r}, PathFinder.find_spec
def only(name, path=None, target=None):
    first = name.partition(".")[0]
    known = path is not None or first in allowed or first in sys.stdlib_module_names
    known = known or first.startswith("_sysconfigdata")
    return find(name, path, target) if known else None
PathFinder.find_spec = only
"""


def test_a_dry_run_with_pytorch_and_triton_alone(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    places = os.pathsep.join([str(tmp_path), str(ROOT / ".typecheck")])
    command = [sys.executable, "-m", "smelt.tools.gpu_check", "--dry-run", "--out", str(tmp_path / "out")]
    command += ["--only", "softmax|zoo gpt2$|llama-3-8b bfloat16 2048"]
    env = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    data = record.load(tmp_path / "out" / "dry-run.json")
    status = {name: row["status"] for part in data["parts"].values() for name, row in part["rows"].items()}
    assert status == {"softmax 16384x8192": "dry", "zoo gpt2": "skipped", "llama-3-8b bfloat16 2048": "dry"}
    assert data["dry"]
    assert "median" not in json.dumps(data)
    assert "transformers is not installed" in found.stdout
    assert "check  1 skipped" in found.stdout
