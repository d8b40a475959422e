"""What an artifact holds, told without running anything of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from ...ir.errors import SmeltError
from ..cuda.stored import RECORDS, SizeArgument, StoredLaunch
from .calls import capture_of
from .container import Container
from .gpu_plan import gpu_plan_of
from .graphs import read_graph
from .manifest import EntryRecord, Manifest, read_manifest
from .targets import MOST_SHARED, AnyRecord, GpuTargetRecord, TargetRecord
from .trees import tree_data
from .weights import WEIGHTS, Weights


@dataclass(frozen=True)
class Inspection:
    """What an artifact holds, as data for JSON; printable."""

    data: dict[str, Any]

    def __str__(self) -> str:
        data = self.data
        versions = ", ".join(f"{name} {text}" for name, text in data["versions"].items())
        lines = [
            f"{data['path']}: {data['bytes'] / 1e6:.1f} MB",
            f"digest    {data['digest']}",
            f"made with {versions}",
        ]
        label = "targets"
        for target in data["targets"]:
            lines.append(f"{label:<9} {_target_text(target)}")
            label = ""
        weights = data["weights"]
        types = ", ".join(f"{count} {name}" for name, count in weights["dtypes"].items())
        lines.append(f"weights   {weights['bytes'] / 1e6:.1f} MB: {types}")
        for name, entry in data["entry_points"].items():
            lines += [
                "",
                f"entry point {name} of {entry['model']}",
                f"  inputs  {', '.join(entry['inputs']) or 'none'}",
            ]
            lines += [f"  sizes   {', '.join(entry['sizes'])}"] if entry["sizes"] else []
            lines += [f"  results {entry['results']}"]
            lines += [f"  state   {', '.join(entry['state'])}"] if entry["state"] else []
            lines += [f"  PyTorch {text}" for text in entry["fallbacks"]]
            lines += [f"  {name:<7} {_functions_text(found)}" for name, found in entry["functions"].items()]
        lines += ["", f"{'bytes':>12}  member"]
        lines += [f"{member['size']:>12}  {member['name']}" for member in data["members"]]
        return "\n".join([*lines, "", f"all {len(data['members'])} members have the digests that the manifest names"])


def _target_text(target: dict[str, Any]) -> str:
    if target["kind"] == "cpu":
        return f"{target['name']}, {target['vector_bits']}-bit vectors: {_fits(target['missing'])}"
    return f"{target['name']}, {target['arch']} code: {target['unfit'] or 'runs on this GPU'}"


def _fits(missing: list[str] | None) -> str:
    if missing is None:
        return "not for this kind of machine"
    return f"this processor lacks {', '.join(missing)}" if missing else "runs on this processor"


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """What an artifact holds; all of it is held to its digests.

    Raises:
        ArtifactError: the file is damaged, or no artifact.
    """
    container = Container(path)
    try:
        manifest = read_manifest(container)
        for name in container.members:
            if name != WEIGHTS:
                container.read(name)
        weights = Weights(container)
        weights.verify()
        try:
            return Inspection(_facts(container, manifest, weights))
        except (SmeltError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise container.fault(f"{type(error).__name__}: {ascii(str(error))[1:200]}") from None
    finally:
        container.close()


def _facts(container: Container, manifest: Manifest, weights: Weights) -> dict[str, Any]:
    tensors = [weights.tensor(name) for name in weights]
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    return {
        "path": str(container.path),
        "digest": container.digest,
        "bytes": container.size,
        "versions": dict(manifest.versions),
        "settings": dict(manifest.settings),
        "targets": [_target(record) for record in manifest.targets],
        "weights": {"bytes": sum(tensor.nbytes for tensor in tensors), "dtypes": dtypes},
        "entry_points": {name: _entry(container, manifest, entry) for name, entry in manifest.entries.items()},
        "members": [{"name": m.name, "size": m.size, "sha256": m.sha256} for m in container.members.values()],
    }


def _target(record: AnyRecord) -> dict[str, Any]:
    if isinstance(record, TargetRecord):
        return {
            "kind": "cpu",
            "name": record.name,
            "features": list(record.features),
            "vector_bits": record.machine.vector_bits,
            "missing": record.missing(),
        }
    return {
        "kind": "cuda",
        "name": record.name,
        "arch": record.arch,
        "shared_bytes": record.shared,
        "unfit": _unfit(record),
    }


def _unfit(record: GpuTargetRecord) -> str | None:
    """Why this machine cannot run a GPU's code; None where it can, as far as PyTorch tells."""
    if record.records != RECORDS:
        return "another smelt launches it"
    if not torch.cuda.is_available():
        return "there is no GPU here"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    most = int(getattr(found, "shared_memory_per_block_optin", 0)) or MOST_SHARED
    return record.unfit(10 * found.major + found.minor, most)


def _functions(container: Container, manifest: Manifest, record: EntryRecord) -> dict[str, list[dict[str, Any]]]:
    """The functions of GPUs' machine code, by target, each held to what its launch says of it."""
    found = {}
    for target in manifest.targets:
        if isinstance(target, GpuTargetRecord):
            made = record.kernels[target.name]
            code = b"" if made.library is None else container.read(made.library)
            _, kernels = gpu_plan_of(container.json(made.plan), code, target.machine)
            found[target.name] = [_function(launch) for kernel in kernels for launch in kernel.launches]
    return found


def _function(launch: StoredLaunch) -> dict[str, Any]:
    bits = next((x.bits for x in launch.arguments if isinstance(x, SizeArgument)), None)
    return {
        "function": launch.function,
        "bits": bits,
        "warps": launch.warps,
        "registers": launch.registers,
        "spills": launch.spills,
        "stack": launch.stack,
        "shared_bytes": launch.shared,
        "code_bytes": len(launch.code),
    }


def _functions_text(functions: list[dict[str, Any]]) -> str:
    most = {name: max((f[name] for f in functions), default=0) for name in ("registers", "spills", "shared_bytes")}
    size = sum(f["code_bytes"] for f in functions)
    return (
        f"{len(functions)} functions, at most {most['registers']} registers, {most['spills']} bytes spilled, "
        f"{most['shared_bytes']:,} bytes of shared memory; {size:,} bytes of code"
    )


def _entry(container: Container, manifest: Manifest, record: EntryRecord) -> dict[str, Any]:
    graph = read_graph(container.text(record.graph))
    capture = capture_of(container.json(record.calls), graph, {})
    return {
        "model": record.model,
        "inputs": [f"{node.attrs['name']} {node.type}" for node in graph.inputs],
        "sizes": [str(symbol) for symbol in graph.symbols],
        "results": _brief(tree_data(capture.out_spec, "the results")),
        "state": list(record.state),
        "fallbacks": [str(fallback) for fallback in capture.fallbacks],
        "functions": _functions(container, manifest, record),
        "graph": record.graph,
        "report": record.report,
    }


def _brief(tree: Any) -> str:
    """A tree of results in a line."""
    match tree:
        case [("tuple" | "list") as kind, [*parts]]:
            inside = ", ".join(map(_brief, parts))
            return f"[{inside}]" if kind == "list" else f"({inside})"
        case [_, [*names], [*parts]]:
            return "{" + ", ".join(f"{n}: {_brief(p)}" for n, p in zip(names, parts, strict=True)) + "}"
    return "*"
