"""What an artifact says of itself: entry points, targets, versions, and which member holds what."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from inspect import getsource
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...codegen.schedule import PanelLayout
from ...codegen.tvm import packing
from ...codegen.tvm.host import ABI
from ...ir.errors import ArtifactError
from .container import Container, Member
from .names import identifier, member_name, tensor_name
from .targets import AnyRecord, GpuTargetRecord, record_of

FORMAT, GPU_FORMAT = 1, 2  # of files for CPUs, and of those that have kernels for GPUs
MOST_ENTRIES = 256
MOST_TARGETS = 32
_PACKAGES = {"torch": "torch", "tvm": "apache-tvm", "triton": "triton", "transformers": "transformers"}


@dataclass(frozen=True)
class KernelMembers:
    """The members of an entry point that are for one target; no library where PyTorch runs everything.

    The library is a shared one, or the cubins of a GPU.
    """

    plan: str
    library: str | None
    source: str


@dataclass(frozen=True)
class EntryRecord:
    """An entry point.

    Attributes:
        model: the class or function that it was made of.
        graph, calls, report: the members that hold these.
        state: the weights that its calls change.
        kernels: for each target, by name.
    """

    model: str
    graph: str
    calls: str
    report: str
    state: tuple[str, ...]
    kernels: Mapping[str, KernelMembers]


@dataclass(frozen=True)
class Manifest:
    """The manifest, but for its list of members.

    Attributes:
        versions: of smelt, Python and the packages that the artifact was made with.
        layout: the form of packed weights that a CPU's kernels expect, and what they are called with.
        settings: what ``export`` was asked for, for people.
        tuning: the member that holds records of tuning.
    """

    entries: Mapping[str, EntryRecord]
    targets: tuple[AnyRecord, ...]
    versions: Mapping[str, str]
    layout: str
    settings: Mapping[str, str]
    tuning: str

    @classmethod
    def make(
        cls,
        entries: Mapping[str, EntryRecord],
        targets: Sequence[AnyRecord],
        settings: Mapping[str, str],
        tuning: str,
    ) -> Manifest:
        """The manifest of an artifact that is made here and now."""
        return cls(entries, tuple(targets), versions_here(), layout_version(), settings, tuning)

    def text(self, members: Sequence[Member]) -> bytes:
        """The manifest as JSON, with the members before it."""
        data = {
            "format": GPU_FORMAT if any(isinstance(t, GpuTargetRecord) for t in self.targets) else FORMAT,
            "versions": dict(self.versions),
            "layout": self.layout,
            "settings": dict(self.settings),
            "entry_points": {name: asdict(entry) for name, entry in self.entries.items()},
            "targets": [record.to_dict() for record in self.targets],
            "tuning": self.tuning,
            "members": [member.to_dict() for member in members],
        }
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()

    def unusable(self) -> str | None:
        """Why a CPU's native code cannot be used with the versions that are installed; None where it can."""
        if self.layout != layout_version():
            return f"made with smelt {self.versions.get('smelt')}, whose kernels are called in another way"
        made, here = self.versions.get("tvm", "none"), versions_here().get("tvm", "none")
        if _minor(made) != _minor(here):
            return f"made with TVM {made}, installed is {here}"
        return None


def read_manifest(container: Container) -> Manifest:
    """The manifest of an artifact, of which every name is checked and every member there.

    Raises:
        ArtifactError: it is damaged, or of another format.
    """
    data = container.manifest
    found = data.get("format")
    if type(found) is not int or found not in (FORMAT, GPU_FORMAT):
        raise ArtifactError(
            f"{container.path} has the format {ascii(found)[:40]}, this smelt reads {FORMAT} and {GPU_FORMAT}: "
            "export the model again"
        )
    try:
        return _manifest(data, container)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise container.fault(f"its manifest cannot be read ({type(error).__name__})") from None


def _manifest(data: Mapping[str, Any], container: Container) -> Manifest:
    targets = tuple(map(record_of, _list(data["targets"], MOST_TARGETS)))
    known = {record.name for record in targets}
    if len(known) < len(targets):
        raise container.fault("two targets have one name")
    entries = {
        identifier(name, "the name of an entry point"): _entry(entry, known, container)
        for name, entry in _mapping(data["entry_points"], MOST_ENTRIES).items()
    }
    if not entries:
        raise container.fault("it has no entry point")
    versions = {str(name): str(text) for name, text in _mapping(data["versions"], 100).items()}
    settings = {str(name): str(text) for name, text in _mapping(data["settings"], 100).items()}
    return Manifest(entries, targets, versions, str(data["layout"]), settings, _member(data["tuning"], container))


def _entry(data: Any, targets: set[str], container: Container) -> EntryRecord:
    kernels = {name: _kernels(made, container) for name, made in _mapping(data["kernels"], MOST_TARGETS).items()}
    if set(kernels) != targets:
        raise container.fault("an entry point has kernels for other targets than the artifact")
    graph, calls, report = (_member(data[name], container) for name in ("graph", "calls", "report"))
    state = tuple(map(tensor_name, _list(data["state"], 1 << 20)))
    return EntryRecord(str(data["model"])[:200], graph, calls, report, state, kernels)


def _kernels(data: Any, container: Container) -> KernelMembers:
    library = None if data["library"] is None else _member(data["library"], container)
    return KernelMembers(_member(data["plan"], container), library, _member(data["source"], container))


def _member(name: Any, container: Container) -> str:
    return container.member(member_name(name)).name


def _list(data: Any, most: int) -> list[Any]:
    if not isinstance(data, list) or len(data) > most:
        raise ArtifactError("the manifest has no list, or too long a one, where one must be")
    return data


def _mapping(data: Any, most: int) -> dict[str, Any]:
    if not isinstance(data, dict) or len(data) > most:
        raise ArtifactError("the manifest has no mapping, or too large a one, where one must be")
    return data


def versions_here() -> dict[str, str]:
    """The versions of smelt, Python and the packages that are installed."""
    found = {"smelt": __version__, "python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def layout_version() -> str:
    """What changes with the form that kernels expect packed weights in, and with what they are called with."""
    text = f"{Path(packing.__file__).read_text(encoding='utf-8')}{getsource(PanelLayout)}{ABI}"
    return sha256(text.encode()).hexdigest()[:16]


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])
