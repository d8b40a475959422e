"""Schedules as plain data, for records of what was measured; those of processors and of GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .gpu import (
    GpuAttentionSchedule,
    GpuMapSchedule,
    GpuMatmulSchedule,
    GpuRecurrenceSchedule,
    GpuRowsSchedule,
    GpuSchedule,
)
from .schedule import (
    AttentionSchedule,
    MapSchedule,
    MatmulSchedule,
    RecurrenceSchedule,
    RowsSchedule,
    Schedule,
)


@dataclass(frozen=True)
class LibrarySchedule:
    """A kernel left to a library that PyTorch calls: ``name`` is which of ``runtime/gpu_library.py``."""

    name: str = "linear"


AnySchedule = Schedule | GpuSchedule | LibrarySchedule

_KINDS: Mapping[str, type[Any]] = {
    "map": MapSchedule,
    "rows": RowsSchedule,
    "matmul": MatmulSchedule,
    "attention": AttentionSchedule,
    "recurrence": RecurrenceSchedule,
    "gpu_map": GpuMapSchedule,
    "gpu_rows": GpuRowsSchedule,
    "gpu_matmul": GpuMatmulSchedule,
    "gpu_attention": GpuAttentionSchedule,
    "gpu_recurrence": GpuRecurrenceSchedule,
    "library": LibrarySchedule,
}


def schedule_to_dict(schedule: AnySchedule) -> dict[str, Any]:
    """A schedule as data for JSON: its kind, and all that it chooses."""
    kind = next(name for name, made in _KINDS.items() if type(schedule) is made)
    return {"kind": kind, **asdict(schedule)}


def schedule_from_dict(data: Mapping[str, Any]) -> Schedule:
    """The schedule that :func:`schedule_to_dict` made data of.

    Raises:
        ValueError: it is not one: a kind or a field is unknown, missing, or of another type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a schedule is an object: got {data!r}")
    kind = _KINDS.get(str(data.get("kind")))
    if kind is None:
        raise ValueError(f"there is no schedule of kind {data.get('kind')!r}")
    given = {name: value for name, value in data.items() if name != "kind"}
    known = {field.name: field.default for field in fields(kind)}
    if given.keys() != known.keys():
        raise ValueError(f"a schedule of kind {data['kind']} has the fields {sorted(known)}: got {sorted(given)}")
    if not all(isinstance(value, int | str) for value in given.values()):
        raise ValueError(f"the fields of a schedule are numbers, truths or names: got {given}")
    made: Schedule = kind(**given)
    return made
