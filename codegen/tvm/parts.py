"""The native code of a model made in parts, each an object file, so that several processes can work on them.

A kernel is a function with a name of its own here, which host functions call by that name. Where it lies in one module
with them instead (``module.build``), LLVM copies small kernels to each of their calls, which is most of its work on a
host function and makes no call faster that can be measured.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.support import cc

from .host import Host, wants_team
from .linker import linker_command
from .module import by_name, compiled, host_function, parse_module, public, team_functions

_HEAD = re.compile(r"^def (\w+)\((.*)\) -> T\.int32:$", re.MULTILINE)
_SIZE = re.compile(r"(\w+): T\.int64\b")
# how long things take, in characters of a kernel's text
_ALONE, _OF_CALL = 3000, 100
# of the linker: a kernel is that of its own library, whatever else in the process has its name
_OPTIONS = {"linux": ["-Wl,-Bsymbolic"], "darwin": ["-undefined", "dynamic_lookup"]}


@dataclass(frozen=True)
class Part:
    """What one object file holds: kernels, by their text, or all host functions."""

    texts: tuple[str, ...] = ()
    hosts: bool = False


def parts_of(texts: Sequence[str], hosts: Sequence[Host], count: int) -> list[list[Part]]:
    """Parts for so many processes, each of which makes its own one by one; as many take about as long as others."""
    calls = sum(len(host.calls) for host in hosts)
    work: list[tuple[int, str | None]] = [(_ALONE + len(text), text) for text in texts]
    work.append((_ALONE + _OF_CALL * calls, None))
    shares: list[list[str | None]] = [[] for _ in range(min(count, len(work)))]
    taken = [0] * len(shares)
    for cost, text in sorted(work, key=lambda item: -item[0]):
        least = taken.index(min(taken))
        taken[least] += cost
        shares[least].append(text)
    found = []
    for share in shares:
        kernels = tuple(text for text in share if text is not None)
        parts = [Part(kernels)] if kernels else []
        found.append([*parts, *([Part(hosts=True)] if None in share else [])])
    return found


def make_object(part: Part, texts: Sequence[str], hosts: Sequence[Host], cpu: str, path: Path) -> None:
    """Compile a part to an object file.

    Raises:
        BackendError: TVM refuses the text or fails to compile it.
    """
    module = _hosts(texts, hosts) if part.hosts else _kernels(part.texts)
    built = compiled(module, tvm.target.Target({"kind": "llvm", "mcpu": cpu}))
    built.mod.write_to_file(str(path), "o")


def _kernels(texts: Sequence[str]) -> Any:
    functions = parse_module(texts).functions.items()
    return tvm.IRModule({variable: public(function, variable.name_hint) for variable, function in functions})


def _hosts(texts: Sequence[str], hosts: Sequence[Host]) -> Any:
    sizes = {name: _SIZE.findall(parameters) for text in texts for name, parameters in _HEAD.findall(text)}
    team = wants_team(texts, hosts)
    functions = team_functions() if team else {}
    for host in hosts:
        functions[host.name] = host_function(host, by_name(sizes), team=team, fenced=False)
    return tvm.IRModule({tvm.ir.GlobalVar(name): function for name, function in functions.items()})


def link(objects: Sequence[Path], path: Path) -> None:
    """A shared library of object files.

    Raises:
        RuntimeError: the linker refuses them.
    """
    parts = [str(part) for part in objects]
    if sys.platform == "win32":
        cc.create_shared(str(path), parts)
        return
    command = linker_command()
    if not command:
        raise RuntimeError("there is no C or C++ compiler to link with")
    command += ["-shared", "-fPIC", "-o", str(path), *parts, *_OPTIONS.get(sys.platform, [])]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if made.returncode:
        said = (made.stderr + made.stdout).decode(errors="replace").strip()
        raise RuntimeError(f"{command[0]} cannot link kernels: {said or f'it ended with {made.returncode}'}")


def make_library(texts: Sequence[str], hosts: Sequence[Host], cpu: str, path: Path) -> None:
    """The shared library of kernels and host functions, made in this process; objects lie beside it meanwhile.

    Raises:
        BackendError: TVM refuses the text or fails to compile it.
        RuntimeError: the linker refuses the objects.
    """
    (parts,) = parts_of(texts, hosts, 1)
    objects = [path.with_name(f"{path.name}.{number}.o") for number in range(len(parts))]
    try:
        for part, made in zip(parts, objects, strict=True):
            make_object(part, texts, hosts, cpu, made)
        link(objects, path)
    finally:
        for made in objects:
            made.unlink(missing_ok=True)
