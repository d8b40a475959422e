"""Kernels for one target from a graph that is rewritten already: what artifacts hold, or make anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...codegen.program import Program
from ...codegen.schedule import Schedule
from ...ir.errors import UnsupportedError
from ...ir.graph import Graph
from ...rewrites.fusion import fuse
from ..build import native_library
from ..cache import KernelCache
from ..kernels import Kernel, KernelTable, finalise
from ..plan import KernelStep, Plan, TorchStep, make_plan
from ..saved.plan import plan_data
from ..saved.values import NoForm
from ..target import Target

Schedules = Callable[[Program], Schedule | None]


@dataclass(frozen=True)
class Kernels:
    """What an artifact holds for one entry point and one target.

    Attributes:
        plan: as JSON.
        library: the native code, a shared library or cubins; None where PyTorch runs everything.
        source: the kernels as TVMScript, or as Python with Triton's functions.
    """

    plan: dict[str, Any]
    library: bytes | None
    source: str
    kind: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Planned:
    """What ``plan_data`` reads of an executable."""

    plan: Plan
    hosts: Sequence[Any]
    derived: dict[str, Any]


def plan_for(graph: Graph, target: Target, schedules: Schedules | None = None) -> Plan:
    """The plan of a rewritten graph."""
    fused = fuse(graph)
    table = KernelTable(target.machine, frozenset(m.target for m in graph.mutations), schedules)
    return make_plan(finalise(fused, table), table)


def kernels_for(plan: Plan, target: Target, cache: KernelCache | None) -> Kernels:
    """The kernels of a plan, compiled and linked.

    Raises:
        UnsupportedError: the plan calls an operator that is not PyTorch's own.
        BackendError: the backend refuses the code, or there is no linker.
    """
    hosts = [segment if isinstance(segment, TorchStep) else None for segment in plan.segments()]
    try:
        data = plan_data(Planned(plan, hosts, {}))  # type: ignore[arg-type]
    except NoForm as error:
        raise UnsupportedError(f"an artifact cannot hold this model: {error}") from None
    source = "\n".join(kernel.source for kernel in kernels_of(plan))
    return Kernels(data, native_library(plan, target, cache), source)


def kernels_of(plan: Plan) -> list[Kernel]:
    """The kernels of a plan, each once, in the order of their first calls."""
    steps = [step for step in plan.steps if isinstance(step, KernelStep)]
    return list({step.kernel.name: step.kernel for step in steps}.values())
