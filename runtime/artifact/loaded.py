"""What ``smelt.load`` gives: a model that is called, its state, and what was loaded."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from ...ir.errors import ArtifactError
from ..undisturbed import never_compiled
from .entry_point import EntryPoint
from .weights import Weights


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        targets: for each entry point, whose kernels run, or that they were compiled.
        device, where: where weights, arguments and results lie, as PyTorch calls it; the same for people.
        seconds: what each step took.
        weights, file_bytes, weight_bytes, packed_bytes: how many weights there are; bytes of the file, of the weights
            that are used, and of the copies that kernels read.
        versions: what the artifact was made with.
        entry_points: the report on each, as it was when the artifact was made.
    """

    path: str
    digest: str
    targets: Mapping[str, str]
    threads: int
    device: str
    where: str
    seconds: Mapping[str, float]
    weights: int
    file_bytes: int
    weight_bytes: int
    packed_bytes: int
    versions: Mapping[str, str]
    entry_points: Mapping[str, str]

    @property
    def target(self) -> str:
        """Whose kernels run: one text where that is the same for all entry points."""
        found = list(dict.fromkeys(self.targets.values()))
        return found[0] if len(found) == 1 else "; ".join(f"{name}: {text}" for name, text in self.targets.items())

    def to_dict(self) -> dict[str, Any]:
        """The report as data for JSON."""
        return {**asdict(self), "target": self.target}

    def __str__(self) -> str:
        steps = ", ".join(f"{name} {seconds:.3f}" for name, seconds in self.seconds.items())
        made = ", ".join(f"{name} {text}" for name, text in self.versions.items())
        lines = [
            f"{self.path}: {self.file_bytes / 1e6:.1f} MB, digest {self.digest}",
            f"made with {made}",
            f"kernels for {self.target}; {self.where}",
            f"{self.weights} weights of {self.weight_bytes / 1e6:.1f} MB, {self.packed_bytes / 1e6:.1f} MB in panels",
            f"loaded in {sum(self.seconds.values()):.3f} s: {steps}",
        ]
        parts = [f"\nentry point {name}, when it was exported: {text}" for name, text in self.entry_points.items()]
        return "\n".join(lines) + "\n" + "".join(parts)


class LoadedArtifact:
    """A model that was loaded. It is called as the model was, by any number of threads, until it is closed.

    State, such as a static cache of keys and values, is the artifact's own: entry points share it, ``reset`` puts it
    back. Entry points with state take turns.

    It may be loaded before the process is forked, if it is first called afterwards.

    Attributes:
        entry_points: the ways to call it, by name. An artifact with one of them can be called itself.
        digest: the SHA-256 of the file's manifest, in hexadecimal.
        settings: what ``export`` was asked for.
    """

    def __init__(
        self,
        entry_points: Mapping[str, EntryPoint],
        state: Mapping[str, Tensor],
        weights: Weights,
        report: LoadReport,
        settings: Mapping[str, str],
        lock: threading.Lock | None,
    ) -> None:
        self.entry_points = dict(entry_points)
        self.digest = report.digest
        self.settings = dict(settings)
        self._state = dict(state)
        self._weights: Weights | None = weights
        self._lock = lock or threading.Lock()
        self._report = report

    @never_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the only entry point: see :meth:`EntryPoint.__call__`.

        Raises:
            ArtifactError: there are several, or the artifact was closed.
            InputError: the arguments do not fit.
        """
        if len(self.entry_points) != 1:
            names = ", ".join(self.entry_points)
            raise ArtifactError(f"the artifact has several entry points: call one of .entry_points: {names}")
        (only,) = self.entry_points.values()
        return only(*args, **kwargs)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What calls change, by name: the tensors themselves."""
        return dict(self._state)

    def synchronize(self) -> None:
        """Wait until all calls are done on the device.

        Raises:
            ArtifactError: the artifact was closed.
            IndexError: in a call of this thread an index was out of range, and it was not raised yet.
        """
        for entry in self.entry_points.values():
            entry.synchronize()

    def reset(self) -> None:
        """Put all state back to what the file holds.

        Raises:
            ArtifactError: the artifact was closed.
        """
        weights = self._weights
        if weights is None:
            raise ArtifactError("the artifact was closed: its state is gone")
        with self._lock:
            for name, tensor in self._state.items():
                tensor.copy_(weights.tensor(name))

    def report(self) -> LoadReport:
        """What was loaded, and what each entry point is; printable."""
        return self._report

    def close(self) -> None:
        """Let go of kernels, weights and the file; calls that are running end first, later ones are refused."""
        for entry in self.entry_points.values():
            entry.close()
        self._state.clear()
        self._weights = None

    def __enter__(self) -> LoadedArtifact:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<artifact of {', '.join(map(repr, self.entry_points.values()))}>"
