"""Artifacts that were changed: each is a typed error, and nothing of what it names is read, written or run."""

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import smelt
from smelt.runtime.artifact import loader as loader_module
from smelt.runtime.artifact.container import CHUNK, Container, Source, write
from smelt.runtime.artifact.graphs import read_graph
from smelt.runtime.artifact.names import member_name

from .artifact_models import make_block

SEED = 20261122
FLIPS, CUTS, SWAPS, FORGED = 80, 40, 30, 60
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, args = make_block()
    made = tmp_path_factory.mktemp("whole") / "block.smelt"
    smelt.export(model, args).save(made)
    return made


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that hostile names try to make, in the folder that they are tried in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The native code that is loaded; what is damaged must never come so far, unless its own digest is right."""
    loaded: list[bytes] = []
    real = loader_module._load_library

    def watched(code: bytes, names: Any) -> Any:
        loaded.append(code)
        return real(code, names)

    monkeypatch.setattr(loader_module, "_load_library", watched)
    return loaded


# --- bytes ------------------------------------------------------------------------------------------------------------


def refused(path: Path, data: bytes, **options: Any) -> None:
    path.write_bytes(data)
    with pytest.raises(smelt.SmeltError) as found:
        smelt.load(path, **options)
    assert "\x00" not in str(found.value)
    assert len(str(found.value)) < 1000


def test_a_flipped_bit_anywhere_is_found(path: Path, tmp_path: Path, nothing_is_run: list[bytes]) -> None:
    whole, draw = path.read_bytes(), random.Random(SEED)
    ends = [draw.randrange(len(whole) - 400, len(whole)) for _ in range(FLIPS // 2)]
    for at in [*ends, *(draw.randrange(len(whole)) for _ in range(FLIPS // 2))]:
        changed = bytearray(whole)
        changed[at] ^= 1 << draw.randrange(8)
        refused(tmp_path / "flipped", bytes(changed))
    assert set(nothing_is_run) <= {read(path, "kernels.so")}


def test_a_part_that_is_missing_is_found(path: Path, tmp_path: Path, nothing_is_run: list[bytes]) -> None:
    whole, draw = path.read_bytes(), random.Random(SEED + 1)
    for number in range(CUTS):
        begin = draw.randrange(len(whole))
        end = min(begin + draw.choice((1, 100, 4096, len(whole))), len(whole))
        kept = (whole[:begin], whole[begin:], whole[:begin] + whole[end:], whole[:begin] + whole)[number % 4]
        if kept != whole:
            refused(tmp_path / "cut", kept)
    for data in (b"", b"PK", whole[-200:], b"\0" * 5000, whole + b"\0", whole + whole):
        refused(tmp_path / "cut", data)
    assert not nothing_is_run


def test_parts_that_change_places_are_found(path: Path, tmp_path: Path) -> None:
    whole, draw = path.read_bytes(), random.Random(SEED + 2)
    for _ in range(SWAPS):
        size = draw.choice((1, 16, 512, 4096))
        a, b = draw.sample(range(0, len(whole) - size, size), 2)
        changed = bytearray(whole)
        changed[a : a + size], changed[b : b + size] = changed[b : b + size], changed[a : a + size]
        if bytes(changed) != whole:
            refused(tmp_path / "swapped", bytes(changed))


def test_weights_are_left_unchecked_only_where_that_is_asked_for(path: Path, tmp_path: Path) -> None:
    whole = bytearray(path.read_bytes())
    container = Container(path)
    at = container.offsets["weights.safetensors"] + container.member("weights.safetensors").size - 1
    container.close()
    whole[at] ^= 1
    refused(tmp_path / "flipped", bytes(whole))
    smelt.load(tmp_path / "flipped", verify_weights=False)
    code = read(path, "kernels.so")
    whole[whole.index(code) + len(code) // 2] ^= 1
    refused(tmp_path / "flipped", bytes(whole), verify_weights=False)


def read(path: Path, end: str) -> bytes:
    container = Container(path)
    try:
        (name,) = (name for name in container.members if name.endswith(end))
        return container.read(name)
    finally:
        container.close()


def test_a_large_member_is_checked_in_parts(tmp_path: Path) -> None:
    made = tmp_path / "large.smelt"
    torch.manual_seed(0)
    model = torch.nn.Linear(1024, 2 * CHUNK // 4096 + 100).eval()
    smelt.export(model, torch.randn(2, 1024)).save(made)
    container = Container(made)
    member = container.member("weights.safetensors")
    assert len(member.chunks) == 3
    begin = container.offsets[member.name]
    container.close()
    smelt.load(made)
    for at in (begin, begin + CHUNK - 1, begin + CHUNK, begin + member.size - 1):
        with made.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 128]))
        with pytest.raises(smelt.ArtifactError):
            smelt.load(made)
        with made.open("r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))


@pytest.mark.parametrize("kind", ["folder", "pipe", "none", "link to none"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.smelt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to none":
        path.symlink_to(tmp_path / "none")
    with pytest.raises(smelt.ArtifactError):
        smelt.load(path)


# --- forged: all digests are right ------------------------------------------------------------------------------------


def forge(path: Path, out: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """An artifact with a changed manifest and members, and digests that fit them."""
    container = Container(path)
    members = {name: container.read(name) for name in container.members}
    manifest = json.loads(json.dumps(container.manifest))
    container.close()
    change(manifest, members)

    def text(made: Any) -> bytes:
        listed = manifest.pop("forged", [member.to_dict() for member in made])
        return json.dumps(manifest | {"members": listed}).encode()

    write(out, [Source.of(name, data) for name, data in members.items()], text)


def paths_of(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in JSON."""
    found = [at] if at else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [*found, *(path for key, value in items for path in paths_of(value, (*at, key)))]


def put(data: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        data = data[key]
    data[place[-1]] = value


HOSTILE: tuple[Any, ...] = (
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "a/../../b",
    "C:\\windows\\win.ini",
    "file:///etc/passwd",
    "x\0y",
    "x\ny",
    "x" * 100_000,
    "manifest.json",
    "",
    -1,
    1 << 63,
    1 << 200,
    1e300,
    None,
    True,
    [],
    {},
    [[[[[[[[[]]]]]]]]],
    {"__class__": "os.system"},
    "__import__('os').system('touch canary')",
)


@pytest.mark.parametrize("member", ["manifest", "calls.json", "plan.json"])
def test_forged_data_is_an_error_or_harmless(
    path: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """Values of the wrong kind in every place; what loads nonetheless is not called."""
    monkeypatch.setattr(loader_module, "_load_library", lambda code, names: dict.fromkeys(names))
    draw, refusals = random.Random(f"{SEED}{member}"), 0
    for _ in range(FORGED // 3):
        value = draw.choice(HOSTILE)

        def change(manifest: dict[str, Any], members: dict[str, bytes], value: Any = value) -> None:
            name = next((n for n in members if n.endswith(member)), "")
            data = json.loads(members[name]) if name else manifest
            put(data, draw.choice(paths_of(data)), value)
            if name:
                members[name] = json.dumps(data).encode()

        try:
            forge(path, tmp_path / "forged", change)
        except smelt.ArtifactError:
            continue  # the writer refuses it too
        try:
            smelt.load(tmp_path / "forged")
        except smelt.SmeltError:
            refusals += 1
    assert refusals >= FORGED // 6
    assert not canary.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged"]


@pytest.mark.parametrize("name", [name for name in HOSTILE if isinstance(name, str) and name != "manifest.json"])
def test_hostile_members(path: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(smelt.ArtifactError):
        member_name(name)

    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        manifest["forged"] = [{"name": name, "size": 1, "crc32": 0, "sha256": "0" * 64}]

    forge(path, tmp_path / "forged", change)
    with pytest.raises(smelt.ArtifactError):
        smelt.load(tmp_path / "forged")


@pytest.mark.parametrize("target", ["auto", "compile"])
def test_state_that_is_not_listed(tmp_path: Path, target: str) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1.0)
            return x + self.calls

    smelt.export(Counter().eval(), torch.randn(2, 16)).save(tmp_path / "whole")

    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        assert manifest["entry_points"]["forward"]["state"] == ["calls"]
        manifest["entry_points"]["forward"]["state"] = []

    forge(tmp_path / "whole", tmp_path / "forged", change)
    with pytest.raises(smelt.ArtifactError, match="no state"):
        smelt.load(tmp_path / "forged", target=target)


def listed(manifest: dict[str, Any], members: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"name": name, "size": len(data), "crc32": 0, "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in members.items()
    ]


@pytest.mark.parametrize(
    "edit",
    [
        lambda rows: rows.append(rows[0]),
        lambda rows: rows.reverse(),
        lambda rows: rows.pop(),
        lambda rows: rows[0].update(size=rows[0]["size"] + 4096),
        lambda rows: rows[0].update(size=1 << 62),
        lambda rows: rows[0].update(chunks=["0" * 64]),
        lambda rows: rows[0].update(offset=0),
        lambda rows: rows[0].update(name=rows[1]["name"].upper()),
        lambda rows: rows.extend({**rows[0], "name": f"m{i}"} for i in range(20_000)),
    ],
)
def test_lists_of_members_that_do_not_fit(path: Path, tmp_path: Path, edit: Callable[[Any], None]) -> None:
    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        manifest["forged"] = listed(manifest, members)
        edit(manifest["forged"])

    forge(path, tmp_path / "forged", change)
    with pytest.raises(smelt.ArtifactError):
        smelt.load(tmp_path / "forged")


def header(entries: Any, size: int = 0, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)


def entry(dtype: str = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        header({}, length=1 << 40),
        header({}, length=3),
        header(b"[" * 100_000),
        header([1]),
        header({"x": entry()}, 4),
        header({"x": entry()}, 12),
        header({"x": entry(begin=4, end=12)}, 12),
        header({"x": entry(begin=-8, end=0)}, 8),
        header({"x": entry(), "y": entry()}, 8),
        header({"x": entry(shape=(3,))}, 8),
        header({"x": entry(shape=(-1, -2))}, 8),
        header({"x": entry(shape=(1 << 40, 1 << 40))}, 8),
        header({"x": entry(shape=(True, 2))}, 8),
        header({"x": entry(dtype="F31")}, 8),
        header({"x": entry(more=1)}, 8),
        header({"../x": entry()}, 8),
        header({"x": 3}, 8),
        header({"x": entry(begin=0.0)}, 8),
    ],
)
def test_hostile_weights(path: Path, tmp_path: Path, data: bytes) -> None:
    forge(path, tmp_path / "forged", lambda manifest, members: members.update({"weights.safetensors": data}))
    with pytest.raises(smelt.ArtifactError):
        smelt.load(tmp_path / "forged")


@pytest.mark.parametrize("format_", [3, "1", None, 10**400])
def test_other_formats(path: Path, tmp_path: Path, format_: Any) -> None:
    forge(path, tmp_path / "forged", lambda manifest, members: manifest.update(format=format_))
    with pytest.raises(smelt.ArtifactError):
        smelt.load(tmp_path / "forged")


def test_code_made_for_other_versions_is_not_run(path: Path, tmp_path: Path, nothing_is_run: list[bytes]) -> None:
    for change in ({"layout": "0" * 16}, {"versions": {"smelt": "0.0", "tvm": "0.9.1"}}):
        forge(path, tmp_path / "forged", lambda manifest, members, change=change: manifest.update(change))
        with pytest.warns(loader_module.ArtifactWarning, match="compiled anew"):
            loaded = smelt.load(tmp_path / "forged")
        model, _ = make_block()
        torch.testing.assert_close(loaded(X)["answer"].logits, model(X)["answer"].logits)
    assert not nothing_is_run


# --- hostile identifiers ----------------------------------------------------------------------------------------------

_CODE = (
    "__import__('os').system('touch canary')",
    "x'); __import__('pathlib').Path('canary').touch(); ('",
    'x"); open("canary", "w"); ("',
    "x\n    import os; os.system('touch canary')",
    "T.call_extern('int32', 'system', 'touch canary')",
    "{open('canary', 'w')}",
    "$(touch canary)",
    "`touch canary`",
    "../canary",
    "x\\u0000y",
)
_CALLS = (
    "aten.from_file.default",
    "aten.from_file.out",
    "aten.save.default",
    "os.system",
    "aten.__class__",
    "aten.add.Tensor.__call__",
    "aten.add.__globals__",
    "builtins.eval",
    "prim.PythonOp.default",
    "torch.load",
    "aten.add",
    "c10d.send.default",
    "image.read_file.default",
    "load_library",
    "aten..add",
    "aten.add.Tensor; import os",
    "aten.no_such_operator.default",
    "_C.system.default",
)


def text_of(source: str = "x", size: str = "s0", weight: str = "w", call: str | None = None) -> str:
    """The text of a graph with a name in each of the places that names have."""
    quoted, lines = json.dumps(source), []
    value = "%0"
    lines.append(f"%0 = input {quoted} : f32[${json.dumps(size)}, 4]")
    lines.append(f"%1 = weight {json.dumps(weight)} : f32[4]")
    lines.append(f"%2 = add({value}, %1) : f32[${json.dumps(size)}, 4]")
    end = "%2"
    if call is not None:
        args = f'args=[["value", "canary"], ["operand", 0]], types=[f32[${json.dumps(size)}, 4]]'
        lines.append(f"%3 = aten.call(%2, target={json.dumps(call)}, {args}) : f32[${json.dumps(size)}, 4]")
        end = "%3"
    body = "\n".join(f"  {line}" for line in lines)
    return f"graph(${json.dumps(size)} in [1, 8]) {{\n{body}\n  return {end}\n}}\n"


IDENTIFIERS = [
    *({"source": name} for name in _CODE),
    *({"size": name} for name in _CODE),
    *({"weight": name} for name in _CODE),
    *({"call": name} for name in (*_CODE[:4], *_CALLS)),
]


def test_the_text_is_read_where_no_name_is_hostile() -> None:
    read_graph(text_of())
    assert len(IDENTIFIERS) >= 50


@pytest.mark.parametrize("names", IDENTIFIERS, ids=range(len(IDENTIFIERS)))
@pytest.mark.parametrize("way", ["auto", "compile"])
def test_hostile_identifiers(
    path: Path, tmp_path: Path, canary: Path, names: dict[str, str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the plan that is run, and in the graph that is compiled."""
    text = text_of(**names)
    with pytest.raises(smelt.SmeltError):
        read_graph(text)

    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        (plan,) = (name for name in members if name.endswith("plan.json"))
        data = json.loads(members[plan])
        members[plan] = json.dumps(data | {"graph": text}).encode()
        members["forward/graph.txt"] = text.encode()

    forge(path, tmp_path / "forged", change)
    with pytest.raises(smelt.SmeltError):
        smelt.load(tmp_path / "forged", target=way)
    assert not canary.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["forged"]


def test_operators_of_pytorch_are_called_with_what_they_have() -> None:
    good = '%1 = aten.call(%0, target="aten.relu.default", args=[["operand", 0]], types=[f32[4]]) : f32[4]'
    start = 'graph() {\n  %0 = input "x" : f32[4]\n  '
    read_graph(f"{start}{good}\n  return %1\n}}\n")
    for old, new in [
        ('["operand", 0]', '["operand", 1]'),
        ('["operand", 0]', '["operand", -1]'),
        ('["operand", 0]', '["code", 0]'),
        ('["operand", 0]', '["operand"]'),
        ('[["operand", 0]]', '[["operand", 0], ["operand", 0]]'),
        ('[["operand", 0]]', '[["operand", 0]], kwargs=[["filename", ["value", "canary"]]]'),
        ('[["operand", 0]]', "3"),
    ]:
        with pytest.raises(smelt.SmeltError):
            read_graph(f"{start}{good.replace(old, new)}\n  return %1\n}}\n")


@pytest.mark.parametrize("other", ["aten.msort.default", "aten.max.dim", "aten.relu.default"])
def test_what_pytorch_returns_is_held_to_the_graph(path: Path, tmp_path: Path, other: str) -> None:
    """A graph may say that an operator returns more than it does: kernels would read what is not there."""

    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        (name,) = (name for name in members if name.endswith("plan.json"))
        assert b"aten.cummax.default" in members[name]
        members[name] = members[name].replace(b"aten.cummax.default", other.encode())

    forge(path, tmp_path / "forged", change)
    with pytest.raises(smelt.SmeltError):
        smelt.load(tmp_path / "forged")(X)
