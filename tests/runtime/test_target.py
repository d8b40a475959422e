"""Targets: what is found on this machine, and what is said where there is nothing."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import smelt
from smelt.codegen.machine import Machine
from smelt.runtime import target as target_module
from smelt.runtime.compile import target_for
from smelt.runtime.cuda import target as cuda_target
from smelt.runtime.dynamo_backend import make_options
from smelt.runtime.options import Options
from smelt.runtime.target import Target, machine_of, usable_cores

AVX512 = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl")


def test_this_machine() -> None:
    target = Target.detect()
    assert target.kind == "cpu"
    assert target.cpu
    assert target.threads == target.machine.threads == usable_cores()
    assert target == Target.detect("cpu") == Target.detect(target)
    assert smelt.Target is Target


def test_threads_can_be_chosen() -> None:
    target = Target.detect(threads=1)
    assert (target.threads, target.machine.threads) == (1, 1)
    assert Target.detect(target, threads=3).machine.threads == 3
    assert Target.detect(target, threads=3).cpu == target.cpu
    assert str(target).endswith("1 thread")


@pytest.mark.parametrize(
    "options",
    [lambda: smelt.compile(torch.nn.ReLU(), threads=10_000).options, lambda: make_options(threads=10_000)],
    ids=["smelt.compile", "torch.compile"],
)
def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch, options: Callable[[], Options]) -> None:
    monkeypatch.setattr(target_module, "usable_cores", lambda: 4)
    with pytest.warns(UserWarning, match="threads is 10000, and this process may run on 4 cores: 4 will be used"):
        made = options()
    assert made.target.threads == made.target.machine.threads == 4


@pytest.mark.parametrize(
    "options",
    [lambda target: smelt.compile(torch.nn.ReLU(), target=target).options, lambda target: make_options(target=target)],
    ids=["smelt.compile", "torch.compile"],
)
@pytest.mark.filterwarnings("error")
def test_a_target_made_with_more_threads_keeps_them(options: Callable[[Target], Options]) -> None:
    target = Target.detect(threads=usable_cores() + 1)
    assert options(target).target == target


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_that_are_no_number(threads: object) -> None:
    with pytest.raises(ValueError, match="threads"):
        Target.detect(threads=threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cuda:x", "gpu", "triton", "tpu", ""])
def test_targets_that_are_not_there_yet(name: str) -> None:
    with pytest.raises(smelt.UnsupportedError, match='target="cpu"'):
        Target.detect(name)


def test_usable_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert usable_cores() == 3
    assert Target.detect().threads == 3


def test_a_missing_backend_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "find_spec", lambda name: None)
    with pytest.raises(smelt.BackendError, match=re.escape("pip install 'apache-tvm>=")):
        smelt.compile(lambda x: x)


def test_a_broken_backend_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path))  # where the processor is not kept
    # None in sys.modules makes the import fail, as a library that is missing would.
    monkeypatch.setitem(sys.modules, "smelt.codegen.tvm.processor", None)
    with pytest.raises(smelt.BackendError, match="cannot be imported"):
        Target.detect()


def test_a_broken_backend_names_the_command_where_the_processor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    Target.detect()
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    monkeypatch.delitem(sys.modules, "smelt.codegen.tvm.native", raising=False)
    assert Target.detect().kind == "cpu"
    with pytest.raises(smelt.BackendError, match=r"cannot be imported .*pip install"):
        importlib.import_module("smelt.codegen.tvm.native")


def test_the_fingerprint_is_what_native_code_depends_on() -> None:
    target = Target.detect()
    assert target.fingerprint == target.with_threads(7).fingerprint
    assert target.cpu in target.fingerprint
    other = Target(target.kind, target.cpu, target.features[1:], target.threads, target.machine)
    assert other.fingerprint != target.fingerprint


@pytest.mark.parametrize(
    ("features", "architecture", "bits", "registers", "bf16"),
    [
        ((*AVX512, "avx512bf16"), "x86_64", 512, 32, True),
        (AVX512, "x86_64", 512, 32, False),
        (("avx2", "fma", "avx512f"), "x86_64", 256, 16, False),
        (("avx2", "fma"), "AMD64", 256, 16, False),
        (("avx2",), "x86_64", 128, 16, False),
        ((), "x86_64", 128, 16, False),
        (("neon",), "aarch64", 128, 32, False),
    ],
)
def test_registers(features: tuple[str, ...], architecture: str, bits: int, registers: int, bf16: bool) -> None:
    machine = machine_of(features, architecture, 4)
    assert (machine.vector_bits, machine.registers, machine.has_bf16_dot) == (bits, registers, bf16)
    assert machine.threads == 4
    assert not machine.has_vnni


def test_dot_instruction_of_bytes() -> None:
    assert machine_of((*AVX512, "avx512vnni"), "x86_64", 2).has_vnni
    assert not machine_of(("avx2", "fma", "avxvnni"), "x86_64", 2).has_vnni  # kernels are written for whole vectors


def write_cache(folder: Path, number: int, level: str, kind: str, size: str) -> None:
    entry = folder / f"index{number}"
    entry.mkdir(parents=True)
    for name, text in (("level", level), ("type", kind), ("size", size)):
        (entry / name).write_text(text + "\n")


def test_caches(tmp_path: Path) -> None:
    write_cache(tmp_path, 0, "1", "Data", "48K")
    write_cache(tmp_path, 1, "1", "Instruction", "32K")
    write_cache(tmp_path, 2, "2", "Unified", "2M")
    write_cache(tmp_path, 3, "3", "Unified", "32768K")
    assert target_module._cache_sizes(tmp_path) == {"l1_bytes": 48 << 10, "l2_bytes": 2 << 20}


def test_caches_that_the_system_does_not_tell(tmp_path: Path) -> None:
    write_cache(tmp_path, 0, "1", "Data", "unknown")
    (tmp_path / "index1").mkdir()
    assert target_module._cache_sizes(tmp_path) == {}
    assert target_module._cache_sizes(tmp_path / "none") == {}
    assert Machine(threads=1).l1_bytes > 0


AFFINITY = """
import os, torch, smelt
before = os.sched_getaffinity(0)
fast = smelt.compile(lambda x: (x * 2).softmax(-1))
fast(torch.ones(64, 64))
assert os.sched_getaffinity(0) == before, (before, os.sched_getaffinity(0))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system ties no threads to cores")
def test_running_kernels_ties_no_thread_to_a_core() -> None:
    """TVM would tie the calling thread to the first core, and PyTorch's threads, made later, would share it."""
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "TVM_BIND_THREADS"}
    environment["PYTHONPATH"] = str(root / ".typecheck")
    subprocess.run([sys.executable, "-c", AFFINITY], env=environment, check=True)


POOL = """
import os
os.cpu_count = lambda: 4
if hasattr(os, "sched_getaffinity"):
    os.sched_getaffinity = lambda pid: {0, 1, 2, 3}
import tvm
from smelt.codegen.tvm import module
from smelt.runtime.options import Options
from smelt.runtime.target import Target
threads = Target.detect().threads
module.set_threads(threads)
found = tvm.get_global_func("runtime.NumThreads")()
assert (threads, found) == (4, 4), (threads, found)
"""


def test_kernels_may_use_every_core() -> None:
    """TVM's pool has half of the cores unless it is told otherwise before it is first used."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / ".typecheck")
    subprocess.run([sys.executable, "-c", POOL], env=environment, check=True)


def test_without_a_gpu_the_cuda_target_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(smelt.BackendError, match='target="cuda" needs a GPU, and'):
            smelt.compile(lambda x: x, target=name)
    monkeypatch.setattr(cuda_target, "find_spec", lambda name: None)
    with pytest.raises(smelt.BackendError, match="pip install triton"):
        Target.detect("cuda")


def test_a_target_for_files_is_none_to_run_on() -> None:
    with pytest.raises(smelt.UnsupportedError, match=r'target="sm_90" is for files.*smelt.export'):
        smelt.compile(lambda x: x, target="sm_90")


class Properties:
    name, major, minor = "NVIDIA H200", 9, 0
    multi_processor_count, regs_per_multiprocessor, max_threads_per_multi_processor = 131, 65536, 2048
    shared_memory_per_multiprocessor, shared_memory_per_block_optin = 233472, 232448


def test_a_gpu_and_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    target = Target.detect("cuda")
    assert (target.kind, target.cpu, target.device) == ("cuda", "sm_90", torch.device("cuda", 1))
    assert target.gpu is not None
    assert (target.gpu.processors, target.gpu.block_shared_bytes) == (131, 232448)
    assert str(target) == "cuda sm_90, 131 processors, cuda:1"
    assert Target.detect("cuda:0").device == torch.device("cuda", 0)
    with pytest.raises(smelt.BackendError, match="there is no GPU 2: PyTorch finds 2"):
        Target.detect("cuda:2")
    monkeypatch.setattr(Properties, "major", 7)
    with pytest.raises(smelt.UnsupportedError, match=r"compute capability 7.0"):
        Target.detect("cuda")


def test_the_device_of_a_model_decides() -> None:
    class Elsewhere(torch.nn.Module):
        def parameters(self, recurse: bool = True) -> Any:
            return iter([SimpleNamespace(device=torch.device("cuda", 1))])

    assert target_for("auto", Elsewhere()) == target_for("cuda", Elsewhere()) == "cuda:1"
    assert target_for("cpu", Elsewhere()) == "cpu"
    assert target_for("cuda:0", Elsewhere()) == "cuda:0"
    assert target_for("auto", torch.nn.Linear(2, 2)) == target_for("auto", lambda x: x) == "auto"
