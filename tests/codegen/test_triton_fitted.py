"""Limits on registers where the assembler spills some, and what machine code says of that. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from smelt.codegen.gpu import GPU_MACHINES
from smelt.codegen.triton import fitted as module
from smelt.codegen.triton.cubin import signature_of
from smelt.codegen.triton.elf import ElfError
from smelt.codegen.triton.file import KernelFile, Launch
from smelt.codegen.triton.fitted import fitted, limits, options_of
from smelt.codegen.triton.launch import load
from smelt.codegen.triton.machine_code import frame_of, registers_of, spills_of

from .test_triton_text import written

MAP, _ = written("map")
LAUNCH = Launch("kernel", (), (), 1, warps=4, stages=2)


@dataclass
class Code:
    """What is compiled with a limit, or with other warps than those of the launch."""

    how: int | str | None

    @property
    def asm(self) -> dict[str, Any]:
        return {"cubin": self.how, "ptx": ""}


How = int | str | None


def chosen(monkeypatch: pytest.MonkeyPatch, spills: Mapping[How, int]) -> tuple[How, list[How]]:
    """How a function is compiled, and what was tried, where each spills that many bytes."""
    tried: list[How] = []

    def compile(options: Mapping[str, Any]) -> Code:
        warps = options["num_warps"]
        tried.append(options.get("maxnreg") if warps == LAUNCH.warps else f"{warps} warps")
        return Code(tried[-1])

    monkeypatch.setattr(module, "spills_of", lambda code, ptx: spills[code])
    monkeypatch.setattr(module, "registers_of", lambda code: 96)
    found = fitted(LAUNCH, compile)
    assert isinstance(found, Code)
    return found.how, tried


@pytest.mark.parametrize(
    ("spills", "how", "tried"),
    [
        ({None: 0}, None, [None]),
        ({None: 8, 128: 0}, 128, [None, 128]),
        ({None: 8, 128: 4, 168: 12, 255: 0}, 255, [None, 128, 168, 255]),
        ({None: 8, 128: 12, 168: 4, 255: 16, "8 warps": 0}, "8 warps", [None, 128, 168, 255, "8 warps"]),
        ({None: 8, 128: 12, 168: 4, 255: 16, "8 warps": 8}, 168, [None, 128, 168, 255, "8 warps"]),
        ({None: 8, 128: 8, 168: 8, 255: 8, "8 warps": 8}, None, [None, 128, 168, 255, "8 warps"]),
    ],
)
def test_the_first_way_without_spills(
    spills: Mapping[How, int], how: How, tried: list[How], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(monkeypatch, spills) == (how, tried)


def test_machine_code_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may describe functions otherwise: what the assembler chose stands."""

    def unknown(*_: object) -> int:
        raise ValueError("no machine code")

    monkeypatch.setattr(module, "spills_of", unknown)
    assert fitted(LAUNCH, lambda options: Code(options.get("maxnreg"))).how is None


def test_limits_that_a_program_can_have() -> None:
    assert list(limits(96, 4)) == [128, 168, 255]
    assert list(limits(128, 4)) == [168, 255]
    assert list(limits(80, 8)) == [128, 168, 255]
    assert list(limits(64, 16)) == [128]
    assert list(limits(255, 4)) == []


# --- machine code -----------------------------------------------------------------------------------------------------


def compiled(file: KernelFile, text: str, target: str, **options: int) -> Any:
    """A function of a kernel, with another text."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    (launch,) = file.launches
    source = ASTSource(fn=getattr(load(text), launch.function), signature=signature_of(file, launch), constexprs={})
    gpu = GPUTarget("cuda", GPU_MACHINES[target].capability, 32)
    return triton.compile(source, target=gpu, options={**options_of(launch), **options})


def by_nvidia(code: bytes, tmp_path: Path) -> tuple[int, int]:
    """Registers and frame of a thread, as NVIDIA's own program reads them."""
    from triton import knobs

    path = tmp_path / "kernel.cubin"
    path.write_bytes(code)
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return max(int(n) for n, _ in found), max(int(n) for _, n in found)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_machine_code_is_read_as_nvidia_reads_it(target: str, tmp_path: Path) -> None:
    few = compiled(MAP, MAP.text, target, maxnreg=24)  # fewer than it needs
    assert (registers_of(few.asm["cubin"]), frame_of(few.asm["cubin"])) == by_nvidia(few.asm["cubin"], tmp_path)
    assert spills_of(few.asm["cubin"], few.asm["ptx"]) > 0
    free = compiled(MAP, MAP.text, target)
    assert (registers_of(free.asm["cubin"]), frame_of(free.asm["cubin"])) == by_nvidia(free.asm["cubin"], tmp_path)
    assert spills_of(free.asm["cubin"], free.asm["ptx"]) == 0


def test_arrays_are_no_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.codegen.triton import machine_code

    monkeypatch.setattr(machine_code, "frame_of", lambda code: 32)
    depot = "\t.local .align 4 .b8 \t__local_depot0[28];\n\tld.local.u32 %r1, [%rd2];\n"
    assert spills_of(b"", depot) == 0
    assert spills_of(b"", "") == 32


@pytest.mark.parametrize("code", [b"", b"\x7fELF", bytes(64), bytes(4096)])
def test_no_machine_code(code: bytes) -> None:
    with pytest.raises(ElfError, match=r"damaged cubin|no machine code"):
        registers_of(code)
