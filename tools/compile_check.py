"""``smelt compile-check``: kernels compiled for GPUs that need not be there. Nothing is run or measured."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
import typer

from ..codegen.gpu import GPU_MACHINES, GpuMachine, gpu_schedule_text
from ..codegen.triton.file import KernelFile
from ..frontend.capture import Capture
from ..frontend.export import capture
from ..ir.errors import BackendError, CaptureError
from ..rewrites.quantization import Quantization
from ..runtime.cuda.target import interprets
from ..runtime.gpu import GpuKernel, GpuModel, gpu_model
from .compile_check_cache import Known, Unit, kept, key_of, resources, units_of
from .compile_check_text import summary_of, table_of, text_of
from .console import busy, counted, emit_json, emit_text
from .errors import OutputError
from .numbers import load_on, numbers_of
from .zoo import ZOO

INSTALL_TRITON = "pip install triton"
ZOO_NUMBERS = ("f32", "bf16", "f16", "bf16+int8", "bf16+int4", "bf16+fp8", "bf16+int8-dynamic", "bf16+fp8-dynamic")

Data = dict[str, Any]


@dataclass(frozen=True)
class How:
    """What is compiled: for which GPUs, on which numbers, and by how many processes."""

    targets: tuple[str, ...] = ("sm_90",)
    numbers: tuple[str, ...] = ("f32",)
    jobs: int = 1

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in GPU_MACHINES:
                raise typer.BadParameter(f"there is no target {target}; there are {', '.join(GPU_MACHINES)}")
        for text in self.numbers:
            numbers_of(text)


def compile_check(spec: str, how: How, out: Path | None, as_json: bool) -> bool:
    """Compile every kernel of a model; returns whether any could not be.

    Raises:
        SmeltError: the model cannot be loaded or captured, or Triton is missing.
    """
    require_triton()
    with busy(f"compiling {spec} for {', '.join(how.targets)}"), Compiler(how.jobs) as compiler:
        found = list(_reports(spec, how, compiler, out))
    if as_json:
        emit_json(found[0] if len(found) == 1 else found)
    else:
        emit_text("\n\n".join(map(text_of, found)))
    return any(k["error"] for data in found for k in data["kernels"])


def compile_check_zoo(how: How, tiny: bool, as_json: bool, keep: Path | None = None) -> bool:
    """Compile every kernel of every model of the zoo, and show a line for each; returns whether any could not be.

    ``keep`` is a file of such findings: what it has is not compiled again, and it is written after each model.

    Raises:
        SmeltError: a package is missing, or the file is of other versions or cannot be written.
    """
    require_triton()
    # imported here: it needs Triton
    from ..codegen.triton.cubin import versions

    found: Data = {"versions": versions(), "rows": _kept(keep, versions())}
    with counted("compiling the zoo", len(ZOO)) as update, Compiler(how.jobs) as compiler:
        for done, name in enumerate(ZOO, 1):
            spec = f"zoo:{name}{':tiny' if tiny else ''}"
            known = {(r["numbers"], r["target"]) for r in found["rows"] if r["name"] == spec}
            found["rows"] += map(summary_of, _reports(spec, how, compiler, None, known, skip=True))
            if keep is not None:
                _write(keep, json.dumps(found, indent=1) + "\n")
            update(done)
    emit_json(found) if as_json else emit_text(table_of(found["rows"]))
    return any(row["failed"] for row in found["rows"])


def _kept(path: Path | None, versions: Data) -> list[Data]:
    """The rows of a file of findings; none where there is no file."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["versions"] != versions:
        raise OutputError(f"{path} is of other versions: {found['versions']}, here are {versions}")
    return list(found["rows"])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def require_triton() -> None:
    """Raise BackendError, with what to do, where Triton is absent or compiles nothing."""
    if find_spec("triton") is None:
        raise BackendError(f"compile-check needs the package triton, which is not installed; run: {INSTALL_TRITON}")
    if interprets():
        raise BackendError("TRITON_INTERPRET is set: Triton interprets kernels and compiles none; unset it")


def _reports(
    spec: str,
    how: How,
    compiler: Compiler,
    out: Path | None,
    known: Collection[tuple[str, str]] = (),
    skip: bool = False,
) -> Iterator[Data]:
    """What was found of a model, for each kind of numbers and each target, but for what is known.

    With ``skip``, a model that is not one graph has no kernels here, and a reason.
    """
    captures: dict[torch.dtype, tuple[str, Capture | CaptureError]] = {}
    for numbers, target in product(how.numbers, how.targets):
        if (numbers, target) in known:
            continue
        dtype, quantize = numbers_of(numbers)
        if dtype not in captures:
            captures[dtype] = _captured(spec, dtype)
        name, captured = captures[dtype]
        if isinstance(captured, CaptureError):
            if not skip:
                raise captured
            why = str(captured).splitlines()[0]
            yield {"name": name, "target": target, "numbers": numbers, "kernels": [], "torch": [["parts", why]]}
            continue
        kernels = _compiled(captured, GPU_MACHINES[target], quantize, compiler, out)
        yield {"name": name, "target": target, "numbers": numbers, **kernels}


def _captured(spec: str, dtype: torch.dtype) -> tuple[str, Capture | CaptureError]:
    """A model's name and its capture, or why it is not one graph."""
    model = load_on(spec, dtype)
    try:
        return model.name, capture(model.model, model.args, model.kwargs)
    except CaptureError as error:
        return model.name, error


def _compiled(
    captured: Capture, machine: GpuMachine, quantize: Quantization | None, compiler: Compiler, out: Path | None
) -> Data:
    found = gpu_model(captured, machine, quantize)
    if out is not None:
        write(found, out)
    answers = compiler.compile([kernel.file for kernel, _ in found.kernels], machine)
    kernels = [
        described(kernel, calls) | answer for (kernel, calls), answer in zip(found.kernels, answers, strict=True)
    ]
    return {"kernels": kernels, "torch": [list(t) for t in found.torch]}


def write(found: GpuModel, out: Path) -> None:
    """Write the source of every kernel, a file each."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} is no folder that kernels can be written to: {error}") from error
    for kernel, _ in found.kernels:
        (out / f"{kernel.name}.py").write_text(kernel.file.text, encoding="utf-8")


def described(kernel: GpuKernel, calls: int) -> Data:
    """A kernel as data, before it is compiled."""
    return {
        "name": kernel.name,
        "operators": list(kernel.operators),
        "skeleton": kernel.program.skeleton.value,
        "schedule": gpu_schedule_text(kernel.schedule),
        "calls": calls,
        "index_bits": kernel.file.bits,
    }


# --- compiling --------------------------------------------------------------------------------------------------------


class Compiler:
    """Compiles kernels, in so many processes of their own; in this one for one. Equal functions are compiled once.

    Args:
        known: what functions take that were compiled before, by default those of the cache folder.
    """

    def __init__(self, jobs: int, known: Known | None = None) -> None:
        self._jobs, self._stack = jobs, ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self.known = kept() if known is None else known

    def __enter__(self) -> Compiler:
        if self._jobs > 1:
            pool = ProcessPoolExecutor(self._jobs, multiprocessing.get_context("spawn"))
            self._pool = self._stack.enter_context(pool)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def compile(self, files: Sequence[KernelFile], machine: GpuMachine) -> list[Data]:
        """What each function of each kernel takes of the GPU, or why one of them cannot be compiled."""
        units = {key_of(*unit): unit for file in files for unit in units_of(file, machine)}
        new = {key: unit for key, unit in units.items() if self.known.get(key, *unit[:2]) is None}
        failed: dict[str, str] = {}
        for key, found in zip(
            new, (map if self._pool is None else self._pool.map)(resources, new.values()), strict=True
        ):
            if isinstance(found, str):
                failed[key] = found
            else:
                self.known.put(key, found)
        return [self._answer(units_of(file, machine), failed) for file in files]

    def _answer(self, units: Sequence[Unit], failed: Mapping[str, str]) -> Data:
        """The functions of a kernel, or the error of the first that cannot be compiled."""
        keys = [key_of(*unit) for unit in units]
        error = next((failed[key] for key in keys if key in failed), None)
        if error is not None:
            return {"functions": [], "error": error}
        found = [self.known.get(key, *unit[:2]) for key, unit in zip(keys, units, strict=True)]
        return {"functions": [asdict(r) for r in found if r is not None], "error": None}
