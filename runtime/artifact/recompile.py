"""Kernels made anew from the graph of an artifact, where it has none that fit."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ...ir.collection import no_collection
from ...ir.graph import Graph
from ..build import native_hosts
from ..cache import KernelCache
from ..plan import Plan
from ..target import Target
from ..tuned import Tuned
from ..tuner_records import Choice, record_from_dict
from .kernels import plan_for


def compiled(graph: Graph, threads: int, tuning: str) -> tuple[Plan, list[Any]]:
    """The plan of a graph for this processor, and what runs its segments; kernels are kept in the user's cache.

    ``tuning`` are the artifact's records as lines of JSON, of which those count that were made for such a processor.

    Raises:
        BackendError: the compiler is not installed, or refuses the code.
    """
    target = Target.detect("auto", threads)
    with no_collection():
        plan = plan_for(graph, target, Tuned(target, _choices(tuning)))
        return plan, native_hosts(plan, target, KernelCache())


def _choices(text: str) -> list[Choice]:
    found = []
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            record = record_from_dict(json.loads(line))
            if isinstance(record, Choice):
                found.append(record)
    return found
