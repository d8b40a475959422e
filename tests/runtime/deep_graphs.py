"""Graphs of any number of nodes, and every stage of the compiler on one, timed."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.ir.text import parse_graph, print_graph
from smelt.ir.types import SymbolRange, symbol
from smelt.ir.verify import verify
from smelt.rewrites.context import Context
from smelt.rewrites.fusion import FusionReport, fuse
from smelt.rewrites.pipeline import run_pipeline
from smelt.rewrites.schedule import order
from smelt.runtime.build import build_executable
from smelt.runtime.executable import Executable
from smelt.runtime.kernels import KernelTable, legalise
from smelt.runtime.plan import make_plan
from smelt.runtime.target import Target

ROWS = symbol("s0")
WIDTH = 16


def weight(name: str, *shape: int) -> Node:
    return ops.weight(name=name, shape=shape, dtype=torch.float32)


def graph(x: Node, *outputs: Node) -> Graph:
    return Graph([x], outputs, (), [SymbolRange(ROWS, 1, 64)])


def argument() -> Node:
    return ops.input(name="x", shape=(ROWS, WIDTH), dtype=torch.float32)


def chain(nodes: int) -> Graph:
    """Pointwise operators, one after the other."""
    x = h = argument()
    steps: list[Callable[[Node], Node]] = [ops.tanh, ops.relu, lambda v: ops.add(v, x), ops.abs]
    for i in range(nodes):
        h = steps[i % len(steps)](h)
    return graph(x, h)


def matmuls(nodes: int) -> Graph:
    """Linear layers with activations, one after the other."""
    x = h = argument()
    for i in range(nodes // 4):
        h = ops.tanh(ops.linear(h, weight(f"{i}.w", WIDTH, WIDTH), weight(f"{i}.b", WIDTH)))
    return graph(x, h)


def residual(nodes: int) -> Graph:
    """Blocks of a norm and two linear layers, added to what they read."""
    x = h = argument()
    for i in range(nodes // 9):
        normed = ops.layer_norm(h, weight(f"{i}.g", WIDTH), weight(f"{i}.b", WIDTH), axes=1, eps=1e-5)
        up = ops.relu(ops.linear(normed, weight(f"{i}.up", 2 * WIDTH, WIDTH)))
        h = ops.add(h, ops.linear(up, weight(f"{i}.down", WIDTH, 2 * WIDTH)))
    return graph(x, h)


def wide(nodes: int) -> Graph:
    """Branches of one input, summed two by two."""
    x = argument()
    branches = [
        ops.tanh(ops.linear(ops.mul(x, weight(f"{i}.c", WIDTH)), weight(f"{i}.w", WIDTH, WIDTH)))
        for i in range(nodes // 6)
    ]
    while len(branches) > 1:
        left = branches[len(branches) // 2 * 2 :]
        branches = [ops.add(a, b) for a, b in zip(branches[::2], branches[1::2], strict=False)] + left
    return graph(x, *branches)


def nested(nodes: int) -> Graph:
    """Values that are each read once, the first of them last: half of all intermediates live at once."""
    x = h = argument()
    kept: list[Node] = []
    for i in range(nodes // 6):
        kept.append(ops.linear(h, weight(f"{i}.d", WIDTH, WIDTH)))
        h = ops.tanh(kept[-1])
    for i, skipped in enumerate(reversed(kept)):
        h = ops.linear(ops.add(h, skipped), weight(f"{i}.u", WIDTH, WIDTH))
    return graph(x, h)


def many_results(nodes: int) -> Graph:
    """A graph that returns a quarter of its nodes."""
    x = argument()
    return graph(
        x,
        *(
            ops.tanh(ops.linear(ops.mul(x, weight(f"{i}.c", WIDTH)), weight(f"{i}.w", WIDTH, WIDTH)))
            for i in range(nodes // 5)
        ),
    )


def fan(nodes: int) -> Graph:
    """Linear layers that all read one input and meet: one merged product."""
    x = argument()
    total, *others = (ops.linear(x, weight(f"{i}.w", WIDTH, WIDTH)) for i in range(nodes // 3))
    for value in others:
        total = ops.add(total, value)
    return graph(x, total)


KINDS: dict[str, Callable[[int], Graph]] = {
    kind.__name__: kind for kind in (chain, matmuls, residual, wide, nested, many_results, fan)
}


def weights_of(given: Graph) -> dict[str, torch.Tensor]:
    """Small random weights for a graph."""
    seeded = torch.Generator().manual_seed(0)
    return {
        str(w.attrs["name"]): torch.randn([int(d) for d in w.shape], generator=seeded) * 0.1 for w in given.weights()
    }


def build(given: Graph, target: Target | None = None) -> Executable:
    """A graph compiled."""
    return build_executable(_Capture(given), target or Target.detect("cpu", 1))  # type: ignore[arg-type]


class _Capture:
    """What the compiler needs of a capture."""

    def __init__(self, given: Graph) -> None:
        self.graph, self.weights, self.fallbacks = given, weights_of(given), ()


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()  # a full collection takes longer than all else and falls on any stage
    start = time.process_time()
    try:
        yield
    finally:
        seconds[name] = time.process_time() - start
        if enabled:
            gc.enable()


def time_stages(kind: str, nodes: int, native: bool = False) -> dict[str, float]:
    """Processor seconds of each stage on a graph of so many nodes; ``native`` compiles kernels as well."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "build"):
        given = KINDS[kind](nodes)
        assert len(given.nodes) > nodes * 0.9
    with _timed(seconds, "print"):
        text = print_graph(given)
    with _timed(seconds, "parse"):
        assert parse_graph(text) is given
    with _timed(seconds, "verify"):
        verify(given)
    weights = weights_of(given)
    with _timed(seconds, "interpret"):
        expected = interpret(given, [torch.ones(8, WIDTH)], weights).outputs
    context = Context()
    with _timed(seconds, "rewrite"):
        better = run_pipeline(given, context)
    with _timed(seconds, "fuse"):
        fused = fuse(better, context.fuel, FusionReport())
    table = KernelTable(Target.detect("cpu", 1).machine)
    with _timed(seconds, "legalise"):
        final = legalise(fused, table)
    with _timed(seconds, "order"):
        order(final)
    with _timed(seconds, "plan"):
        make_plan(final, table)
    if native:
        with _timed(seconds, "compile"):
            executable = build(given)
        with _timed(seconds, "bind"):
            executable.arena_bytes({ROWS: 8})
        with _timed(seconds, "run"):
            found = executable.run([torch.ones(8, WIDTH)], {ROWS: 8})
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    return seconds
