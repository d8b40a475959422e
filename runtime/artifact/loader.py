"""What makes an artifact ready to be called, step by step; ``gpu_load.py`` has what is other on GPUs."""

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
from ...ir.errors import ArtifactError, BackendError, SmeltError, UnsupportedError
from ...ir.graph import Graph
from ...ir.node import through_views
from ..compiled import Compiled
from ..entry import Entry
from ..plan import Place, Plan, TorchStep
from ..saved.plan import plan_of
from ..tensors import CPU
from .calls import capture_of
from .container import Container
from .entry_point import EntryPoint, SharingExecutable
from .graphs import check_graph, read_graph
from .loaded import LoadedArtifact, LoadReport
from .manifest import EntryRecord, KernelMembers, Manifest
from .names import identifier
from .targets import AnyRecord, TargetRecord, best, threads_of
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


Hosts = list[Any]


class Loader:
    """Loads an artifact on this processor.

    Attributes:
        record: the target whose kernels run; None where they are compiled.
        device: where weights, arguments and results lie.
    """

    here = "this processor"
    record: AnyRecord | None

    def __init__(
        self,
        container: Container,
        manifest: Manifest,
        target: str,
        threads: int,
        verify_weights: bool,
        recompile: bool,
    ) -> None:
        self.container, self.threads, self.verify_weights = container, threads, verify_weights
        self.manifest, self.asked, self.recompile = manifest, target, recompile
        self.seconds: dict[str, float] = {}
        self.packed: dict[Any, Tensor] = {}
        self.targets: dict[str, str] = {}  # of each entry point

    @property
    def device(self) -> torch.device:
        """Where weights, arguments and results lie."""
        return CPU

    def threads_text(self) -> str:
        """What the report says of where it runs."""
        return f"{self.threads} threads"

    def placed_weights(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights where kernels read them."""
        return values

    def run(self) -> LoadedArtifact:
        """The artifact, ready to be called."""
        with self.step("manifest"):
            self.record = self.choose(self.manifest)
        with self.step("check"):
            self._check_members()
            weights = self._weights()
        with self.step("plans"), self.reading():
            names = {name for entry in self.manifest.entries.values() for name in entry.state}
            state = {name: weights.copy(name).to(self.device) for name in sorted(names)}
            values = self.placed_weights(
                {name: state[name] if name in state else weights.tensor(name) for name in weights}
            )
        lock = threading.Lock() if state else None
        found = {name: self._entry(name, entry, values, lock) for name, entry in self.manifest.entries.items()}
        reports = {name: self.container.text(entry.report) for name, entry in self.manifest.entries.items()}
        return LoadedArtifact(found, state, weights, self._report(values, reports), self.manifest.settings, lock)

    # --- which kernels ------------------------------------------------------------------------------------------------

    def choose(self, manifest: Manifest) -> AnyRecord | None:
        """The target whose kernels run; None where they are compiled, which is said."""
        if self.asked == "compile":
            return None
        self.check_asked(manifest)
        wanted = [record for record in manifest.targets if self.asked in ("auto", record.name)]
        chosen, reason = best([r for r in wanted if isinstance(r, TargetRecord)]), manifest.unusable()
        if chosen is not None and reason is None:
            return chosen
        self.say(reason or f"has kernels for {', '.join(map(str, wanted))} and none that run on this processor")
        return None

    def check_asked(self, manifest: Manifest) -> None:
        """Raise ArtifactError where the file has not the target that is asked for."""
        names = [record.name for record in manifest.targets]
        if self.asked != "auto" and self.asked not in names:
            raise ArtifactError(f'there is no target {self.asked!r} in it: say "auto", "compile" or {", ".join(names)}')

    def say(self, reason: str) -> None:
        """Say why kernels are compiled.

        Raises:
            ArtifactError: they may not be.
        """
        if not self.recompile:
            raise ArtifactError(f"{self.container.path} {reason}, and recompile is off")
        text = f"{self.container.path} {reason}: its kernels are compiled anew from its graphs"
        warnings.warn(text, ArtifactWarning, stacklevel=5)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _check_members(self) -> None:
        """Hold all members but the weights to their digests, those as well that nobody reads here."""
        for name in self.container.members:
            if name != WEIGHTS:
                self.container.read(name)

    def _weights(self) -> Weights:
        with self.reading():
            weights = Weights(self.container)
            if self.verify_weights:
                weights.verify()
        return weights

    def _entry(
        self, name: str, record: EntryRecord, values: Mapping[str, Tensor], lock: threading.Lock | None
    ) -> EntryPoint:
        kept = None if self.record is None else self.kept(record.kernels[self.record.name])
        self.targets[name] = f"{self.here}, compiled anew" if kept is None else str(self.record)
        plan, hosts = kept or self.compiled(record)
        with self.step("plans"), self.reading():
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
        with self.step("pack"), self.reading():
            executable = self.executable(plan, hosts, {b.name: values[b.name] for b in buffers}, capture.fallbacks)
        return EntryPoint(name, record.model, Entry(capture, executable), lock)

    def kept(self, made: KernelMembers) -> tuple[Plan, Any] | None:
        """The plan that the artifact holds and what runs its segments; None where its native code cannot be loaded."""
        with self.step("plans"):
            plan, names = self._plan(made)
        hosts = self._linked(made, names)
        return None if hosts is None else (plan, hosts)

    def _plan(self, made: KernelMembers) -> tuple[Plan, Hosts]:
        """The plan that the artifact holds, and what runs its segments, native ones by name."""
        with self.reading():
            plan, hosts, derived = plan_of(self.container.json(made.plan))
            if derived:
                raise self.container.fault("a plan computes weights")
            steps = [step.node for step in plan.steps if isinstance(step, TorchStep)]
            graph = plan.graph
            check_graph(Graph(graph.inputs, (*graph.outputs, *steps), graph.mutations, graph.symbols))
            check_places(plan)
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
        with self.step("link"):
            code = self.container.read(made.library)
            try:
                library = _load_library(code, names)
            except BackendError:
                raise
            except Exception as error:  # whatever the dynamic linker raises
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self.say(f"has native code that cannot be loaded here ({reason[0][:200]})")
                return None
        return [library[host] if isinstance(host, str) else host for host in hosts]

    def compiled(self, record: EntryRecord) -> tuple[Plan, Any]:
        """The plan and hosts for this processor, from the graph."""
        with self.step("compile"):
            with self.reading():
                graph = read_graph(self.container.text(record.graph))
            from .recompile import compiled  # only who needs it pays for the compiler

            return compiled(graph, self.threads, self.container.text(self.manifest.tuning))

    def executable(
        self, plan: Plan, hosts: Hosts, weights: Mapping[str, Tensor], fallbacks: tuple[Any, ...]
    ) -> Compiled:
        """What runs a plan."""
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
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what damaged data raises into the error that says so."""
        try:
            yield
        except (ArtifactError, BackendError, UnsupportedError):
            raise
        except _STUMBLES as error:
            text = str(error).splitlines() or [""]
            raise self.container.fault(f"{type(error).__name__}: {ascii(text[0])[1:-1][:200]}") from None

    def _report(self, values: Mapping[str, Tensor], reports: Mapping[str, str]) -> LoadReport:
        held = getattr(values, "held", values)  # those on a GPU
        made = {tensor.data_ptr(): tensor for (_, packing), tensor in self.packed.items() if packing is not None}
        return LoadReport(
            path=str(self.container.path),
            digest=self.container.digest,
            targets=dict(self.targets),
            threads=self.threads,
            device=str(self.device),
            where=self.threads_text(),
            seconds=dict(self.seconds),
            weights=len(values),
            file_bytes=self.container.size,
            weight_bytes=sum(tensor.nbytes for tensor in held.values()),
            packed_bytes=sum(tensor.nbytes for tensor in made.values()),
            versions=dict(self.manifest.versions),
            entry_points=dict(reports),
        )


def check_places(plan: Plan) -> None:
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
    from ...codegen.tvm import native

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
