"""An explanation as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .explain import Explanation, Part, StepCost
from .footprint import Footprint
from .refusals import RefusedGroup
from .report import WIDTH, quantity
from .traffic import Moved

_INDENT = " " * 12


def explanation_text(explanation: Explanation, everything: bool = False) -> str:
    """The text; with ``everything`` each call of a kernel and each refusal has a line of its own."""
    roofs = explanation.roofs
    lines = [f"{explanation.model} on {explanation.target}"]
    lines += _item(
        "roofs",
        "not measured: there is no GPU here"
        if roofs is None
        else f"products {quantity(int(roofs.matmul_flops))}FLOP/s, "
        f"other operations {quantity(int(roofs.scalar_flops))}FLOP/s, "
        f"memory {quantity(int(roofs.bytes_per_second))}B/s, last cache "
        f"{quantity(int(roofs.cache_bytes_per_second))}B/s, {1e6 * roofs.launch_seconds:.1f} us to start a kernel",
    )
    for number, part in enumerate(explanation.parts, 1):
        several = f"part {number} of {len(explanation.parts)}: " if len(explanation.parts) > 1 else ""
        sizes = ", ".join(f"{name} = {size}" for name, size in part.sizes.items())
        lines += ["", f"{several}{', '.join(part.inputs) or 'no inputs'}{sizes and '; ' + sizes}"]
        lines += _kernel_lines(part, everything)
        lines += ["", *_byte_lines(part)]
        lines += _memory_lines(part.footprint)
        lines += ["", *_refused_lines(part, everything)]
    return "\n".join(lines) + "\n"


# --- kernels ----------------------------------------------------------------------------------------------------------


def _kernel_lines(part: Part, everything: bool) -> list[str]:
    """A line for each kernel, or for each call, and a line that says where it comes from."""
    rows = [[step] for step in part.steps] if everything else list(part.together().values())
    known = [step.estimated for step in part.steps if step.estimated is not None]
    text = f"{len(part.together())} kernels, {len(part.steps)} calls, in the order they run; of one call:"
    lines = _item("kernels", text)
    measured = part.measured is not None
    lines.append(
        f"  {'calls':>5} {'FLOP':>7} {'bytes':>7} {'least':>7} {'FLOP/B':>6} {'est. us':>8}"
        + (f" {'meas. us':>8} {'roof':>5}" if measured else "")
        + "  operators"
    )
    for row in rows:
        lines += _row_lines(row, measured)
    total = f"estimated {1e3 * sum(known):.3f} ms" if len(known) == len(part.steps) else "not measured"
    if part.measured is not None:
        kernels = sum(step.measured or 0.0 for step in part.steps)
        total += f"; kernels measured {1e3 * kernels:.3f} ms, the whole run {1e3 * part.measured:.3f} ms"
    lines += _item("time", total)
    return lines + (_item("rows", part.products) if part.products else [])


def _row_lines(row: Sequence[StepCost], measured: bool) -> list[str]:
    step = row[0]
    start = (
        f"  {len(row):>5} {quantity(step.flops):>7} {quantity(step.moved.nbytes):>7} {quantity(step.moved.least):>7} "
        f"{step.intensity:>6.1f} {_microseconds([s.estimated for s in row])}"
    )
    if measured:
        mean = _mean([s.measured or 0.0 for s in row])
        share = _mean([s.estimated or 0.0 for s in row]) / mean if mean else 0.0
        start += f" {1e6 * mean:>8.1f} {100 * share:>4.0f}%"
    start += "  "
    operators = _counted(step.operators)
    where = ", ".join(x for x in (step.module, step.source) if x)
    others = f" and {len(row) - 1} more" if len(row) > 1 else ""
    lines = [start + textwrap.shorten(operators, max(WIDTH - len(start), 20), placeholder=" …")]
    return lines + ([f"{_INDENT}{textwrap.shorten(where + others, WIDTH - 12, placeholder=' …')}"] if where else [])


def _counted(operators: Sequence[str]) -> str:
    """Operators by name, those that come several times with their number."""
    counts = {name: operators.count(name) for name in dict.fromkeys(operators)}
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items()) or "copy"


def _microseconds(values: Sequence[float | None]) -> str:
    """The mean in eight columns; a dash where one is not known."""
    known = [value for value in values if value is not None]
    return f"{1e6 * _mean(known):>8.1f}" if len(known) == len(values) else f"{'-':>8}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- bytes and memory -------------------------------------------------------------------------------------------------


def _byte_lines(part: Part) -> list[str]:
    traffic = part.traffic
    total, ratio = traffic.total, traffic.ratio
    text = f"{_bytes(total.nbytes)} moved, {_bytes(total.least)} at least"
    text += f": {ratio:.2f} times the least" if ratio is not None else ""
    if traffic.around != Moved():
        text += f"; {_bytes(traffic.around.nbytes)} of it copies of results and state"
    avoidable = sorted(part.together().values(), key=lambda row: -sum(_over(s) for s in row))[:3]
    most = ", ".join(f"{_counted(row[0].operators)} {_bytes(sum(map(_over, row)))}" for row in avoidable)
    return _item("bytes", text) + (_item("", f"most of the rest: {most}") if most else [])


def _over(step: StepCost) -> int:
    return step.moved.nbytes - step.moved.least


def _memory_lines(memory: Footprint) -> list[str]:
    text = f"peak {_bytes(memory.peak)}: intermediates {_bytes(memory.arena)}, results {_bytes(memory.results)}"
    if memory.arena < memory.arena_apart:
        text += f" ({_bytes(memory.arena_apart - memory.arena)} less than apart from operands and results)"
    if memory.eager is not None:
        text += f"; PyTorch eager {_bytes(memory.eager)}"
    order = (
        f"live at once: {_bytes(memory.depth_first)} depth first, {_bytes(memory.ordered)} in the order chosen; "
        f"the arena is {memory.arena / memory.arena_least:.2f} times what lives in it at once"
        if memory.arena_least
        else "nothing is kept between kernels"
    )
    return _item("memory", text) + _item("", order)


def _bytes(count: int) -> str:
    return f"{quantity(count)}B"


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refused_lines(part: Part, everything: bool) -> list[str]:
    known = [group.seconds for group in part.refused if group.seconds is not None]
    count = sum(len(group.refused) for group in part.refused)
    if not part.refused:
        return _item("refused", "no fusion was refused")
    text = f"{count} fusions, which would save {1e6 * sum(known):.1f} us a run, in microseconds:"
    if len(known) < len(part.refused):
        text = f"{count} fusions, which would save {_bytes(sum(group.nbytes for group in part.refused))} a run:"
    lines = _item("refused", text)
    for group in part.refused:
        lines += _group_lines(group, everything)
    return lines


def _group_lines(group: RefusedGroup, everything: bool) -> list[str]:
    saved = f"{'-':>9}" if group.seconds is None else f"{1e6 * group.seconds:>9.1f}"
    lines = [f"  {saved}  {len(group.refused)} x {group.reason} ({_bytes(group.nbytes)})"]
    for one in group.refused if everything else group.refused[:1]:
        label = "e.g. "
        if everything:
            label = f"{_bytes(one.nbytes)}: " if one.seconds is None else f"{1e6 * one.seconds:.1f}: "
        lines += textwrap.wrap(
            f"{label}{one.producer} -> {one.consumer}", WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 15
        )
    return lines


def _item(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<10}", subsequent_indent=_INDENT)
