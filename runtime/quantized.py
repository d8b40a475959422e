"""What became of a model's weights where few bits were asked for, as data and as lines of the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..codegen.gpu import GpuMatmulSchedule
from ..ir import ops
from ..ir.cost import work_of
from ..ir.interpret import evaluate
from ..rewrites.quantization import KeptWeight, QuantizedWeight
from .compiled import Compiled
from .kernels import region_of
from .plan import KernelStep, Step

SHOWN = 3  # the weights with the largest errors that the text names


@dataclass(frozen=True)
class WeightReport:
    """A weight in few bits.

    Attributes:
        name: of the layers that read it.
        shape: [N, K].
        bits: of a number.
        group: the terms that share a scale.
        error: the root mean square of what it changed by, over that of the weight; 0 for a weight of zeros.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    group: int
    bytes_before: int
    bytes_after: int
    error: float


@dataclass(frozen=True)
class QuantizationReport:
    """All weights of a capture.

    Attributes:
        settings: what was asked for.
        weights: those in few bits, in the order in which they are read.
        kept: matrices that stay as they are, and why.
        products: what products of float8 rows are multiplied in; empty where there are none.
    """

    settings: str
    weights: tuple[WeightReport, ...]
    kept: tuple[KeptWeight, ...]
    products: str = ""

    @property
    def bytes_before(self) -> int:
        """The bytes of the weights in few bits before."""
        return sum(w.bytes_before for w in self.weights)

    @property
    def bytes_after(self) -> int:
        """Their bytes now, with scales and zeros; panels may be padded beyond that."""
        return sum(w.bytes_after for w in self.weights)

    @property
    def worst(self) -> tuple[WeightReport, ...]:
        """The weights by their errors, the largest first."""
        return tuple(sorted(self.weights, key=lambda w: -w.error))


def report_quantization(executable: Compiled) -> QuantizationReport | None:
    """What became of the weights; None where nothing was asked for. The errors are computed when first asked for."""
    done = executable.quantized
    if done is None:
        return None
    if executable.weight_errors is None:
        executable.weight_errors = [_error(executable, weight) for weight in done.weights]
    pairs = zip(done.weights, executable.weight_errors, strict=True)
    weights = tuple(_report(w, error) for w, error in pairs)
    return QuantizationReport(str(done.settings), weights, tuple(done.kept), float8_products(executable.plan.steps))


def float8_products(steps: Sequence[Step]) -> str:
    """What the products of float8 rows in a plan are multiplied in, as text; empty where there are none."""
    found = Counter(filter(None, map(float8_product, steps)))
    if not found:
        return ""
    text = ", ".join(f"{count} in {dtype}" for dtype, count in found.items())
    if "float8" in found:
        return f"products of float8: {text}"
    return f'products of float8: {text}, none in float8 here: quantize="fp8" does the same work without rounding rows'


def float8_product(step: Step) -> str | None:
    """The dtype that a step multiplies rows of float8 in; None for any other step."""
    if not isinstance(step, KernelStep) or not any(n.is_a(ops.float8_linear) for n in work_of(region_of(step.node))):
        return None
    schedule: object = getattr(step.kernel, "schedule", None)
    if not isinstance(schedule, GpuMatmulSchedule) or not schedule.dot:
        return "float32"
    return "float8" if schedule.keeps_float8 else "float16"


def _report(weight: QuantizedWeight, error: float) -> WeightReport:
    shape = tuple(int(d) for d in weight.definition.shape)
    sizes = weight.bytes_before, weight.bytes_after
    return WeightReport(weight.name, shape, weight.bits, weight.group, *sizes, error)


def _error(executable: Compiled, weight: QuantizedWeight) -> float:
    (before,) = evaluate([weight.definition], executable.weights)
    parts = [executable.values[str(part.attrs["name"])] for part in weight.parts]
    how = {"bits": weight.bits, "group": weight.group, "float8": weight.float8}
    after = ops.dequantize.evaluate(*parts, **how, features=before.shape[1])
    size = before.double().norm()
    return float((after.double() - before.double()).norm() / size) if size else 0.0


# --- text -------------------------------------------------------------------------------------------------------------


def quantization_lines(report: QuantizationReport) -> Iterator[tuple[str, str]]:
    """Labels and texts of the report."""
    before, after = (f"{n / 1e6:.3g} MB" for n in (report.bytes_before, report.bytes_after))
    count = len(report.weights)
    yield "quantised", f"{count} weight{'' if count == 1 else 's'}: {report.settings}; {before} before, {after} after"
    worst = ", ".join(f"{w.name} {w.error:.2%}" for w in report.worst[:SHOWN])
    if worst:
        yield "", f"error (rms, of the weight's): {worst}{', …' if count > SHOWN else ''}"
    if report.products:
        yield "", report.products
    reasons: dict[str, list[str]] = defaultdict(list)
    for kept in report.kept:
        reasons[kept.reason].append(f"{kept.name} {list(kept.shape)}")
    for reason, names in reasons.items():
        yield (
            "as it was",
            f"{', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}: {reason}",
        )
