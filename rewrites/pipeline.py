"""The passes in their order, as data, and the function that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.errors import GraphError, SmeltError
from ..ir.graph import Graph
from ..ir.verify import verify
from .context import Context, PassRecord, Step
from .driver import RuleSet, rewrite
from .hoist import hoist
from .merge import merge_linears
from .quantize import quantize
from .rule import RuleError

__all__ = ["CAPTURED", "PIPELINE", "SEARCH_PIPELINE", "Context", "Pass", "apply_rules", "passes_for", "run_pipeline"]

CAPTURED = "captured"  # the name of the snapshot before the first pass


@dataclass(frozen=True)
class Pass:
    """One step from graph to graph."""

    name: str
    run: Callable[[Graph, Context], Graph]
    doc: str


def apply_rules(*stages: str) -> Callable[[Graph, Context], Graph]:
    """The pass that applies the rules of some stages until none fits."""

    def run(graph: Graph, context: Context) -> Graph:
        rules = RuleSet(rule for stage in stages for rule in context.rules.get(stage, ()))
        return rewrite(graph, rules, context.fuel, context.log)

    return run


def _merge(graph: Graph, context: Context) -> Graph:
    return apply_rules("canonicalise")(merge_linears(graph, context), context)


def _search(graph: Graph, context: Context) -> Graph:
    # imported here: only this pass needs the package egglog
    from .search.run import search

    return apply_rules("canonicalise", "recognise", "simplify")(search(graph, context), context)


PIPELINE: tuple[Pass, ...] = (
    Pass("canonicalise", apply_rules("canonicalise"), "views, casts and arithmetic in one form; constants folded"),
    Pass("recognise", apply_rules("canonicalise", "recognise"), "norms, activations, attention, linear layers by name"),
    Pass("simplify", apply_rules("canonicalise", "recognise", "simplify"), "what composite operators take in"),
    Pass("merge", _merge, "linear layers of one input as one product"),
    Pass("hoist", hoist, "what depends on weights alone, computed once at load"),
)

# With ``optimize="search"``.
SEARCH = Pass("search", _search, "products and sums in the cheapest of the orders that are equal")
SEARCH_PIPELINE = tuple(p for step in PIPELINE for p in ([step, SEARCH] if step.name == "simplify" else [step]))

# With ``quantize=...``, after all others.
QUANTIZE = Pass("quantize", quantize, "linear layers on weights of few bits")


def passes_for(context: Context) -> tuple[Pass, ...]:
    """The passes of a compilation."""
    passes = PIPELINE if context.search is None else SEARCH_PIPELINE
    return passes if context.quantized is None else (*passes, QUANTIZE)


def run_pipeline(
    graph: Graph, context: Context, stop_after: str | None = None, passes: Sequence[Pass] = PIPELINE
) -> Graph:
    """The graph after all passes, or after the one named ``stop_after``.

    Each pass leaves a snapshot and a record in the context.

    Raises:
        SmeltError: no pass has the name ``stop_after``.
        GraphError: with ``context.verify``, a graph breaks an invariant or a pass changed the graph's signature; the
            message names the pass.
    """
    names = [p.name for p in passes]
    if stop_after is not None and stop_after not in (CAPTURED, *names):
        raise SmeltError(f"there is no pass {stop_after!r}: the passes are {', '.join([CAPTURED, *names])}")
    if context.verify:
        verify(graph)
    context.snapshots[CAPTURED] = graph
    wanted = len(passes) if stop_after is None else [CAPTURED, *names].index(stop_after)
    for step in passes[:wanted]:
        graph = _run(step, graph, context)
    return graph


def _run(step: Pass, graph: Graph, context: Context) -> Graph:
    applied, start = len(context.log), time.perf_counter()
    try:
        result = step.run(graph, context)
    except RuleError:
        # what the rules did before they failed may say why
        _observe(step, graph, graph, applied, context)
        raise
    seconds = time.perf_counter() - start
    if context.verify and result is not graph:
        _check(step, graph, result)
    record = PassRecord(step.name, seconds, result is not graph, len(result.nodes), len(context.log) - applied)
    context.records.append(record)
    _observe(step, graph, result, applied, context)
    context.snapshots[step.name] = result
    return result


def _observe(step: Pass, before: Graph, after: Graph, applied: int, context: Context) -> None:
    """Show the observer what a pass did: the applications from the one numbered ``applied`` in the log on."""
    if context.observe is not None:
        context.observe(Step(step.name, before, after, context.log.applications[applied:], context.derived))


def _check(step: Pass, before: Graph, after: Graph) -> None:
    try:
        verify(after)
    except GraphError as error:
        raise GraphError(f"after the pass {step.name}: {error}") from error
    if _signature(before) != _signature(after):
        raise GraphError(f"the pass {step.name} changed what the graph takes or returns")


def _signature(graph: Graph) -> tuple[object, ...]:
    return (
        graph.inputs,
        tuple(node.type for node in graph.outputs),
        tuple((m.target, m.value.type) for m in graph.mutations),
        graph.symbols,
    )
