"""The example server under load: every answer is right, and hostile requests are answered."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVE = str(ROOT / "examples" / "serve.py")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("serving") / "encoder.smelt")
    run("export", path, "--layers", "1", "--width", "64")
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / ".typecheck")}


def run(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, SERVE, *args], env=environment(), text=True, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_wrong_answer_under_load(artifact: str) -> None:
    text = run("load-test", artifact, "--requests", "400", "--threads", "2")
    assert "400 requests on 8 connections" in text
    assert "p99.9" in text
    assert "wrong answers: 0" in text


def test_requests_that_make_no_sense(artifact: str) -> None:
    command = [sys.executable, SERVE, "serve", artifact, "--port", "0"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rpartition(" ")[2])
            for body, code in (
                (b'{"input_ids": [[1, 2, 3]]}', 200),
                (b"", 400),
                (b"{", 400),
                (b'{"input_ids": "x"}', 400),
                (b'{"input_ids": [[1], [2, 3]]}', 400),
                (b'{"input_ids": [1, 2]}', 400),
                (b'{"input_ids": [[-5]]}', 400),
                (b'{"input_ids": [[1000000]]}', 400),
                (b'{"input_ids": [[' + b"1," * 10_000 + b"1]]}", 400),
                (b"[" * 100_000, 400),
                (b" " * (2 << 20), 413),
                (b'{"input_ids": [[1, 2, 3]]}', 200),
            ):
                assert ask(port, body) == code, body[:40]
        finally:
            server.terminate()


def ask(port: int, body: bytes) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may close while too large a body is sent
        connection.request("POST", "/embed", body)
    try:
        response = connection.getresponse()
        json.loads(response.read())
        return response.status
    except ConnectionResetError:
        return 413
    finally:
        connection.close()
