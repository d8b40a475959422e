"""Plans of GPUs as artifacts hold them, read back: steps on kernels that are machine code. It needs no compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...codegen.gpu import GpuMachine
from ...ir import ops
from ...ir.errors import ArtifactError
from ...ir.graph import Graph
from ...ir.node import Node
from ..cuda.stored import StoredKernel, kernel_of, number
from ..plan import Buffer, KernelStep, Place, Plan, TorchStep
from ..saved.plan import plan_of

MOST_KERNELS = 100_000


def gpu_plan_of(data: Mapping[str, Any], code: bytes, machine: GpuMachine) -> tuple[Plan, tuple[StoredKernel, ...]]:
    """The plan that :func:`gpu_kernels_for` made, and its kernels.

    Raises:
        ArtifactError: the data is damaged, or does not fit the machine code.
        ParseError, KeyError, TypeError, ValueError, IndexError: the data is damaged.
    """
    plan, _, derived = plan_of({**data, "hosts": []})
    if derived:
        raise ArtifactError("a plan computes weights")
    given, steps = data["kernels"], data["hosts"]
    if not isinstance(given, list) or not isinstance(steps, list) or len(given) > MOST_KERNELS:
        raise ArtifactError("a plan has no kernels or no steps")
    symbols = [r.symbol for r in plan.graph.symbols]
    kernels = tuple(kernel_of(one, code, symbols, machine) for one in given)
    torch_steps: list[TorchStep] = [step for step in plan.steps if isinstance(step, TorchStep)]
    plan.steps = [_step(one, torch_steps, kernels, plan.buffers) for one in steps]
    if [step for step in plan.steps if isinstance(step, TorchStep)] != torch_steps:
        raise ArtifactError("a plan does not run every step of PyTorch's once")
    _check_memory(plan)
    return plan, kernels


def _check_memory(plan: Plan) -> None:
    """That every tensor of a kernel has memory while it runs, and that in the arena none that others have then."""
    made: set[int] = set()
    for at, step in enumerate(plan.steps):
        if isinstance(step, TorchStep):
            made.update(step.results)
            continue
        for buffer in (plan.buffers[i] for i in step.buffers):
            first, last = plan.live.get(buffer.position, (0, -1))
            if buffer.place is Place.ARENA and not first <= at <= last:
                raise ArtifactError("a step uses memory that is another value's by then")
            if buffer.place is Place.TORCH and buffer.position not in made:
                raise ArtifactError("a step reads what PyTorch has not computed yet")


def _step(
    data: Any, steps: Sequence[TorchStep], kernels: Sequence[StoredKernel], buffers: Sequence[Buffer]
) -> KernelStep | TorchStep:
    match data:
        case [chosen, [*positions]]:
            kernel = kernels[number(chosen, 0, len(kernels) - 1)]
            places = tuple(number(position, 0, len(buffers) - 1) for position in positions)
            if tuple(buffers[i].type.dtype for i in places) != kernel.dtypes:
                raise ArtifactError(f"a step gives {kernel.name} tensors of other dtypes")
            return KernelStep(kernel, places, _stand_in(kernel))  # type: ignore[arg-type]
    return steps[number(data, 0, len(steps) - 1)]


def _stand_in(kernel: StoredKernel) -> Node:
    """A source in the place of what a kernel computes, which a plan that is kept does not say."""
    return ops.input(name=kernel.name, shape=(), dtype=torch.bool)


# --- devices in graphs ------------------------------------------------------------------------------------------------


def on_device(node: Node, device: torch.device) -> Node:
    """A call of PyTorch's with this device for any that it names: graphs are captured on one, and run on another."""
    if not node.is_a(ops.aten_call):
        return node
    args, kwargs = _moved(node.attrs["args"], device), _moved(node.attrs["kwargs"], device)
    if (args, kwargs) == (node.attrs["args"], node.attrs["kwargs"]):
        return node
    return ops.aten_call(*node.inputs, **{**node.attrs, "args": args, "kwargs": kwargs}).keep_origin(node.origin)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(x, device) for x in value)
    return device if isinstance(value, torch.device) else value


def graph_on(graph: Graph, device: torch.device) -> Graph:
    """A graph whose calls of PyTorch name this device."""
    transform: Callable[[Node, tuple[Node, ...]], Node] = lambda node, inputs: on_device(  # noqa: E731
        node.with_inputs(inputs), device
    )
    return graph.rebuild(transform)
