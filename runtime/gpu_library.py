"""Kernels left to a library: a product to cuBLAS, attention to PyTorch's backends; what is around them by Triton.

A region with one product or one attention falls into what computes its operands, the call, and what follows; what is
not mere views in the first and the last is a kernel of its own, with the default schedule. The tuner times that, and a
plan runs the same, on memory that it lends: kernels read operands and write results as these lie in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codegen.program import Param, Role
from ..codegen.schedule_data import LibrarySchedule
from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node, Trait, topological
from ..ir.types import TensorType, contiguous_strides
from .kernels import Kernels, in_place_of, layouts_of, region_of
from .placement import Sizes

# launches a kernel on operands and results
Launch = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], None]

PRODUCTS = (ops.linear, ops.matmul)
RESULT = "library"  # the memory of what the library computes
_BACKENDS = {
    "attention": None,
    "attention-flash": "FLASH_ATTENTION",
    "attention-cudnn": "CUDNN_ATTENTION",
    "attention-efficient": "EFFICIENT_ATTENTION",
}


def library_schedules(region: Graph) -> tuple[LibrarySchedule, ...]:
    """The library calls that may stand for a region's kernel."""
    anchor = _anchor(region)
    if anchor is None:
        return ()
    if anchor.is_a(*PRODUCTS):
        return (LibrarySchedule(anchor.op.name),)
    return tuple(map(LibrarySchedule, _BACKENDS)) if _is_plain(anchor) else ()


def _anchor(region: Graph) -> Node | None:
    """The one node that a library may compute."""
    found = [n for n in region.nodes if n.has(Trait.CONTRACTION) or n.has(Trait.ATTENTION) or n.has(Trait.RECURRENCE)]
    return found[0] if len(found) == 1 and found[0].is_a(*PRODUCTS, ops.attention) else None


def _is_plain(attention: Node) -> bool:
    """Whether PyTorch's function has all that an attention has."""
    causal = bool(attention.attrs["causal"])
    return not attention.attrs["softcap"] and (
        len(attention.inputs) == 3 or (len(attention.inputs) == 4 and not causal)
    )


@dataclass(frozen=True)
class Part:
    """A graph around the call: a kernel for what is computed, views for the rest.

    Attributes:
        graph: the whole.
        kernel: of the results that are computed; None where none is.
        used: the inputs that it takes, by number.
        made: the results that it gives, by number.
        views: the other results.
    """

    graph: Graph
    kernel: Any
    used: tuple[int, ...]
    made: tuple[int, ...]
    views: Graph

    def run(self, values: Sequence[Tensor], made: Sequence[Tensor], sizes: Sizes, launch: Launch) -> list[Tensor]:
        """The results: those that are computed in the memory ``made``, the others as views."""
        rest = iter(interpret(self.views, values, {}, sizes=sizes).outputs) if self.views.outputs else iter(())
        if self.kernel is not None:
            launch(self.kernel, [values[i] for i in self.used], made)
        given = dict(zip(self.made, made, strict=True))
        return [given[i] if i in given else next(rest) for i in range(len(self.graph.outputs))]


class LibraryKernel:
    """A fused node whose product or attention a library computes.

    Args:
        node, schedule: the node, and which library.
        table: makes the kernels around the call.
        must: whether a backend of PyTorch's that does not take some sizes is an error, as where it is timed; else
            PyTorch computes them as it likes.

    Attributes:
        schedule: which library.
        before, after: what is around the call.
        scratch: the memory that it is lent while it runs, that of the kernels around the call aside.

    Raises:
        UnsupportedError: the node is not of that kind, or what is around the call has no kernel.
    """

    def __init__(self, node: Node, schedule: LibrarySchedule, table: Kernels[Any], must: bool = False) -> None:
        region = region_of(node)
        anchor = _anchor(region)
        if anchor is None or schedule not in library_schedules(region) or in_place_of(node):
            raise UnsupportedError(f"no library computes this region as {schedule.name}")
        self.region, self.schedule, self.anchor, self.must = region, schedule, anchor, must
        symbols = region.symbols
        rows = [tuple(range(len(x.shape))) for x in anchor.inputs]
        self.before = _part(Graph(region.inputs, list(anchor.inputs), symbols=symbols), node.inputs, rows, table)
        result = ops.input(name=RESULT, shape=anchor.shape, dtype=anchor.dtype)
        after = Graph(region.inputs, region.outputs, symbols=symbols).rebuild(
            lambda x, inputs: result if x is anchor else x.with_inputs(inputs)
        )
        after = Graph([*region.inputs, result], after.outputs, symbols=symbols)
        self.after = _part(after, [*node.inputs, result], layouts_of(node), table)
        # whether the call writes the node's one result itself
        self.is_direct = region.outputs == (anchor,) and tuple(layouts_of(node)[0]) == tuple(range(len(anchor.shape)))
        operands = [anchor.inputs[i].tensor_type for i in self.before.made]
        lent = [_lent(f"operand{i}", x) for i, x in zip(self.before.made, operands, strict=True)]
        self.scratch = tuple(lent if self.is_direct else [*lent, _lent(RESULT, anchor.tensor_type)])

    @property
    def parts(self) -> tuple[Any, ...]:
        """The kernels around the call, in order."""
        return tuple(part.kernel for part in (self.before, self.after) if part.kernel is not None)

    def run(
        self,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        lent: Mapping[str, Tensor],
        sizes: Sizes,
        launch: Launch,
    ) -> None:
        """Compute the node's results.

        Args:
            operands, results: as they lie in memory.
            lent: the scratch memory by name.
            sizes: of the region's symbols.
            launch: launches a kernel on operands and results.
        """
        with torch.no_grad():
            made = [lent[f"operand{i}"] for i in self.before.made]
            found = results[0] if self.is_direct else lent[RESULT]
            self.call(self.before.run(operands, made, sizes, launch), found)
            if self.is_direct:
                return
            made = [results[i] for i in self.after.made]
            values = self.after.run([*operands, found], made, sizes, launch)
            for i, value in enumerate(values):
                if i not in self.after.made:
                    results[i].copy_(value)

    def call(self, operands: Sequence[Tensor], out: Tensor) -> None:
        """The library's part, its result row-major in ``out``."""
        if not out.numel():
            return
        if self.anchor.is_a(ops.linear):
            x, w, *bias = operands
            # as PyTorch's own linear layer asks for it
            count = out.numel() // max(w.shape[0], 1)
            rows, flat = x.reshape(count, w.shape[1]), out.view(count, w.shape[0])
            if bias:
                torch.addmm(bias[0], rows, w.t(), out=flat)
            else:
                torch.mm(rows, w.t(), out=flat)
        elif self.anchor.is_a(ops.matmul):
            torch.matmul(*operands, out=out)
        else:
            out.copy_(self._attention(*operands))

    def _attention(self, *operands: Tensor) -> Tensor:
        try:
            with _only(self.schedule.name):
                return self._scaled(*operands)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a backend that was fastest at some sizes need not take all
            if self.must or _BACKENDS[self.schedule.name] is None:
                raise
            return self._scaled(*operands)

    def _scaled(self, q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        attrs: Mapping[str, Any] = self.anchor.attrs
        bias = mask[0][(None,) * (4 - mask[0].ndim)] if mask else None
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, bias, is_causal=bool(attrs["causal"]), scale=attrs["scale"], enable_gqa=grouped
        )


def _lent(name: str, type_: TensorType) -> Param:
    return Param(name, type_, contiguous_strides(type_.shape), Role.OUT)


def _part(graph: Graph, operands: Sequence[Node], layouts: Sequence[Sequence[int]], table: Kernels[Any]) -> Part:
    """A graph as a kernel, where it computes anything; operands and results lie in memory as given."""
    given = set(graph.inputs)
    made = tuple(i for i, x in enumerate(graph.outputs) if _is_computed(x, given))
    views = Graph(graph.inputs, [x for i, x in enumerate(graph.outputs) if i not in made], symbols=graph.symbols)
    if not made:
        return Part(graph, None, (), (), views)
    outputs = [graph.outputs[i] for i in made]
    reached = set(topological(outputs))
    used = tuple(i for i, x in enumerate(graph.inputs) if x in reached)
    node = ops.fused(
        *(operands[i] for i in used),
        region=Graph([graph.inputs[i] for i in used], outputs, symbols=graph.symbols),
        layouts=tuple(tuple(layouts[i]) for i in made),
        in_place=(),
    )
    kernel = table.kernel_for(node)
    if kernel is None:
        raise UnsupportedError(table.why(node))
    return Part(graph, kernel, used, made, views)


def _is_computed(value: Node, given: set[Node]) -> bool:
    """Whether a value is more than a view of an input."""
    while value not in given and value.has(Trait.VIEW):
        value = value.inputs[0]
    return value not in given


def _only(name: str) -> AbstractContextManager[Any]:
    """PyTorch restricted to one of its backends for attention."""
    backend = _BACKENDS.get(name)
    if backend is None:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    made: AbstractContextManager[Any] = sdpa_kernel(getattr(SDPBackend, backend))
    return made
