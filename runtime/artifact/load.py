"""``smelt.load``: an artifact made ready to be called, without the model's code and without a compiler."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ir import ops
from ...ir.collection import no_collection
from ...ir.errors import ArtifactError, BackendError, SmeltError, UnsupportedError
from ...ir.graph import Graph
from ...ir.node import through_views
from ..entry import Entry
from ..plan import Place, Plan, TorchStep
from ..saved.plan import plan_of
from .calls import capture_of
from .container import Container
from .entry_point import EntryPoint, SharingExecutable
from .graphs import check_graph, read_graph
from .loaded import LoadedArtifact, LoadReport
from .manifest import EntryRecord, KernelMembers, Manifest, read_manifest
from .names import identifier
from .targets import TargetRecord, best, threads_of
from .weights import WEIGHTS, Weights, check_types

# what reading damaged data raises, whatever stumbles over it
_STUMBLES = (
    SmeltError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    OSError,
)


class ArtifactWarning(UserWarning):
    """An artifact runs, but not as it was meant to; nothing is lost but time."""


def load(
    path: str | os.PathLike[str],
    *,
    target: str = "auto",
    threads: int | None = None,
    digest: str | None = None,
    verify_weights: bool = True,
) -> LoadedArtifact:
    """Load what ``smelt.export(...).save(path)`` wrote.

    The file holds machine code. All of it is checked against the digests in its manifest, which finds damage; to be
    sure that it is the file that you made, give the ``digest`` that ``save`` returned.

    Args:
        path: the artifact. It is mapped into memory: replace it by renaming while it is loaded, never in place.
        target: ``"auto"`` takes the kernels that fit this processor best, and compiles where none do; the name of one
            of the artifact's targets takes those; ``"compile"`` compiles, and runs no machine code of the file's.
        threads: how many threads kernels may use; by default all cores that this process may run on.
        digest: the SHA-256 of the manifest, in hexadecimal.
        verify_weights: whether weights too are held to their digests. False saves time; everything else is always held.

    Raises:
        ArtifactError: the file is damaged, no artifact, not the one of ``digest``, or has no such target.
        BackendError: the package that runs kernels, or the compiler where one is needed, is not installed.
        ValueError: the number of threads is not positive.
    """
    number = threads_of(threads)
    container = Container(path)
    try:
        if digest is not None and str(digest).lower() != container.digest:
            raise ArtifactError(f"{container.path} has the digest {container.digest}, not {digest}")
        # what is made outlives the call
        with torch.inference_mode(False), torch.device("cpu"), no_collection():
            return _Loader(container, target, number, verify_weights).run()
    finally:
        container.close()


Hosts = list[Any]


class _Loader:
    def __init__(self, container: Container, target: str, threads: int, verify_weights: bool) -> None:
        self.container, self.threads, self.verify_weights = container, threads, verify_weights
        self.asked = target
        self.seconds: dict[str, float] = {}
        self.packed: dict[Any, Tensor] = {}
        self.targets: dict[str, str] = {}  # of each entry point

    def run(self) -> LoadedArtifact:
        with self._step("manifest"):
            self.manifest = read_manifest(self.container)
            self.record = self._choose(self.manifest)
        with self._step("check"):
            self._check_members()
            weights = self._weights()
        with self._step("plans"), self._reading():
            names = {name for entry in self.manifest.entries.values() for name in entry.state}
            state = {name: weights.copy(name) for name in sorted(names)}
            values = {name: state[name] if name in state else weights.tensor(name) for name in weights}
        lock = threading.Lock() if state else None
        found = {name: self._entry(name, entry, values, lock) for name, entry in self.manifest.entries.items()}
        reports = {name: self.container.text(entry.report) for name, entry in self.manifest.entries.items()}
        return LoadedArtifact(found, state, weights, self._report(values, reports), self.manifest.settings, lock)

    # --- which kernels ------------------------------------------------------------------------------------------------

    def _choose(self, manifest: Manifest) -> TargetRecord | None:
        """The target whose kernels run; None where they are compiled, which is said."""
        names = [record.name for record in manifest.targets]
        if self.asked == "compile":
            return None
        if self.asked != "auto" and self.asked not in names:
            raise ArtifactError(f'there is no target {self.asked!r} in it: say "auto", "compile" or {", ".join(names)}')
        wanted = [record for record in manifest.targets if self.asked in ("auto", record.name)]
        chosen, reason = best(wanted), manifest.unusable()
        if chosen is not None and reason is None:
            return chosen
        self._say(reason or f"has kernels for {', '.join(map(str, wanted))} and none that run on this processor")
        return None

    def _say(self, reason: str) -> None:
        text = f"{self.container.path} {reason}: its kernels are compiled anew from its graphs"
        warnings.warn(text, ArtifactWarning, stacklevel=5)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _check_members(self) -> None:
        """Hold all members but the weights to their digests, those as well that nobody reads here."""
        for name in self.container.members:
            if name != WEIGHTS:
                self.container.read(name)

    def _weights(self) -> Weights:
        with self._reading():
            weights = Weights(self.container)
            if self.verify_weights:
                weights.verify()
        return weights

    def _entry(
        self, name: str, record: EntryRecord, values: Mapping[str, Tensor], lock: threading.Lock | None
    ) -> EntryPoint:
        kept = None if self.record is None else self._kept(record.kernels[self.record.name])
        self.targets[name] = "this processor, compiled anew" if kept is None else str(self.record)
        plan, hosts = kept or self._compiled(record)
        with self._step("plans"), self._reading():
            capture = capture_of(self.container.json(record.calls), plan.graph, values)
            buffers = [b for b in plan.buffers if b.place is Place.WEIGHT]
            targets = [through_views(m.target) for m in plan.graph.mutations]
            changed = {str(node.attrs["name"]) for node in targets if node.is_a(ops.weight)}
            if changed - set(record.state):  # it is in pages that can only be read
                raise self.container.fault(f"a call changes {ascii(min(changed - set(record.state)))[:80]}, no state")
            missing = {b.name for b in buffers} - values.keys()
            if missing:
                raise self.container.fault(f"there is no weight {ascii(min(missing))[:80]}")
            check_types(values, {b.name: (tuple(map(int, b.type.shape)), b.type.dtype) for b in buffers})
        with self._step("pack"), self._reading():
            executable = self._executable(plan, hosts, {b.name: values[b.name] for b in buffers}, capture.fallbacks)
        return EntryPoint(name, record.model, Entry(capture, executable), lock)

    def _kept(self, made: KernelMembers) -> tuple[Plan, Hosts] | None:
        """The plan that the artifact holds and what runs its segments; None where its native code cannot be loaded."""
        with self._step("plans"):
            plan, names = self._plan(made)
        hosts = self._linked(made, names)
        return None if hosts is None else (plan, hosts)

    def _plan(self, made: KernelMembers) -> tuple[Plan, Hosts]:
        """The plan that the artifact holds, and what runs its segments, native ones by name."""
        with self._reading():
            plan, hosts, derived = plan_of(self.container.json(made.plan))
            if derived:
                raise self.container.fault("a plan computes weights")
            steps = [step.node for step in plan.steps if isinstance(step, TorchStep)]
            graph = plan.graph
            check_graph(Graph(graph.inputs, (*graph.outputs, *steps), graph.mutations, graph.symbols))
            _check_places(plan)
            for host in hosts:
                if isinstance(host, str):
                    identifier(host, "the name of native code")
        return plan, list(hosts)

    def _linked(self, made: KernelMembers, hosts: Hosts) -> Hosts | None:
        """The hosts with native code for names; None where that cannot be loaded here, which is said."""
        names = [host for host in hosts if isinstance(host, str)]
        if not names:
            return hosts
        if made.library is None:
            raise self.container.fault("a plan has no native code")
        with self._step("link"):
            code = self.container.read(made.library)
            try:
                library = _load_library(code, names)
            except BackendError:
                raise
            except Exception as error:  # whatever the dynamic linker raises
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self._say(f"has native code that cannot be loaded here ({reason[0][:200]})")
                return None
        return [library[host] if isinstance(host, str) else host for host in hosts]

    def _compiled(self, record: EntryRecord) -> tuple[Plan, Hosts]:
        """The plan and hosts for this processor, from the graph."""
        with self._step("compile"):
            with self._reading():
                graph = read_graph(self.container.text(record.graph))
            from .recompile import compiled  # only who needs it pays for the compiler

            return compiled(graph, self.threads, self.container.text(self.manifest.tuning))

    def _executable(
        self, plan: Plan, hosts: Hosts, weights: Mapping[str, Tensor], fallbacks: tuple[Any, ...]
    ) -> SharingExecutable:
        native = any(not isinstance(host, TorchStep) for host in hosts)
        return SharingExecutable(
            plan=plan,
            weights=weights,
            derived={},
            hosts=hosts,
            graphs={},
            kernels=(),
            fallbacks=fallbacks,
            prepare=_thread_pool(self.threads) if native else None,
            packed=self.packed,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what damaged data raises into the error that says so."""
        try:
            yield
        except (ArtifactError, BackendError, UnsupportedError):
            raise
        except _STUMBLES as error:
            text = str(error).splitlines() or [""]
            raise self.container.fault(f"{type(error).__name__}: {ascii(text[0])[1:-1][:200]}") from None

    def _report(self, values: Mapping[str, Tensor], reports: Mapping[str, str]) -> LoadReport:
        made = {tensor.data_ptr(): tensor for (_, packing), tensor in self.packed.items() if packing is not None}
        return LoadReport(
            path=str(self.container.path),
            digest=self.container.digest,
            targets=dict(self.targets),
            threads=self.threads,
            seconds=dict(self.seconds),
            weights=len(values),
            file_bytes=self.container.size,
            weight_bytes=sum(tensor.nbytes for tensor in values.values()),
            packed_bytes=sum(tensor.nbytes for tensor in made.values()),
            versions=dict(self.manifest.versions),
            entry_points=dict(reports),
        )


def _check_places(plan: Plan) -> None:
    """Raise ArtifactError where a plan names a buffer that it does not have."""
    steps = [position for step in plan.steps if isinstance(step, TorchStep) for position in step.results]
    named = [*plan.live, *plan.written, *plan.reuse, *plan.reuse.values(), *steps]
    times = [time for pair in plan.live.values() for time in pair] + list(plan.written.values())
    if not all(type(position) is int and 0 <= position < len(plan.buffers) for position in named):
        raise ArtifactError("a plan names a buffer that it does not have")
    if not all(type(time) is int for time in times):
        raise ArtifactError("a plan has times that are none")
    missing = [node for node in (*plan.graph.inputs, *plan.graph.weights()) if node not in plan.home]
    if missing:
        raise ArtifactError("a plan has no buffer for an input or a weight")


def _load_library(code: bytes, names: Sequence[str]) -> Mapping[str, Any]:
    """Native code by name, from bytes whose digest was checked: from a private file, since only files can be loaded."""
    try:
        from ...codegen.tvm import native
    except ImportError as error:
        raise BackendError(f"kernels need the package apache-tvm-ffi, which cannot be imported: {error}") from error

    with tempfile.TemporaryDirectory(prefix="smelt-") as folder:
        path = Path(folder) / "kernels.so"
        path.write_bytes(code)
        try:
            return native.load(path, names)
        except ImportError as error:
            raise BackendError(f"kernels need TVM's runtime library: {error}; pip install apache-tvm") from error


def _thread_pool(threads: int) -> Callable[[], None]:
    """What sizes the thread pool before a run: it is one for the process, and another model may have sized it."""
    from ...codegen.tvm import native

    # as for a target that is detected: see there
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, threads_of(None))))
    return lambda: native.set_threads(threads)
