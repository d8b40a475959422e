"""Why a compiled model is what it is: its kernels against the machine's roofs, the fusions refused, its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch.utils._pytree as pytree

from ..ir import ops
from ..ir.cost import Cost, Roofs, cost_of, work_of
from ..ir.errors import UnsupportedError
from ..ir.node import Trait
from ..ir.types import concrete
from .calls import Call
from .entry import Entry
from .footprint import Footprint, eager_peak, footprint_of
from .gpu import GpuKernel
from .kernels import region_of
from .measure import Measured, measure_steps
from .options import Options
from .plan import KernelStep, Step
from .quantized import float8_product, float8_products
from .refusals import RefusedGroup, refused_groups
from .roofs import last_cache_bytes, roofs_of
from .target import Target
from .traffic import Moved, Traffic, traffic_of, unfused

Sizes = Mapping[Any, int]


@dataclass(frozen=True)
class StepCost:
    """One step of a plan: a kernel call, or something that PyTorch computes.

    Attributes:
        kernel: the kernel's name; the operator's where PyTorch runs it.
        kind: the shape of its loops; ``"torch"`` where PyTorch runs it.
        operators: what it computes.
        module, source: where in the model its last operator comes from; empty where unknown.
        flops: floating-point operations.
        moved: bytes.
        estimated: the seconds that it takes at least, under the machine's roofs; None where these are not known.
        measured: the seconds that it took; None where nothing was measured.
    """

    kernel: str
    kind: str
    operators: tuple[str, ...]
    module: str
    source: str
    flops: int
    moved: Moved
    estimated: float | None
    measured: float | None = None

    @property
    def intensity(self) -> float:
        """Operations for each byte moved."""
        return self.flops / self.moved.nbytes if self.moved.nbytes else 0.0

    @property
    def share_of_roof(self) -> float | None:
        """The estimated time over the measured one: 1 is as fast as the machine allows."""
        return self.estimated / self.measured if self.measured and self.estimated is not None else None


@dataclass(frozen=True)
class Part:
    """One capture, at the sizes of one call.

    Attributes:
        inputs: the graph's inputs with their types.
        sizes: of the call.
        steps: in the order in which they run.
        traffic: bytes moved and the least possible.
        refused: the fusions that were not made, by reason, the costliest first.
        footprint: memory.
        measured: seconds of a whole run; None where nothing was measured.
        products: what products of float8 rows are multiplied in; empty where there are none.
    """

    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    steps: tuple[StepCost, ...]
    traffic: Traffic
    refused: tuple[RefusedGroup, ...]
    footprint: Footprint
    measured: float | None
    products: str = ""

    def together(self) -> dict[str, list[StepCost]]:
        """The calls of each kernel, in the order of the first."""
        found: dict[str, list[StepCost]] = {}
        for step in self.steps:
            found.setdefault(step.kernel, []).append(step)
        return found


@dataclass(frozen=True)
class Explanation:
    """What ``CompiledModule.explain`` returns; as text, what ``smelt explain`` prints.

    Attributes:
        model: the name of its class or function.
        target: what it was compiled for.
        roofs: of the machine, measured; None for a GPU that is not there.
        parts: the captures that were called, oldest first; for a split model, its parts.
    """

    model: str
    target: str
    roofs: Roofs | None
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as data for JSON, with the ratios and shares that follow from it."""
        data = asdict(self)
        for part, written in zip(self.parts, data["parts"], strict=True):
            written["traffic"] = {
                "moved": part.traffic.total.nbytes,
                "least": part.traffic.total.least,
                "around": part.traffic.around.nbytes,
                "ratio": part.traffic.ratio,
            }
            written["footprint"]["peak"] = part.footprint.peak
            for step, row in zip(part.steps, written["steps"], strict=True):
                row["moved"]["nbytes"] = step.moved.nbytes
                row |= {"intensity": step.intensity, "share_of_roof": step.share_of_roof}
            for group, row in zip(part.refused, written["refused"], strict=True):
                row |= {"seconds": group.seconds, "nbytes": group.nbytes}
        return data

    def __str__(self) -> str:
        from .explain_text import explanation_text  # it reads these classes

        return explanation_text(self)


def explain_entry(
    entry: Entry, sizes: Sizes, roofs: Roofs | None, measured: Measured | None = None, eager: int | None = None
) -> Part:
    """What there is to say of a capture at some sizes.

    Args:
        entry: the capture.
        sizes: those of its symbols.
        roofs: of the machine, where they are known.
        measured: what its steps took, where they were measured.
        eager: PyTorch's peak of memory in the same call, where it was measured.
    """
    executable = entry.executable
    traffic = traffic_of(executable, sizes)
    speed = None if roofs is None else _Speed.of(entry, sizes, roofs)
    rate = None if speed is None else speed.passed_on
    times: Sequence[float | None] = measured.steps if measured else [None] * len(traffic.steps)
    steps = [
        _step_cost(step, moved, sizes, speed, seconds)
        for step, moved, seconds in zip(executable.plan.steps, traffic.steps, times, strict=True)
    ]
    return Part(
        inputs=tuple(f"{node.attrs['name']} {node.type}" for node in entry.capture.graph.inputs),
        sizes={str(symbol): size for symbol, size in sizes.items()},
        steps=tuple(steps),
        traffic=traffic,
        refused=tuple(refused_groups(executable.fusion, unfused(executable.graphs), sizes, roofs, rate)),
        footprint=footprint_of(executable, sizes, eager),
        measured=measured.run if measured else None,
        products=float8_products(executable.plan.steps),
    )


@dataclass(frozen=True)
class _Speed:
    """Which roof bytes are moved under.

    What kernels pass on to each other comes from the last-level cache where the arena fits there; weights and arguments
    do where everything fits there, and from memory otherwise.
    """

    roofs: Roofs
    sources: float
    others: float

    @classmethod
    def of(cls, entry: Entry, sizes: Sizes, roofs: Roofs) -> _Speed:
        plan = entry.executable.plan
        arena, limit = entry.executable.arena_bytes(sizes), entry.executable.cache_bytes or last_cache_bytes()
        held = sum(concrete(x.tensor_type.nbytes, sizes) for x in (*plan.graph.inputs, *plan.graph.weights()))
        cached = roofs.cache_bytes_per_second
        return cls(
            roofs,
            cached if held + arena <= limit else roofs.bytes_per_second,
            cached if arena <= limit else roofs.bytes_per_second,
        )

    def seconds(self, cost: Cost, moved: Moved, products: float) -> float:
        """The time that a step takes at least, with so many operations of products a second."""
        computing = float(cost.products) / products + float(cost.others) / self.roofs.scalar_flops
        moving = moved.sources / self.sources + (moved.others + moved.written) / self.others
        return max(computing, moving) + self.roofs.launch_seconds

    def passed_on(self, nbytes: int) -> float:
        """The time to move so many bytes of an intermediate."""
        return nbytes / self.others


def _product_rate(step: Step, roofs: Roofs) -> float:
    """How fast a step's products can be: on a GPU as those of its operands' dtype, which have units of their own."""
    kernel: object = step.kernel if isinstance(step, KernelStep) else None
    if not isinstance(kernel, GpuKernel):
        return roofs.matmul_flops
    products = [n for n in work_of(region_of(step.node)) if n.has(Trait.CONTRACTION, Trait.ATTENTION)]
    names = {str(x.dtype).removeprefix("torch.") for n in products for x in n.inputs[:2]}
    float8 = float8_product(step)
    if float8 is not None:
        names = {"int8" if float8 == "float8" else float8}  # tensor cores take float8 at the rate of int8
    known = [roofs.peaks[name] for name in names if name in roofs.peaks]
    return max(known, default=roofs.matmul_flops)


def _step_cost(step: Step, moved: Moved, sizes: Sizes, speed: _Speed | None, measured: float | None) -> StepCost:
    node = step.node
    if node.is_a(ops.fused):
        region = region_of(node)
        cost = cost_of(region).at(sizes)
        operators = tuple(n.op.name for n in work_of(region))
    else:
        cost = Cost(0, concrete(node.op.flops(node), sizes), 0)
        operators = (str(node.attrs["target"]) if node.is_a(ops.aten_call) else node.op.name,)
    estimated = None
    if speed is not None:
        native = isinstance(step, KernelStep)
        rate = _product_rate(step, speed.roofs)
        estimated = speed.seconds(cost, moved, rate) - (0 if native else speed.roofs.launch_seconds)
    return StepCost(
        kernel=step.kernel.name if isinstance(step, KernelStep) else "torch:" + "+".join(operators),
        kind=step.kernel.program.skeleton.value if isinstance(step, KernelStep) else "torch",
        operators=operators,
        module=node.origin.module,
        source=node.origin.source,
        flops=int(cost.flops),
        moved=moved,
        estimated=estimated,
        measured=measured,
    )


def _measured(entry: Entry, call: Call, sizes: Sizes, model: Callable[..., Any], target: Target) -> Measured:
    if target.kind == "cpu":
        return measure_steps(entry, call, sizes, model, target)
    from .cuda.measure import measure_gpu_steps  # only who has a GPU needs it

    return measure_gpu_steps(entry, call, sizes, model)


def _roofs(options: Options) -> Roofs | None:
    if options.target.kind == "cpu":
        return roofs_of(options.target, options.open_cache())
    from .cuda.roofs import gpu_roofs_of  # only who has a GPU needs it

    return gpu_roofs_of(options.target, options.open_cache())


def explain_module(
    name: str,
    options: Options,
    entries: Sequence[tuple[Entry, Sizes]],
    call: Call | None = None,
    model: Callable[..., Any] | None = None,
) -> Explanation:
    """The explanation of captures at some sizes; with a model and a call of it, both are measured too.

    Args:
        name: what the model is called.
        options: what it was compiled with.
        entries: captures with the sizes to explain them at.
        call: the arguments to measure with.
        model: the model as it was given.

    Raises:
        UnsupportedError: a model for a GPU that is not there is to be measured.
    """
    target = options.target
    if call is not None and target.kind != "cpu" and target.device.type == "cpu":
        raise UnsupportedError(f"{name} cannot be measured: it was compiled for {target.cpu}, and there is no GPU here")
    roofs = _roofs(options)
    parts = []
    for entry, sizes in entries:
        measured = eager = None
        if call is not None and model is not None:
            measured = _measured(entry, call, sizes, model, target)
            args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
            eager = eager_peak(model, args, kwargs)
        parts.append(explain_entry(entry, sizes, roofs, measured, eager))
    return Explanation(name, str(options.target), roofs, tuple(parts))
