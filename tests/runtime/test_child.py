"""Processes that answer requests: one that gives no answer is ended, and another started for the next request."""

import sys
import time

import pytest

from smelt.runtime import child
from smelt.runtime.child import Child, NoAnswer

ECHO = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    time.sleep(0.5)
    print(line, end="", flush=True)
"""
SILENT = "import time; time.sleep(60)"
TALKATIVE = "print('ready\\nno answer', flush=True); import time; time.sleep(60)"


def started(code: str) -> Child:
    return Child((sys.executable, "-S", "-c", code), {})


def test_an_answer_after_a_request_that_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(ECHO)
    read = child._line

    def interrupted(*args: object) -> bytes | None:
        if made._process is not None and found:
            found.clear()
            raise KeyboardInterrupt
        return read(*args)  # type: ignore[arg-type]

    try:
        assert made.ask({"number": 0}, 20) == {"number": 0}
        found = [True]
        monkeypatch.setattr(child, "_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.ask({"number": 1}, 20)
        assert made._process is None
        assert made.ask({"number": 2}, 20) == {"number": 2}
    finally:
        made.close()


def test_a_process_that_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_SECONDS", 0.2)
    made, start = started(SILENT), time.monotonic()
    with pytest.raises(NoAnswer, match="not ready within") as found:
        made.ask({}, 20)
    assert found.value.kind == "hang"
    assert made._process is None
    assert time.monotonic() - start < 20


def test_what_is_no_answer_ends_the_process() -> None:
    made = started(TALKATIVE)
    with pytest.raises(ValueError, match="Expecting value"):
        made.ask({}, 20)
    assert made._process is None
