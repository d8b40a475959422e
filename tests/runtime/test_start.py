"""What a process loads before it runs kernels, and the processor that is kept so that it need not load more."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smelt.codegen.tvm import processor as tvm_processor
from smelt.ir.collection import no_collection
from smelt.runtime import processor as processor_module
from smelt.runtime.processor import kept_processor
from smelt.runtime.target import usable_cores

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from smelt.runtime.target import Target
target = Target.detect()
before = "tvm" in sys.modules
alone = "tvm_ffi" in sys.modules
from smelt.codegen.tvm.loading import load_tvm
load_tvm()
import tvm
print(before, alone, target.cpu, str(tvm.target.Target({"kind": "llvm", "mcpu": target.cpu}).attrs["mcpu"]))
import tvm.runtime.disco
"""


def test_a_target_is_found_without_tvms_package(tmp_path: Path) -> None:
    """From the first process on; and the package can be imported afterwards, its distributed runtime too."""
    environment = {**os.environ, "SMELT_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / ".typecheck")}
    kept_before = (
        subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    first, second = (done.stdout.split() for done in kept_before)
    assert (first[0], second[0]) == ("False", "False")
    assert (first[1], second[1]) == ("True", "False")  # its libraries neither, once the processor is kept
    assert first[2:] == second[2:]
    assert second[2] == second[3]


IDLE = """
import time
import torch
import smelt
model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4))).eval()
fast = smelt.compile(model, threads=2)
x = torch.randn(64, 512)
for _ in range(5):
    fast(x)
time.sleep(0.04)
before = time.process_time()
time.sleep(0.05)
print(time.process_time() - before)
"""


@pytest.mark.skipif(usable_cores() < 2, reason="one core has no workers")
def test_threads_sleep_soon_after_a_call() -> None:
    """TVM's own spin for 120 ms; 8 are measured, and a machine that others use is given 40."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "TVM_THREAD_POOL_SPIN_COUNT")}
    environment |= {"PYTHONPATH": str(ROOT / ".typecheck")}
    done = subprocess.run([sys.executable, "-c", IDLE], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.02


ALONE = """
import sys
from smelt.codegen.tvm import processor
asked = processor.host_processor()
processor.host_processor.cache_clear(), processor.ask.cache_clear()
processor.can_start = lambda: False
assert "tvm" not in sys.modules
assert processor.host_processor() == asked
assert "tvm" in sys.modules
"""


def test_the_processor_is_the_same_where_no_other_process_can_be_asked() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typecheck")}
    subprocess.run([sys.executable, "-c", ALONE], env=environment, check=True)


IMPORTS = """
import sys
import smelt
smelt.compile
print(*{"tvm", "triton", "torch._dynamo", "torch.export._trace", "networkx"} & set(sys.modules))
"""


def test_what_the_import_of_smelt_does_not_import() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typecheck")}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


COLD = """
import sys
import torch, smelt
fast = smelt.compile(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval())
x = torch.randn(3, 8)
assert torch.allclose(fast(x), fast.original(x), atol=1e-5)
print("tvm" in sys.modules, fast._captures.entries[0].executable.hosts != [])
"""


@pytest.mark.skipif(usable_cores() < 2, reason="one core: kernels are compiled in this process")
def test_a_cold_start_does_not_import_tvms_package(tmp_path: Path) -> None:
    environment = {**os.environ, "SMELT_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / ".typecheck")}
    done = subprocess.run([sys.executable, "-c", COLD], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert list(tmp_path.glob("*.so"))
    assert not list(tmp_path.glob(".new-*"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refuse() -> None:
    raise AssertionError("found anew")


def test_the_processor_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kept_processor()
    assert found == tvm_processor.host_processor()
    monkeypatch.setattr(tvm_processor, "host_processor", refuse)
    assert kept_processor() == found
    monkeypatch.setattr(processor_module, "_told", lambda: ["flags: others"])
    with pytest.raises(AssertionError, match="anew"):
        kept_processor()


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
cpu MHz\t\t: 2596.122
flags\t\t: fpu avx2
{more}
"""


def test_the_processor_is_told_by_what_decides_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by clocks and numbers of cores, which are others in each process."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor_module, "_CPUINFO", path)

    def told(old: str = "", new: str = "", more: str = "") -> list[str] | None:
        path.write_text(CPUINFO.format(more=more).replace(old, new))
        return processor_module._told()

    found = told()
    assert found is not None
    assert len(found) == 4
    assert told("2596", "3000") == found
    assert told(more=CPUINFO.format(more="").replace("processor\t: 0", "processor\t: 1")) == found
    for old, new in (("AuthenticAMD", "GenuineIntel"), (": 26", ": 25"), (": 2\n", ": 3\n"), ("avx2", "avx512f")):
        assert told(old, new) != found
    assert told("flags", "others") is None
    path.unlink()
    assert processor_module._told() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1, "features": [], "digest": ""}', "other"])
def test_a_damaged_processor_is_found_anew(content: str, folder: Path) -> None:
    found = kept_processor()
    (path,) = folder.glob("*.facts")
    if content == "other":
        content = json.dumps({**json.loads(path.read_text()), "name": "x86-64"})
    path.write_text(content)
    assert kept_processor() == found
    assert json.loads(path.read_text())["name"] == found.name


def test_no_collection_is_due_where_it_was_put_off() -> None:
    """Python would make up for a full one at the first object that is made after the block."""
    with no_collection():
        kept = [[number] for number in range(10 * gc.get_threshold()[0])]
    assert gc.get_count()[0] < gc.get_threshold()[0]
    assert kept


def test_collection_is_put_off_and_goes_on() -> None:
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_collection():
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
