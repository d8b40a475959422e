"""From a capture to an executable: rewrites, fusion, kernels, native code. The whole way, in order."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..codegen.program import Program
from ..codegen.schedule import Schedule
from ..codegen.tvm.packing import Pool
from ..frontend.capture import Capture, Fallback
from ..ir import ops
from ..ir.collection import collect_young
from ..ir.errors import BackendError
from ..ir.graph import Graph
from ..ir.verify import verify as verify_graph
from ..rewrites.context import Context
from ..rewrites.fusion import FusionReport, fuse
from ..rewrites.log import Fuel, Log
from ..rewrites.pipeline import passes_for, run_pipeline
from ..rewrites.quantization import Quantization, Quantized
from ..rewrites.search.settings import SearchSettings
from .check import Check, Checker
from .executable import Executable
from .kernels import KernelInfo, Kernels, KernelTable, describe, finalise
from .linker import LINKER_ADVICE, find_linker
from .plan import KernelStep, Plan, TorchStep, make_plan
from .target import Target, usable_cores


class Cache(Protocol):
    """What keeps native code between processes."""

    def get(self, key: str) -> Path | None:
        """The library of a key, checked, if there is one."""

    def put(self, key: str, build: Any) -> Path | None:
        """Keep what ``build(path)`` writes; None when it cannot be kept."""


@dataclass
class Compilation:
    """One compilation while it runs: what it has done and how long each stage took."""

    target: Target
    check: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def meanwhile(self, name: str, task: Callable[[], Any]) -> Iterator[Future[Any]]:
        """Do a task in another thread; its stage takes as long as the end of the block must wait for it."""
        self.timings[name] = 0.0  # in the order in which stages begin
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(task)
            yield done
            with self.stage(name):
                done.exception()

    def keep(self, name: str, graph: Graph) -> Graph:
        """Remember the graph after a stage; verified when asked."""
        self.graphs[name] = graph
        if self.check:
            verify_graph(graph)
        return graph


def build_executable(
    capture: Capture,
    target: Target,
    *,
    cache: Cache | None = None,
    verify: bool = False,
    fuel: Fuel | None = None,
    search: SearchSettings | None = None,
    check: Check = None,
    quantize: Quantization | None = None,
    native: Callable[[Plan, Target, Cache | None], list[Any]] | None = None,
    schedules: Callable[[Program], Schedule | None] | None = None,
    pool: Pool | None = None,
) -> Executable:
    """Compile a capture for a target; with ``search``, of equal orders of products the cheapest is taken.

    With ``quantize``, linear layers are on weights of few bits.

    ``native`` makes what runs a plan's segments, instead of native code. ``schedules`` gives the schedule of a program
    for which another than the default one was chosen; it shows in the kernel's source, and so in the cache's key.
    ``pool`` is memory for packed weights, if some was made ready.

    Raises:
        CheckError: with ``check``, a step changed what the model means.
        BackendError: the backend is missing or refuses the generated code.
    """
    work = Compilation(target, verify)

    def table(graph: Graph) -> KernelTable:
        return KernelTable(target.machine, frozenset(m.target for m in graph.mutations), schedules)

    made = make_steps(capture, work, table, fuel=fuel, search=search, check=check, quantize=quantize)
    make_hosts = native or native_hosts
    with work.meanwhile("codegen", lambda: make_hosts(made.plan, target, cache)) as hosts, work.stage("pack"):
        executable = Executable(hosts=(), pool=pool, **made.found(capture))
        collect_young()  # what tracing left, while kernels are compiled
    executable.hosts = hosts.result()
    if any(not isinstance(host, TorchStep) for host in executable.hosts):
        executable.prepare = thread_pool(target.threads)
    if made.checker is not None:
        made.checker.placed(executable)
    return executable


@dataclass
class Steps:
    """What a capture became before code is generated for its kernels."""

    work: Compilation
    plan: Plan
    table: Kernels[Any]
    context: Context
    fusion: FusionReport
    quantized: Quantized | None
    checker: Checker | None

    def found(self, capture: Capture) -> dict[str, Any]:
        """What every executable is told of how it was made."""
        return {
            "plan": self.plan,
            "weights": capture.weights,
            "derived": self.context.derived,
            "graphs": self.work.graphs,
            "kernels": kernel_infos(self.plan),
            "fallbacks": (*capture.fallbacks, *_run_by_torch(self.plan, self.table)),
            "applications": self.context.log,
            "fusion": self.fusion,
            "timings": self.work.timings,
            "quantized": self.quantized,
        }


def make_steps(
    capture: Capture,
    work: Compilation,
    make_table: Callable[[Graph], Kernels[Any]],
    *,
    fuel: Fuel | None = None,
    search: SearchSettings | None = None,
    check: Check = None,
    quantize: Quantization | None = None,
    reuse: bool = True,
    adapt: Callable[[Graph], Graph] = lambda fused: fused,
) -> Steps:
    """Rewrite, fuse and plan a capture for kernels of any target; see :func:`build_executable`.

    ``make_table`` makes the kernels of a rewritten graph.
    ``reuse`` lets results take the memory of an operand that their kernel is the last to read.
    ``adapt`` makes of the fused graph an equal one that suits the target.

    Raises:
        CheckError: with ``check``, a step changed what the model means.
    """
    verify = work.check
    graph = work.keep("captured", capture.graph)
    quantized = None if quantize is None else Quantized(quantize)
    context = Context(fuel=fuel or Fuel(), log=Log(), verify=verify, search=search, quantized=quantized)
    checker = None if check is None else Checker(check, capture, context)
    with work.stage("rewrite"):
        graph = run_pipeline(graph, context, passes=passes_for(context))
    work.graphs.update(context.snapshots)
    report = FusionReport()
    with work.stage("fuse"):
        fused = work.keep("fuse", fuse(graph, context.fuel, report, context.log))
    if checker is not None:
        with work.stage("check"):
            checker.fused(graph, fused, context)
    table = make_table(graph)
    with work.stage("lower"):
        graph = work.keep("final", finalise(adapt(fused), table))
        plan = make_plan(graph, table, context.fuel, context.log, reuse=reuse)
    if checker is not None:
        with work.stage("check"):
            checker.lowered(fused, graph, plan, context.derived)
    return Steps(work, plan, table, context, report, quantized, checker)


def kernel_infos(plan: Plan) -> tuple[KernelInfo, ...]:
    """Each kernel of a plan, in the order of its first call."""
    steps = [s for s in plan.steps if isinstance(s, KernelStep)]
    calls = Counter(s.kernel.name for s in steps)
    first = {s.kernel.name: s for s in reversed(steps)}
    return tuple(
        describe(first[name].kernel, calls[name], first[name].node.origin.module) for name in dict.fromkeys(calls)
    )


def _run_by_torch(plan: Plan, table: Kernels[Any]) -> list[Fallback]:
    return [
        Fallback(s.node.attrs["region"].outputs[0].op.name, table.why(s.node), (s.node.origin.source,))  # type: ignore[union-attr]
        for s in plan.steps
        if isinstance(s, TorchStep) and s.node.is_a(ops.fused)
    ]


def native_hosts(plan: Plan, target: Target, cache: Cache | None = None) -> list[Any]:
    """The host functions of a plan's segments, PyTorch's steps between them."""
    segments = list(plan.segments())
    native = {f"main{i}": s for i, s in enumerate(segments) if isinstance(s, list)}
    library = _library(plan, native, target, cache) if native else {}
    return [library[f"main{i}"] if isinstance(s, list) else s for i, s in enumerate(segments)]


def expect_kernels(target: Target, cache: Cache | None) -> None:
    """Say that kernels will be needed: a process that compiles them makes itself ready while a model is captured.

    Without a cache, and where nothing can link, kernels are compiled in this process, in memory.
    """
    if cache is not None and target.kind == "cpu" and usable_cores() > 1 and find_linker() is not None:
        # imported here: only a target that runs on TVM needs it
        from ..codegen.tvm.service import service

        service().start()


def _library(
    plan: Plan, native: Mapping[str, Sequence[KernelStep]], target: Target, cache: Cache | None
) -> Mapping[str, Any]:
    # imported here: only a target that runs on TVM needs it
    from ..codegen.tvm.kernel import version
    from ..codegen.tvm.loading import load_tvm
    from ..codegen.tvm.native import load

    sources, hosts = _made_of(plan, native)
    key = _digest([*sources, repr(hosts), target.fingerprint, version()])
    kept = cache.get(key) if cache is not None else None
    if kept is not None:
        try:
            return load(kept, list(native))
        except Exception as error:  # whatever the dynamic linker or TVM raises: the kernels are built again
            warnings.warn(f"kept kernels cannot be loaded and are built again: {error}", stacklevel=2)
    kept = None if cache is None else cache.put(key, lambda path: _make_library(sources, hosts, target, path))
    if kept is not None:
        # whatever the dynamic linker raises: the code is compiled once more, in memory
        with suppress(Exception):
            return load(kept, list(native))
    load_tvm()
    from ..codegen.tvm.module import build

    built = build(sources, hosts, target.cpu)
    return {name: built[name] for name in native}


def _make_library(sources: Sequence[str], hosts: Sequence[Any], target: Target, path: Path) -> None:
    """Compile kernels and host functions to a shared library, by the process for that where it runs."""
    from ..codegen.tvm.loading import load_tvm
    from ..codegen.tvm.service import service

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        compiler = service()
        if not compiler.is_running or not compiler.make_library(sources, hosts, target.cpu, made, usable_cores()):
            load_tvm()
            from ..codegen.tvm.parts import make_library

            make_library(sources, hosts, target.cpu, made)
        shutil.copyfile(made, path)


def library_key(plan: Plan, target: Target) -> str | None:
    """What the cache keeps the native code of a plan under; None where it has none."""
    # imported here: only a target that runs on TVM needs it
    from ..codegen.tvm.kernel import version

    native = {f"main{i}": s for i, s in enumerate(plan.segments()) if isinstance(s, list)}
    if not native:
        return None
    sources, hosts = _made_of(plan, native)
    return _digest([*sources, repr(hosts), target.fingerprint, version()])


def native_library(plan: Plan, target: Target, cache: Cache | None = None) -> bytes | None:
    """The shared library of a plan's kernels, from the cache where it is there; None for a plan that has none.

    Raises:
        BackendError: the backend refuses the generated code, or there is no linker, or it fails.
    """
    native = {f"main{i}": s for i, s in enumerate(plan.segments()) if isinstance(s, list)}
    if not native:
        return None
    key = library_key(plan, target)
    kept = cache.get(key) if cache is not None and key is not None else None
    if kept is not None:
        return kept.read_bytes()
    if find_linker() is None:
        raise BackendError(f"kernels cannot be made into a library: {LINKER_ADVICE}")
    sources, hosts = _made_of(plan, native)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        try:
            _make_library(sources, hosts, target, path)
        except BackendError:
            raise
        except (OSError, RuntimeError) as error:  # of the linker
            raise BackendError(f"kernels cannot be made into a library: {error}") from error
        if cache is not None and key is not None:
            cache.put(key, lambda to: shutil.copyfile(path, to))
        return path.read_bytes()


def _made_of(plan: Plan, native: Mapping[str, Sequence[KernelStep]]) -> tuple[list[str], list[Any]]:
    """The sources of a plan's kernels, and the host functions that call them."""
    from ..codegen.tvm.host import Call, Host

    kernels = {s.kernel.name: s.kernel for steps in native.values() for s in steps}
    symbols = tuple(r.symbol for r in plan.graph.symbols)
    hosts = [
        Host(name, tuple(Call(s.kernel.name, s.buffers) for s in steps), len(plan.buffers), symbols)
        for name, steps in native.items()
    ]
    return [k.source for k in kernels.values()], hosts


def thread_pool(threads: int) -> Callable[[], None]:
    """What sizes the thread pool before a run: it is one for the process, and another model may have sized it."""
    from ..codegen.tvm import native

    return lambda: native.set_threads(threads)


def _digest(parts: Sequence[str]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part.encode())
    return hashed.hexdigest()
