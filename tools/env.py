"""``smelt env``: what a bug report needs, and what this machine can reach."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from .._version import __version__
from ..ir.errors import CacheError, SmeltError
from ..runtime.cache import KernelCache
from ..runtime.linker import find_linker
from ..runtime.roofs import MATMUL, READ_BYTES, matmul_rate, read_rate
from ..runtime.target import Target, usable_cores
from .console import busy, emit_json, out
from .timing import load_of_others

PACKAGES = ("torch", "apache-tvm", "triton", "transformers", "numpy", "sympy", "networkx")
VARIABLES = ("SMELT_", "TVM_", "OMP_", "MKL_", "KMP_", "GOMP_")


def env(as_json: bool, measure: bool = True) -> None:
    """Print versions, the target, what the machine reaches, and where kernels are kept."""
    found = facts()
    if measure:
        with busy("measuring what this machine reaches"):
            found["roofs"] = roofs()
    if as_json:
        emit_json(found)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for group, values in found.items():
        for number, (name, value) in enumerate(values.items()):
            table.add_row(group if number == 0 else "", f"{name}: {value}")
    out().print(table)


def facts() -> dict[str, dict[str, Any]]:
    """Everything that needs no measuring, by group."""
    # read first: finding the target sets a variable
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return {
        "versions": {
            "smelt": __version__,
            "python": platform.python_version(),
            **{package: version_of(package) for package in PACKAGES},
        },
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": processor_name(),
            "cores": f"{usable_cores()} usable of {os.cpu_count()}",
            "torch threads": torch.get_num_threads(),
        },
        "target": target_facts(),
        "cache": cache_facts(),
        "environment": environment or {"variables": "none"},
    }


def version_of(package: str) -> str:
    """A package's version, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def target_facts() -> dict[str, Any]:
    """The default target, or why there is none."""
    try:
        target = Target.detect()
    except SmeltError as error:
        return {"missing": str(error)}
    machine = target.machine
    return {
        "default": str(target),
        "registers": f"{machine.registers} of {machine.vector_bits} bits",
        "caches": f"L1 {machine.l1_bytes >> 10} KiB, L2 {machine.l2_bytes >> 10} KiB a core",
        "bf16 dot": "yes" if machine.has_bf16_dot else "no",
        "int8 dot": "yes" if machine.has_vnni else "no",
    }


def cache_facts() -> dict[str, Any]:
    """Where kernels are kept, how many, and with what they are linked."""
    cache = KernelCache()
    found: dict[str, Any] = {"folder": str(cache.folder)}
    try:
        cache.check()
        entries = len(list(cache.folder.glob("*.json")))
        found["holds"] = f"{entries} entries, {cache.size() / 1e6:.1f} MB of at most {cache.limit / 1e6:.0f} MB"
    except CacheError as error:
        found["unusable"] = str(error)
    found["linker"] = find_linker() or "none: kernels are compiled again in every process"
    return found


# --- roofs ------------------------------------------------------------------------------------------------------------


def roofs() -> dict[str, str]:
    """What the machine reaches, each with the way it was measured; the load of others is told with it."""
    target, found = Target.detect(), {}
    before = torch.get_num_threads()
    try:
        for count in dict.fromkeys((1, target.threads)):
            torch.set_num_threads(count)
            at = f"{count} thread{'s' if count > 1 else ''}"
            found[f"float32, {at}"] = f"{matmul_rate(torch.float32) / 1e9:.0f} GFLOP/s {_how(MATMUL)}"
            rate = read_rate(target.with_threads(count)) / 1e9
            found[f"memory, {at}"] = f"{rate:.1f} GB/s (best read of {READ_BYTES >> 20} MiB)"
        found[f"bfloat16, {at}"] = f"{matmul_rate(torch.bfloat16) / 1e9:.0f} GFLOP/s {_how(MATMUL)}"
    finally:
        torch.set_num_threads(before)
    load = load_of_others()
    found["load of others"] = "unknown" if load is None else f"{load:.1f} cores while this was measured"
    return found


def _how(size: int) -> str:
    return f"(best torch.mm of {size} x {size})"


__all__ = ["env", "facts", "roofs"]
