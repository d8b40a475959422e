"""Standalone scripts, of at most a screen, that show a fault."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Graph
from ..ir.text import print_graph
from ..ir.types import symbols_of
from ..rewrites.check import Fault
from ..rewrites.trial import Sizes, Style
from .check_plan import Lies

MAX_LINES = 45


def rewrite_script(title: str, fault: Fault, tolerance: float) -> str:
    """Two graphs that should agree, interpreted on inputs for which they do not. Ends with exit code 1."""
    example, before, after = fault.example, fault.pair.before, fault.pair.after
    dtype = ", dtype=torch.float64" if example.style.widen else ""
    count = len(before.outputs)
    both = Graph(before.inputs, (*before.outputs, *after.outputs), symbols=before.symbols)
    return f'''{_title(title)}
import torch

from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.text import parse_graph
from smelt.ir.types import symbol
from smelt.rewrites.rule import Domain
from smelt.rewrites.trial import Style, draw_inputs
from smelt.rewrites.values import difference

# returns the value before the change, then the one after it
both = parse_graph("""{_text(both)}""")
sides = both.outputs[:{count}], both.outputs[{count}:]
before, after = (Graph(both.inputs, side, symbols=both.symbols) for side in sides)
sizes = {_sizes(example.sizes, (before, after))}
inputs = draw_inputs(before, sizes, {_style(example.style)}, seed={example.seed})
expected, found = (interpret(g, inputs, {{}}, sizes=sizes{dtype}).outputs for g in (before, after))
faults = [difference(want, have, {tolerance!r}) for want, have in zip(expected, found, strict=True)]
print("\\n".join(fault or "equal" for fault in faults))
raise SystemExit(any(faults))
'''


def kernel_script(
    title: str, region: Graph, sizes: Sizes, layouts: Sequence[Sequence[int]], weights: Sequence[int], seed: int = 0
) -> str:
    """A region whose kernel, compiled here, differs from what the region means. Ends with exit code 1."""
    return f'''{_title(title)}
from smelt.ir.interpret import interpret
from smelt.ir.text import parse_graph
from smelt.ir.types import symbol
from smelt.rewrites.trial import Style, draw_inputs
from smelt.runtime.contract import compare
from smelt.runtime.probe import run_region

region = parse_graph("""{_text(region)}""")
sizes = {_sizes(sizes, (region,))}
inputs = draw_inputs(region, sizes, Style(), seed={seed})
expected = interpret(region, inputs, {{}}, sizes=sizes).outputs
found = run_region(region, inputs, sizes, layouts={tuple(map(tuple, layouts))}, weights={tuple(weights)})
results = [compare(f"result {{i}}", *pair) for i, pair in enumerate(zip(found, expected, strict=True))]
print("\\n".join(map(str, results)))
raise SystemExit(not all(result.passed for result in results))
'''


def placement_script(title: str, lies: Sequence[Lies], nbytes: int) -> str:
    """Values written to an arena and read again, of which one is overwritten in between. Ends with exit code 1."""
    rows = "\n".join(f'    "buffer {x.position}": ({x.start}, {x.stop}, {x.first}, {x.last}),' for x in lies)
    first, last = min(x.first for x in lies), max(x.last for x in lies)
    return f"""{_title(title)}
import torch

# each one's first byte and the one past its last, the step that writes it and the last step that reads it
buffers = {{
{rows}
}}
arena = torch.zeros({nbytes}, dtype=torch.uint8)
for step in range({first}, {last + 1}):
    for number, (start, stop, first, _) in enumerate(buffers.values(), 1):
        if step == first:
            arena[start:stop] = number
    for number, (name, (start, stop, first, last)) in enumerate(buffers.items(), 1):
        if first <= step <= last and bool((arena[start:stop] != number).any()):
            print(f"step {{step}}: {{name}} is still needed, and has been overwritten")
            raise SystemExit(1)
"""


def _title(title: str) -> str:
    return f'"""{title}\n\nRun it with python: it prints the difference and ends with exit code 1.\n"""\n'


def _text(graph: Graph) -> str:
    return print_graph(graph).rstrip().replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def _sizes(sizes: Sizes, graphs: Sequence[Graph]) -> str:
    declared = {r.symbol for graph in graphs for r in graph.symbols}
    known = [s for s in symbols_of(list(sizes)) if s in declared]
    return "{" + ", ".join(f'symbol("{s}"): {sizes[s]}' for s in known) + "}"


def _style(style: Style) -> str:
    given = {"widen": style.widen, "edges": style.edges, "zeros": style.zeros}
    flags = "".join(f", {name}=True" for name, value in given.items() if value)
    return f"Style(Domain.{style.domain.name}{flags})"
