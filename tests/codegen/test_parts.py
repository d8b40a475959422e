"""Native code made in parts, by several processes: the same as what one module gives."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

import smelt
from smelt.codegen.tvm import floats, integers, names, native, parts, vmath
from smelt.codegen.tvm import service as service_module
from smelt.codegen.tvm.host import Call, Host
from smelt.codegen.tvm.linker import linker_command
from smelt.codegen.tvm.processor import host_processor
from smelt.codegen.tvm.service import Service
from smelt.ir.errors import BackendError
from smelt.runtime.linker import find_linker

COUNT = 7


def _kernel(number: int, statement: str = "x[i] = x[i] * T.float32(3) + T.float32({})") -> str:
    """``x[i] = 3 x[i] + number``, in a parallel loop."""
    return f"""@T.prim_func(private=True, s_tir=True)
def k{number}(x_ptr: T.handle("float32"), n_n: T.int64) -> T.int32:
    T.attr(T.int32(0), "device_id", 0)
    T.attr(T.int32(0), "device_type", 1)
    x = T.decl_buffer((n_n,), "float32", data=x_ptr)
    for i in T.parallel(n_n):
        {statement.format(number)}
    return T.int32(0)
"""


TEXTS = [_kernel(number) for number in range(COUNT)]
HOSTS = [
    Host("main0", tuple(Call(f"k{i}", (0,)) for i in (*range(COUNT), 0)), 1, ("n",)),
    Host("main1", (Call("k1", (0,)),), 1, ("n",)),
]


def _holds(path: Path) -> None:
    found = native.load(path, ["main0", "main1"])
    x = torch.arange(5, dtype=torch.float32)
    expected = x.clone()
    for number in (*range(COUNT), 0, 1):
        expected = expected * 3 + number
    for name in ("main0", "main1"):
        found[name](torch.tensor([x.data_ptr()]), torch.tensor([5]))
    assert torch.equal(x, expected)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    made.start()
    yield made
    made.close()


def test_names_are_those_of_the_operators() -> None:
    assert set(floats.FUNCTIONS) == names.FLOATS
    assert set(integers.INTEGER) == names.INTEGERS
    assert set(integers.BOOL) == names.BOOLS
    assert set(vmath.FUNCTIONS) == names.ELEMENTARY
    assert names.FLOATS >= names.COSTLY | names.CALLS


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_kernel_is_in_one_part(count: int) -> None:
    shares = parts.parts_of(TEXTS, HOSTS, count)
    made = [part for share in shares for part in share]
    assert len(shares) == min(count, COUNT + 1)
    assert all(shares)
    assert sorted(text for part in made for text in part.texts) == TEXTS
    assert [part.hosts for part in made].count(True) == 1


def test_parts_take_about_as_long_as_each_other() -> None:
    texts = [_kernel(i, "x[i] = T.float32({})" + " " * 1000 * i) for i in range(20)]
    lengths = [sum(len(t) for part in share for t in part.texts) for share in parts.parts_of(texts, HOSTS, 2)]
    assert max(lengths) < 1.2 * min(lengths)


def test_in_this_process(tmp_path: Path) -> None:
    parts.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made.so")
    _holds(tmp_path / "made.so")
    assert [path.name for path in tmp_path.iterdir()] == ["made.so"]


@pytest.mark.parametrize("processes", [1, 3])
def test_by_a_process(processes: int, service: Service, tmp_path: Path) -> None:
    assert service.is_running
    assert service.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made.so", processes)
    _holds(tmp_path / "made.so")


def test_the_part_of_tvm_that_a_process_loads_compiles_the_same(service: Service, tmp_path: Path) -> None:
    """Byte for byte: it imports neither TVM's graph language nor its other backends."""
    assert service.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "by-it.so", 1)
    parts.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "here.so")
    assert (tmp_path / "by-it.so").read_bytes() == (tmp_path / "here.so").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("read", [True, False])
def test_a_process_that_also_tells_the_processor(read: bool, tmp_path: Path) -> None:
    service = Service()
    service.start(processor=True)
    if read:
        assert json.loads(service.processor()) == json.loads(json.dumps(host_processor()))
    assert service.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made.so", 2)
    assert service.processor() == b""
    service.close()


def test_a_process_that_ends_before_it_tells_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "command", lambda *_: [sys.executable, "-c", "pass"])
    service = Service()
    service.start(processor=True)
    assert service.processor() == b""
    service.close()


@pytest.mark.parametrize("processes", [1, 3])
def test_what_cannot_be_compiled(processes: int, service: Service, tmp_path: Path) -> None:
    texts = [*TEXTS[:-1], _kernel(COUNT - 1, "x[i] = nothing")]
    assert not service.make_library(texts, HOSTS, native.host_cpu(), tmp_path / "made.so", processes)
    assert service.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made.so", processes)
    with pytest.raises(BackendError):
        parts.make_library(texts, HOSTS, native.host_cpu(), tmp_path / "made.so")


def _driver(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
    path.chmod(0o700)
    return str(path)


@pytest.mark.skipif(os.name != "posix", reason="for systems with a shell")
def test_a_compiler_with_a_wrapper_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (driver,) = linker_command()
    wrapper = _driver(tmp_path / "wrapper", f'echo "$@" > {tmp_path}/said', 'exec "$@"')
    monkeypatch.setenv("CXX", f"{wrapper} {driver} -O1")
    find_linker.cache_clear()
    assert find_linker() == wrapper
    find_linker.cache_clear()
    (tmp_path / "made").mkdir()
    parts.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made" / "made.so")
    assert (tmp_path / "said").read_text(encoding="utf-8").startswith(f"{driver} -O1 -shared")
    _holds(tmp_path / "made" / "made.so")


@pytest.mark.skipif(os.name != "posix", reason="for systems with a shell")
def test_a_linker_that_fails_is_an_error_of_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", _driver(tmp_path / "driver", "echo out of disk >&2", "exit 3"))
    made = Service()
    monkeypatch.setattr(service_module, "service", lambda: made)  # one that runs already has another environment
    with pytest.raises(BackendError, match="out of disk"):
        smelt.export(torch.nn.Linear(4, 8).eval(), torch.randn(2, 4), cache=False)
    made.close()


def test_a_process_that_ended(tmp_path: Path) -> None:
    service = Service()
    assert not service.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made.so", 1)
    service.start()
    process = service._process
    assert process is not None
    process.kill()
    process.wait()
    assert not service.is_running
    assert not service.make_library(TEXTS, HOSTS, native.host_cpu(), tmp_path / "made.so", 1)
    service.start()
    assert service.is_running
    service.close()
    assert not service.is_running


@pytest.mark.skipif(os.name != "posix", reason="for systems with select on pipes")
@pytest.mark.parametrize("reads", [True, False])
def test_a_process_that_hangs(reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "ANSWER_SECONDS", 0.5)
    code = f"import sys, time; {reads} and sys.stdin.readline(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    service = Service()
    service._process = process
    texts = [*TEXTS, "#" * (1 << 20)]  # more than a pipe holds
    assert not service.make_library(texts, HOSTS, native.host_cpu(), tmp_path / "made.so", 1)
    assert not service.is_running
    assert process.returncode is not None


def test_a_program_that_is_not_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/editor")
    service = Service()
    service.start()
    assert not service.is_running


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_a_forked_process_has_one_of_its_own() -> None:
    from smelt.codegen.tvm import service as module

    mine = module.service()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"another" if module.service() is not mine else b"the same")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 16) == b"another"
    assert module.service() is mine
