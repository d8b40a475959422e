"""``smelt.export``: a model as an artifact, which ``smelt.load`` runs without the model's code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...codegen.gpu import GpuMachine
from ...ir import ops
from ...ir.collection import no_collection
from ...ir.errors import ArtifactError, BackendError
from ...ir.graph import Graph, Mutation
from ...ir.text import print_graph
from ...rewrites.quantization import Quantization, quantization_of
from ..cache import KernelCache
from ..captures import build_entry, weights_of
from ..compile import compile
from ..entry import Entry
from ..module import CompiledModule
from ..options import Dynamic
from ..report import Report, make_report
from ..target import Target
from ..tuned import Tuned
from ..tuner_lock import LOCK, read_lock
from ..tuner_records import Choice, Records, key_of, record_to_dict
from .calls import calls_data
from .container import Source, write
from .graphs import check_graph, renamed
from .kernels import Kernels, kernels_for, kernels_of, plan_for
from .manifest import EntryRecord, KernelMembers, Manifest
from .names import identifier
from .store import Store, storage_of
from .targets import AnyRecord, GpuTargetRecord, TargetRecord, named_target
from .weights import weights_source

DEFAULT = "forward"  # the entry point of a model that is given alone
Model = Callable[..., Any]


@dataclass(frozen=True)
class EntryPoint:
    """One way to call an artifact, compiled.

    Attributes:
        graph: rewritten, on the artifact's weights.
        calls: how calls map to the graph, as JSON.
        state: the weights that calls change.
        kernels: for each target, by name.
    """

    graph: Graph
    calls: Mapping[str, Any]
    state: tuple[str, ...]
    kernels: Mapping[str, Kernels]
    report: Report


@dataclass(frozen=True)
class Artifact:
    """A model that was compiled to be kept. ``save`` writes it to a file, which ``smelt.load`` reads.

    Attributes:
        entry_points: the ways to call it, by name.
        targets: the processors and GPUs that it has kernels for.
        weights: the tensors of all entry points, each once, by name; they are the model's own, are read when the
            artifact is saved, and must be until then what they were, but for state.
        settings: what ``export`` was asked for, for people.
        choices: the schedules that were chosen by tuning.
        digests: of the weights, but for state, as they were exported.
    """

    entry_points: Mapping[str, EntryPoint]
    targets: tuple[AnyRecord, ...]
    weights: Mapping[str, Tensor]
    settings: Mapping[str, str]
    choices: tuple[Choice, ...] = ()
    digests: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = ", ".join(target.name for target in self.targets)
        return f"<artifact for {names}: {', '.join(self.entry_points)}>"

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the artifact to a file, which is replaced where it is there already.

        Returns:
            The SHA-256 of the manifest, in hexadecimal, which ``smelt.load(path, digest=...)`` takes.

        Raises:
            ArtifactError: the file cannot be written, or a weight changed after the export.
            UnsupportedError: a weight is of a dtype that safetensors does not have.
        """
        sources: list[Source] = []
        entries = {name: _entry_sources(name, entry, sources) for name, entry in self.entry_points.items()}
        lines = [json.dumps(record_to_dict(choice)) + "\n" for choice in self.choices]
        sources.append(Source.of("tuning.jsonl", "".join(lines)))
        sources.append(weights_source(self.weights, self.digests))
        return write(path, sources, Manifest.make(entries, self.targets, self.settings, "tuning.jsonl").text)

    def report(self) -> str:
        """What was compiled and how, of every entry point."""
        return "\n".join(f"entry point {name}: {entry.report}" for name, entry in self.entry_points.items())

    @property
    def nbytes(self) -> int:
        """The bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.weights.values())


def _entry_sources(name: str, entry: EntryPoint, sources: list[Source]) -> EntryRecord:
    """Add the members of an entry point; what the manifest says of it."""
    texts = {
        f"{name}/graph.txt": print_graph(entry.graph, origins=True),
        f"{name}/calls.json": _json(entry.calls),
        f"{name}/report.txt": str(entry.report),
    }
    kernels = {}
    for target, made in entry.kernels.items():
        folder = f"{name}/{target}"
        texts[f"{folder}/plan.json"] = _json(made.plan)
        texts[f"{folder}/kernels.py"] = made.source
        library = None
        if made.library is not None:
            library = f"{folder}/{_LIBRARIES[made.kind]}"
            sources.append(Source.of(library, made.library))
        kernels[target] = KernelMembers(f"{folder}/plan.json", library, f"{folder}/kernels.py")
    sources.extend(Source.of(member, text) for member, text in texts.items())
    graph, calls, report = (f"{name}/{file}" for file in ("graph.txt", "calls.json", "report.txt"))
    return EntryRecord(entry.report.model, graph, calls, report, entry.state, kernels)


_LIBRARIES = {"cpu": "kernels.so", "cuda": "kernels.cubins"}


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def export(
    model: Model | Mapping[str, Sequence[Any]],
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target | Sequence[str | Target] = "auto",
    dynamic: Dynamic = True,
    fallback: Literal["allow", "error"] = "allow",
    threads: int | None = None,
    cache: bool | KernelCache = True,
    optimize: Literal["rules", "search"] = "rules",
    quantize: Literal["int8-dynamic", "int8", "int4", "fp8", "fp8-dynamic"] | Quantization | None = None,
    tune: Literal["off", "cached"] = "cached",
) -> Artifact:
    """Compile a model so that it can be kept, and run where its code is not.

    Args:
        model: as for ``smelt.compile``; or several entry points by name, each a tuple ``(model, args)`` or
            ``(model, args, kwargs)``. Weights that they share are kept once, and so is state.
        args, kwargs: a call to capture the model by. Sizes may differ later as ``dynamic`` says.
        target: which processors to make kernels for, one or several: ``"auto"`` is this machine's, ``"x86-64-v3"`` any
            with AVX2, ``"x86-64-v4"`` any with AVX-512; other names are LLVM's. ``"sm_80"``, ``"sm_90"`` and
            ``"sm_100"`` are NVIDIA's GPUs, of which none need be there; ``"cuda"`` is this machine's. Where none fits,
            loading compiles anew.
        threads: how many threads schedules are made for; ``smelt.load`` says how many run.
        dynamic, fallback, cache, optimize, quantize, tune: as for ``smelt.compile``.

    Raises:
        CaptureError: the model cannot be captured.
        UnsupportedError: there is no such target, the model is not one graph, or holds what an artifact cannot.
        BackendError: the package of the target's backend, or a linker, is not installed.
    """
    models = _models(model, args, kwargs)
    specs = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    targets = list(dict.fromkeys(_where(named_target(spec, threads), models) for spec in specs))
    if not targets:
        raise ArtifactError('target is empty: give "auto", or names such as ("x86-64-v3", "sm_90")')
    fast = {
        name: compile(
            one[0],
            target=targets[0],
            dynamic=dynamic,
            fallback=fallback,
            cache=cache,
            optimize=optimize,
            quantize=quantize,
            tune=tune,
        )
        for name, one in models.items()
    }
    quantization = quantization_of(quantize)
    settings = {
        "dynamic": str(dynamic),
        "optimize": optimize,
        "quantize": json.dumps(None if quantization is None else asdict(quantization)),
        "threads": str(targets[0].threads),
    }
    with no_collection():
        captured = {name: _captured(fast[name], *one[1:]) for name, one in models.items()}
        return _Exporter(captured, targets, fast).artifact(settings)


def _models(
    model: Model | Mapping[str, Sequence[Any]], args: Sequence[Any] | Tensor, kwargs: Mapping[str, Any] | None
) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    given = (args,) if isinstance(args, Tensor) else tuple(args)
    if not isinstance(model, Mapping):
        return {DEFAULT: (model, given, dict(kwargs or {}))}
    if given or kwargs or not model:
        raise ArtifactError("give each entry point its own arguments: {name: (model, args, kwargs)}")
    found = {}
    for name, one in model.items():
        if not isinstance(one, tuple | list) or len(one) not in (2, 3):
            raise ArtifactError(f"the entry point {name} is no tuple (model, args) or (model, args, kwargs)")
        given = (one[1],) if isinstance(one[1], Tensor) else one[1]
        found[identifier(name, "the name of an entry point")] = (one[0], tuple(given), dict(one[2] if one[2:] else {}))
    return found


def _where(target: Target, models: Mapping[str, tuple[Any, ...]]) -> Target:
    """A GPU's target with the device that the models are captured on: where they are."""
    tensors = [t for model, *call in models.values() for t in (*weights_of(model).values(), *tree_leaves(call))]
    device = next((t.device for t in tensors if isinstance(t, Tensor) and t.device.type == "cuda"), None)
    return target if target.kind != "cuda" or device is None else replace(target, device=device)


@dataclass(frozen=True)
class _Captured:
    entry: Entry
    sizes: Mapping[Any, int]
    leaves: list[Any]


def _captured(fast: CompiledModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Captured:
    entry, sizes, call = fast.entry_for(args, kwargs)
    return _Captured(entry, sizes, call.leaves)


class _Exporter:
    """Brings captures together: one store of weights, kernels for each target."""

    def __init__(
        self, captured: Mapping[str, _Captured], targets: Sequence[Target], fast: Mapping[str, CompiledModule]
    ) -> None:
        self.targets = targets
        self.fast = fast
        self.cache = next(iter(fast.values())).options.open_cache()
        self.known = [*(Records.of_user(self.cache).choices() if self.cache else []), *read_lock(Path(LOCK))]
        state = {storage_of(t) for one in captured.values() for t in _state_of(one.entry).values()}
        self.captured = {name: self._aware(name, one, state) for name, one in captured.items()}
        self.store = Store(state)
        self.chosen: dict[str, Choice] = {}
        self.gpus: dict[str, GpuTargetRecord] = {}

    def artifact(self, settings: Mapping[str, str]) -> Artifact:
        entries = {name: self._entry_point(name, one) for name, one in self.captured.items()}
        records = tuple(self.gpus[t.cpu] if t.kind == "cuda" else TargetRecord.of(t) for t in self.targets)
        chosen = tuple(self.chosen.values())
        return Artifact(entries, records, self.store.tensors, settings, chosen, self.store.digests)

    def _aware(self, name: str, one: _Captured, state: set[int]) -> _Captured:
        """The capture, made anew where it reads state that only other entry points change: it must not be packed."""
        capture = one.entry.capture
        changed = {m.target for m in capture.graph.mutations}
        missed = [
            node
            for node in capture.graph.weights()
            if node not in changed and storage_of(capture.weights[str(node.attrs["name"])]) in state
        ]
        if not missed:
            return one
        graph = capture.graph
        mutations = [*graph.mutations, *(Mutation(node, node) for node in missed)]
        aware = replace(capture, graph=Graph(graph.inputs, graph.outputs, mutations, graph.symbols))
        entry = build_entry(aware, self.fast[name].options, 0.0, one.leaves)
        return _Captured(entry, one.sizes, one.leaves)

    def _entry_point(self, name: str, one: _Captured) -> EntryPoint:
        executable = one.entry.executable
        rewritten = _rewritten(executable.graphs)
        values = executable.values
        names = {
            found: self.store.add(found, values[found], name)
            for found in (str(node.attrs["name"]) for node in rewritten.weights())
        }
        graph = renamed(rewritten, names)
        check_graph(graph)
        state = [names[str(m.target.attrs["name"])] for m in rewritten.mutations if m.target.is_a(ops.weight)]
        kernels = {target.cpu: self._kernels(graph, target, one) for target in self.targets}
        report = make_report(self.fast[name]._captures.name, self.targets[0], [one.entry], None)
        return EntryPoint(graph, calls_data(one.entry.capture), tuple(dict.fromkeys(state)), kernels, report)

    def _kernels(self, graph: Graph, target: Target, one: _Captured) -> Kernels:
        off = next(iter(self.fast.values())).options.tune == "off"
        if target.gpu is not None:
            return self._gpu_kernels(graph, target.gpu, off)
        tuned = None if off else Tuned(target, self.known, one.sizes)
        plan = plan_for(graph, target, tuned)
        keys = {key_of(kernel.program, target) for kernel in kernels_of(plan)} if tuned is not None else set()
        self.chosen.update((choice.key, choice) for choice in self.known if choice.key in keys)
        return kernels_for(plan, target, self.cache)

    def _gpu_kernels(self, graph: Graph, machine: GpuMachine, off: bool) -> Kernels:
        # only who asks for a GPU needs them
        from ..gpu_tuner import gpu_tuned
        from .gpu import gpu_kernels_for, gpu_plan_for

        plan = gpu_plan_for(graph, machine, None if off else gpu_tuned(machine, self.cache))
        made, record = gpu_kernels_for(plan, machine)
        known = self.gpus.get(record.name)
        if known is not None and known.arch != record.arch and made.library is not None:
            raise BackendError(f"Triton makes code for {known.arch} and for {record.arch} of one target")
        self.gpus[record.name] = record if known is None else known.with_shared(record.shared)
        return made


def _state_of(entry: Entry) -> dict[str, Tensor]:
    """The weights that a capture changes."""
    capture = entry.capture
    names = [str(m.target.attrs["name"]) for m in capture.graph.mutations if m.target.is_a(ops.weight)]
    return {name: capture.weights[name] for name in names}


def _rewritten(graphs: Mapping[str, Graph]) -> Graph:
    """The graph after the last pass, before fusion."""
    names = list(graphs)
    return graphs[names[names.index("fuse") - 1]]
