"""How compile time grows: with the number of equal layers, and with the nodes of deep and wide graphs.

``python -m smelt.tools.scaling`` prints processor seconds, the least of several runs: first of a BERT and a Llama of 4
and 48 layers, then of each stage of the compiler on graphs of 10,000 and 20,000 nodes.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..frontend.export import capture
from ..ir import ops
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node
from ..ir.text import parse_graph, print_graph
from ..ir.types import SymbolRange, symbol
from ..ir.verify import verify
from ..rewrites.context import Context
from ..rewrites.fusion import FusionReport, fuse
from ..rewrites.pipeline import run_pipeline
from ..rewrites.schedule import order
from ..runtime.build import build_executable
from ..runtime.executable import Executable
from ..runtime.kernels import KernelTable, legalise
from ..runtime.plan import make_plan
from ..runtime.target import Target
from .zoo import from_config

ROWS = symbol("s0")
WIDTH = 16


def _weight(name: str, *shape: int) -> Node:
    return ops.weight(name=name, shape=shape, dtype=torch.float32)


def _graph(x: Node, *outputs: Node) -> Graph:
    return Graph([x], outputs, (), [SymbolRange(ROWS, 1, 64)])


def _argument() -> Node:
    return ops.input(name="x", shape=(ROWS, WIDTH), dtype=torch.float32)


def chain(nodes: int) -> Graph:
    """Pointwise operators, one after the other."""
    x = h = _argument()
    steps: list[Callable[[Node], Node]] = [ops.tanh, ops.relu, lambda v: ops.add(v, x), ops.abs]
    for i in range(nodes):
        h = steps[i % len(steps)](h)
    return _graph(x, h)


def matmuls(nodes: int) -> Graph:
    """Linear layers with activations, one after the other."""
    x = h = _argument()
    for i in range(nodes // 4):
        h = ops.tanh(ops.linear(h, _weight(f"{i}.w", WIDTH, WIDTH), _weight(f"{i}.b", WIDTH)))
    return _graph(x, h)


def residual(nodes: int) -> Graph:
    """Blocks of a norm and two linear layers, added to what they read."""
    x = h = _argument()
    for i in range(nodes // 9):
        normed = ops.layer_norm(h, _weight(f"{i}.g", WIDTH), _weight(f"{i}.b", WIDTH), axes=1, eps=1e-5)
        up = ops.relu(ops.linear(normed, _weight(f"{i}.up", 2 * WIDTH, WIDTH)))
        h = ops.add(h, ops.linear(up, _weight(f"{i}.down", WIDTH, 2 * WIDTH)))
    return _graph(x, h)


def wide(nodes: int) -> Graph:
    """Branches of one input, summed two by two."""
    x = _argument()
    branches = [
        ops.tanh(ops.linear(ops.mul(x, _weight(f"{i}.c", WIDTH)), _weight(f"{i}.w", WIDTH, WIDTH)))
        for i in range(nodes // 6)
    ]
    while len(branches) > 1:
        left = branches[len(branches) // 2 * 2 :]
        branches = [ops.add(a, b) for a, b in zip(branches[::2], branches[1::2], strict=False)] + left
    return _graph(x, *branches)


def nested(nodes: int) -> Graph:
    """Values that are each read once, the first of them last: half of all intermediates live at once."""
    x = h = _argument()
    kept: list[Node] = []
    for i in range(nodes // 6):
        kept.append(ops.linear(h, _weight(f"{i}.d", WIDTH, WIDTH)))
        h = ops.tanh(kept[-1])
    for i, skipped in enumerate(reversed(kept)):
        h = ops.linear(ops.add(h, skipped), _weight(f"{i}.u", WIDTH, WIDTH))
    return _graph(x, h)


def many_results(nodes: int) -> Graph:
    """A graph that returns a quarter of its nodes."""
    x = _argument()
    return _graph(
        x,
        *(
            ops.tanh(ops.linear(ops.mul(x, _weight(f"{i}.c", WIDTH)), _weight(f"{i}.w", WIDTH, WIDTH)))
            for i in range(nodes // 5)
        ),
    )


def fan(nodes: int) -> Graph:
    """Linear layers that all read one input and meet: one merged product."""
    x = _argument()
    total, *others = (ops.linear(x, _weight(f"{i}.w", WIDTH, WIDTH)) for i in range(nodes // 3))
    for value in others:
        total = ops.add(total, value)
    return _graph(x, total)


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
    """Processor seconds of each stage on a graph of so many nodes; ``native`` compiles kernels and runs them as well.

    Raises:
        AssertionError: text that is read back is another graph, or the kernels give other values than the interpreter.
    """
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


def time_layers(family: str, layers: int) -> dict[str, float]:
    """Processor seconds of capturing a ``"bert"`` or ``"llama"`` of so many layers, and of compiling the capture.

    ``"kernels"`` is how many distinct ones were compiled.
    """
    small = {
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    config = {"bert": "BertConfig", "llama": "LlamaConfig"}[family]
    model = from_config("AutoModel", config, small).eval()
    seconds: dict[str, float] = {}
    with _timed(seconds, "capture"):
        captured = capture(model, (torch.zeros(2, 8, dtype=torch.long),))
    with _timed(seconds, "compile"):
        executable = build_executable(captured, Target.detect("cpu", 1))
    return {**seconds, "kernels": float(len(executable.kernels))}


def least(runs: int, measure: Callable[[str, int], dict[str, float]], kind: str, size: int) -> dict[str, float]:
    """The least of several measurements, stage by stage: others may use the machine meanwhile."""
    found = [measure(kind, size) for _ in range(runs)]
    return {name: min(one[name] for one in found) for name in found[0]}


def main() -> None:
    """Print both tables."""
    _print("layers", "4 layers", "48 layers")
    for family in ("bert", "llama"):
        time_layers(family, 2)
        few, many = (least(3, time_layers, family, layers) for layers in (4, 48))
        for name in few:
            _print(f"{family} {name}", few[name], many[name])
        _print(f"{family} together", *(sum(t for n, t in one.items() if n != "kernels") for one in (few, many)))
    _print("nodes", "10,000", "20,000")
    for kind in KINDS:
        _with_kernels(kind, 200)
        once, twice = (least(2, _with_kernels, kind, nodes) for nodes in (10_000, 20_000))
        for name in once:
            _print(f"{kind} {name}", once[name], twice[name])
        _print(f"{kind} together", sum(once.values()), sum(twice.values()))


def _with_kernels(kind: str, nodes: int) -> dict[str, float]:
    return time_stages(kind, nodes, native=True)


def _print(label: str, *cells: float | str) -> None:
    texts = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
    numbers = [cell for cell in cells if not isinstance(cell, str)]
    ratio = f"{numbers[1] / max(numbers[0], 1e-9):8.2f} x" if numbers else ""
    sys.stdout.write(f"{label:24}{''.join(f'{text:>12}' for text in texts)}{ratio}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
