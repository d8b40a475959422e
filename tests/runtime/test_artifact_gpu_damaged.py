"""Artifacts for GPUs that were changed: typed errors, and only what fits its record reaches the driver."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.codegen.triton.elf import ElfError, read_cubin
from smelt.runtime.artifact.container import Container
from smelt.runtime.artifact.inspect import inspect

from .fake_cuda_driver import FakeLibrary, playing_driver
from .test_artifact_damaged import HOSTILE, forge, paths_of, put

pytest.importorskip("triton")

SEED = 20261122
FLIPS, CUTS, FORGED, CODE = 40, 20, 100, 60
PLAN, CUBINS = "forward/sm_90/plan.json", "forward/sm_90/kernels.cubins"


class Model(nn.Module):
    """Products, a lookup, and a step of PyTorch's between kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(7, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cummax(self.first(self.table(x)), -1)[0]
        return self.last(torch.relu(h))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    made = tmp_path_factory.mktemp("whole") / "model.smelt"
    smelt.export(Model().eval(), torch.tensor([1, 2, 3]), target="sm_90").save(made)
    return made


@pytest.fixture
def driver() -> Iterator[FakeLibrary]:
    with playing_driver() as played:
        yield played


def members(path: Path) -> dict[str, bytes]:
    container = Container(path)
    try:
        return {name: container.read(name) for name in container.members}
    finally:
        container.close()


def changed(path: Path, out: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """A file with another plan, and digests that fit."""

    def change(manifest: dict[str, Any], held: dict[str, bytes]) -> None:
        plan = json.loads(held[PLAN])
        edit(plan)
        held[PLAN] = json.dumps(plan).encode()

    forge(path, out, change)


def refused(path: Path) -> str:
    with pytest.raises(smelt.SmeltError) as found:
        smelt.load(path, device="cuda", recompile=False)
    assert len(str(found.value)) < 1000
    return str(found.value)


def test_the_whole_file_is_read(path: Path, driver: FakeLibrary) -> None:
    smelt.load(path, device="cuda", recompile=False)(torch.tensor([1, 2]))
    assert driver.launches


def test_flipped_bits_and_missing_parts_are_found(path: Path, tmp_path: Path, driver: FakeLibrary) -> None:
    whole, draw, out = path.read_bytes(), random.Random(SEED), tmp_path / "x"
    for number in range(FLIPS + CUTS):
        data = bytearray(whole)
        at = draw.randrange(len(whole))
        if number < FLIPS:
            data[at] ^= 1 << draw.randrange(8)
        else:
            del data[at : at + draw.choice((1, 64, 4096))]
        out.write_bytes(bytes(data))
        refused(out)
    assert not driver.launches


def test_forged_plans_are_an_error_or_harmless(
    path: Path, tmp_path: Path, driver: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of the wrong kind in every place of the plan, launches first; what loads nonetheless is not called."""
    monkeypatch.chdir(tmp_path)
    draw, refusals, out = random.Random(SEED + 1), 0, tmp_path / "forged"
    plan = json.loads(members(path)[PLAN])
    launches = [at for at in paths_of(plan) if at[0] in ("kernels", "hosts") and len(at) > 1]
    for number in range(FORGED):
        at, value = draw.choice(launches if number % 3 else paths_of(plan)), draw.choice(HOSTILE)
        changed(path, out, lambda data, at=at, value=value: put(data, at, value))
        try:
            smelt.load(out, device="cuda", recompile=False)
        except smelt.SmeltError:
            refusals += 1
    assert refusals >= FORGED * 9 // 10
    assert [p.name for p in tmp_path.iterdir()] == ["forged"]
    assert not driver.launches


def first(plan: dict[str, Any]) -> dict[str, Any]:
    launch: dict[str, Any] = plan["kernels"][0]["wide"][0]
    return launch


def sized(plan: dict[str, Any]) -> list[Any]:
    """The argument of a launch that is a size."""
    return next(x for k in plan["kernels"] for y in k["wide"] for x in y["arguments"] if x[0] == "size")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda p: first(p).update(programs="__import__('os').system('touch canary')"), "ParseError"),
        (lambda p: first(p).update(programs="s0.__class__"), "ParseError"),
        (lambda p: first(p).update(programs="9**9**9"), "ParseError"),
        (lambda p: first(p).update(programs="other + 1"), "ParseError"),
        (lambda p: first(p).update(programs=1.5), "a size that is none"),
        (lambda p: first(p).update(programs=True), "a size that is none"),
        (lambda p: first(p).update(warps=0), "a number that it cannot have"),
        (lambda p: first(p).update(warps=64), "a number that it cannot have"),
        (lambda p: first(p).update(warps=first(p)["warps"] * 2), "another number of threads"),
        (lambda p: first(p).update(shared=300 << 10), "a number that it cannot have"),
        (lambda p: first(p).update(shared=200 << 10), "more shared memory than its target says"),
        (lambda p: first(p).update(function="k0_other"), "no function k0_other"),
        (lambda p: first(p).update(function="../../x"), "a name that is none"),
        (lambda p: first(p).update(code=[0, 1 << 40]), "a number that it cannot have"),
        (lambda p: first(p).update(code=[5, 5]), "cannot be read"),
        (lambda p: first(p).update(code=[64, 4096]), "cannot be read"),
        (lambda p: first(p)["arguments"].pop(), "no function"),
        (lambda p: first(p)["arguments"].append(["tensor", 0]), "no function"),
        (lambda p: first(p)["arguments"][0].__setitem__(1, 999), "a number that it cannot have"),
        (lambda p: first(p)["arguments"][0].__setitem__(1, -1), "a number that it cannot have"),
        (lambda p: first(p)["arguments"][0].__setitem__(0, "address"), "no kind that there is"),
        (lambda p: first(p)["arguments"][0].append(0), "no kind that there is"),
        (lambda p: sized(p).__setitem__(1, "s99"), "no kind that there is"),
        (lambda p: sized(p).__setitem__(2, 16), "no kind that there is"),
        (lambda p: sized(p).__setitem__(2, 32), "no function"),
        (lambda p: first(p)["arguments"][-1].__setitem__(1, 1 << 40), "a number that it cannot have"),
        (lambda p: first(p)["arguments"][-1].__setitem__(2, 1 << 20), "a number that it cannot have"),
        (lambda p: p["kernels"][0]["tensors"].__setitem__(0, "f64"), "other dtypes"),
        (lambda p: p["kernels"][0]["tensors"].pop(), "a number that it cannot have|other dtypes"),
        (lambda p: p["kernels"][0].update(most=1 << 40), "a number that it cannot have"),
        (lambda p: p["kernels"][0].update(checks=0), "whether it checks"),
        (lambda p: p["kernels"].pop(), "a number that it cannot have"),
        (lambda p: p["hosts"][0].__setitem__(0, 99), "a number that it cannot have"),
        (lambda p: p["hosts"][0][1].__setitem__(0, 9999), "a number that it cannot have"),
        (lambda p: p["hosts"].reverse(), "by then|not computed yet"),
        (lambda p: p["hosts"].insert(0, 0), "every step of PyTorch's once"),
        (lambda p: p["hosts"].remove(0), "every step of PyTorch's once"),
        (lambda p: p["live"].clear(), "another value's by then"),
    ],
)
def test_what_a_launch_may_not_say(
    path: Path, tmp_path: Path, driver: FakeLibrary, edit: Callable[[Any], None], why: str
) -> None:
    changed(path, tmp_path / "x", edit)
    with pytest.raises(smelt.SmeltError, match=why):
        smelt.load(tmp_path / "x", device="cuda")
    if "than its target says" not in why:
        with pytest.raises(smelt.SmeltError, match=why):
            inspect(tmp_path / "x")
    assert not [entry for entry in driver.log if entry[0] == "load"]


def test_code_that_is_none_or_for_something_else(path: Path, tmp_path: Path, driver: FakeLibrary) -> None:
    """Machine code of a processor, of another GPU, and cut or overwritten at random."""
    held = members(path)
    code, draw, out = held[CUBINS], random.Random(SEED + 2), tmp_path / "x"
    begin, end = first(json.loads(held[PLAN]))["code"]

    def with_code(data: bytes) -> None:
        forge(path, out, lambda manifest, parts: parts.update({CUBINS: data}))

    for data in (b"", bytes(len(code)), code[:end][:-1], b"\x7fELF" + bytes(len(code))):
        with_code(data)
        refused(out)
    other = bytearray(code)
    struct.pack_into("<H", other, 18, 62)  # x86-64
    with_code(bytes(other))
    assert "no machine code of NVIDIA's GPUs" in refused(out) or begin
    other = bytearray(code)
    for at in range(0, len(code) - 64, 64):
        if other[at : at + 4] == b"\x7fELF":
            other[at + 48] = 80
    with_code(bytes(other))
    assert "is for sm_80" in refused(out)
    for _ in range(CODE):
        data = bytearray(code)
        for _ in range(draw.choice((1, 8, 64))):
            data[begin + draw.randrange(64 if draw.random() < 0.5 else end - begin)] = draw.randrange(256)
        with_code(bytes(data))
        try:
            smelt.load(out, device="cuda", recompile=False)
        except smelt.SmeltError:
            continue
        # of machine code that was changed itself nothing is known but its form
    assert not driver.launches


def test_a_cubin_that_is_damaged_is_refused(path: Path) -> None:
    held = members(path)
    begin, end = first(json.loads(held[PLAN]))["code"]
    code, draw = held[CUBINS][begin:end], random.Random(SEED + 3)
    whole = read_cubin(code)
    assert whole.capability == 90
    for _ in range(300):
        data = bytearray(code[: draw.randrange(len(code))] if draw.random() < 0.3 else code)
        for _ in range(draw.choice((1, 4, 40))):
            if data:
                data[draw.randrange(min(len(data), 64) if draw.random() < 0.5 else len(data))] = draw.randrange(256)
        try:
            read_cubin(bytes(data))
        except ElfError:
            continue


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "metal"), ("kind", None), ("name", "sm_80"), ("name", "../x"), ("arch", "sm_80"), ("arch", "sm_90x"),
        ("arch", None), ("shared", 1 << 30), ("shared", -1), ("shared", "1"), ("records", None), ("machine", {}),
        ("machine", {"other": 1}), ("machine", {"capability": 90}), ("machine", None),
    ],
)  # fmt: skip
def test_targets_that_are_none(path: Path, tmp_path: Path, driver: FakeLibrary, name: str, value: Any) -> None:
    forge(path, tmp_path / "x", lambda manifest, parts: manifest["targets"][0].update({name: value}))
    refused(tmp_path / "x")
    with pytest.raises(smelt.SmeltError):
        inspect(tmp_path / "x")


def test_launches_of_another_smelt_are_not_done(path: Path, tmp_path: Path, driver: FakeLibrary) -> None:
    forge(path, tmp_path / "x", lambda manifest, parts: manifest["targets"][0].update(records=99))
    assert "another smelt launches in another way" in refused(tmp_path / "x")
    assert inspect(tmp_path / "x").data["targets"][0]["unfit"] == "another smelt launches it"
    assert not driver.log
