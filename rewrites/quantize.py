"""Linear layers on weights of few bits, where ``compile(quantize=...)`` asks for them.

The numbers, scales and zeros are weights of their own, computed when the model is loaded. What becomes of every weight
is recorded in the context: nothing stays as it is without a reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node, Trait, topological
from ..ir.ops.quantize import WORD
from .check import QUANTIZE, defined
from .context import Context
from .hoist import constant_nodes
from .quantization import KeptWeight, Quantization, Quantized, QuantizedWeight

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def quantize(graph: Graph, context: Context) -> Graph:
    """The graph with every linear layer that may be on a weight of few bits; the record is in ``context.quantized``."""
    assert context.quantized is not None
    return _Quantizer(graph, context, context.quantized).run()


class _Quantizer:
    def __init__(self, graph: Graph, context: Context, record: Quantized) -> None:
        self.graph, self.context, self.record = graph, context, record
        self.settings: Quantization = record.settings
        self.constant = constant_nodes(graph)
        self.made: dict[Node, tuple[Node, ...]] = {}  # the parts of a weight
        self.reasons: dict[Node, str] = {}  # why a weight that a layer reads stays
        taken = {str(w.attrs["name"]) for w in graph.weights()} | context.derived.keys()
        self.names = (name for name in map("derived.{}".format, itertools.count()) if name not in taken)

    def run(self) -> Graph:
        """The new graph."""
        self.record.hoisted.update(self.context.derived)
        layers = {node: self.refuse(node) for node in self.graph.nodes if node.is_a(ops.linear)}

        def transform(node: Node, inputs: tuple[Node, ...]) -> Node:
            same = node.with_inputs(inputs)
            if node not in layers:
                return same
            if layers[node] is not None:
                self.reasons.update(dict.fromkeys(_sources(node.inputs[1]), str(layers[node])))
                return same
            made = self.replacement(node, inputs).keep_origin(node.origin)
            if self.context.take(QUANTIZE, node, made):
                return made
            self.reasons.update(dict.fromkeys(_sources(node.inputs[1]), "the fuel of the compilation was used up"))
            return same

        result = self.graph.rebuild(transform)
        self.forget(result)
        self.record.kept.extend(self.kept(result))
        return result

    # --- which layers -------------------------------------------------------------------------------------------------

    def refuse(self, layer: Node) -> str | None:
        """Why a layer stays as it is; None where it is quantised."""
        weight = layer.inputs[1]
        if weight not in self.constant or not _sources(weight):
            return "it is computed, or changes"
        if layer.dtype not in _FLOATS:
            return f"it is {str(layer.dtype).removeprefix('torch.')}"
        if not all(isinstance(d, int) and d > 0 for d in weight.shape):
            return "it is empty"
        pattern = self.settings.kept(self.names_of(layer))
        if pattern is not None:
            return f'asked for: keep="{pattern}"'
        if self.settings.activations == "int8" and int(weight.shape[1]) > ops.MOST_TERMS:
            return f"sums of {weight.shape[1]} products of int8 may not fit 32 bits"
        return None

    def names_of(self, layer: Node) -> list[str]:
        """What a layer is called: its module, and the names of its weights without what they are in it."""
        weights = _sources(self.definition(layer.inputs[1]))
        return [layer.origin.module, *(str(w.attrs["name"]).rpartition(".")[0] for w in weights)]

    def definition(self, weight: Node) -> Node:
        """A weight in terms of the model's own."""
        return defined(weight, self.context.derived)

    # --- what they become ---------------------------------------------------------------------------------------------

    def replacement(self, layer: Node, inputs: Sequence[Node]) -> Node:
        """A layer on a weight of few bits, in float32."""
        x, _, *bias = inputs
        dtype, wide = layer.dtype, ops.accumulated_dtype(layer.dtype)
        parts = self.parts_of(layer)
        bias = [b if b.dtype == wide else self.as_weight(ops.cast(self.definition(b), dtype=wide)) for b in bias]
        if self.settings.activations:
            float8 = self.settings.activations == "fp8"
            rows = ops.row_scale(x, float8=float8)
            multiply = ops.float8_linear if float8 else ops.int8_linear
            y = multiply(ops.quantize_rows(x, rows, float8=float8), rows, *parts, *bias)
        else:
            x = x if dtype == wide else ops.cast(x, dtype=wide)
            settings = self.settings
            how = {"bits": settings.bits, "zeros": not settings.symmetric, "float8": settings.float8}
            y = ops.quantized_linear(x, *parts, *bias, **how, group=self.group_of(layer))
        return y if dtype == wide else ops.cast(y, dtype=dtype)

    def group_of(self, layer: Node) -> int:
        """How many terms of a row share a scale: a whole row, as whole words, where it is no longer than a group."""
        terms = int(layer.inputs[1].shape[1])
        whole = terms + -terms % WORD
        return min(self.settings.group_size or whole, whole)

    def parts_of(self, layer: Node) -> tuple[Node, ...]:
        """q, scale and the zeros that there may be, as weights; one weight has them once."""
        weight = layer.inputs[1]
        if weight in self.made:
            return self.made[weight]
        settings, definition, group = self.settings, self.definition(weight), self.group_of(layer)
        how, float8 = {"bits": settings.bits, "group": group}, settings.float8
        scale = self.as_weight(ops.weight_scale(definition, **how, zeros=not settings.symmetric, float8=float8))
        zeros = () if settings.symmetric else (self.as_weight(ops.weight_zero(definition, scale, **how)),)
        q = self.as_weight(ops.quantize_weight(definition, scale, *zeros, **how, float8=float8))
        parts = self.made[weight] = (q, scale, *zeros)
        name = together(n for n in self.names_of(layer)[1:] if n) or layer.origin.module
        self.record.weights.append(QuantizedWeight(name, definition, parts, settings.bits, group, float8))
        return parts

    def as_weight(self, definition: Node) -> Node:
        """A new weight that is computed when the model is loaded."""
        made = ops.weight(name=next(self.names), shape=definition.shape, dtype=definition.dtype)
        self.context.derived[str(made.attrs["name"])] = definition
        return made

    # --- the record ---------------------------------------------------------------------------------------------------

    def forget(self, result: Graph) -> None:
        """Drop derived weights that nothing reads any more, as a merged one before it was quantised."""
        derived = self.context.derived
        needed = {str(w.attrs["name"]) for w in result.weights()}
        for name in reversed(list(derived)):
            if name not in needed:
                del derived[name]
                continue
            needed.update(str(w.attrs["name"]) for w in _sources(derived[name]))

    def kept(self, result: Graph) -> Iterator[KeptWeight]:
        """The matrices of floats that the new graph still reads, and why."""
        changed = {m.target for m in result.mutations}
        for weight in result.weights():
            if weight in changed or weight.tensor_type.rank < 2 or not weight.dtype.is_floating_point:
                continue
            if any(weight in parts for parts in self.made.values()):
                continue
            names = [str(w.attrs["name"]) for w in _sources(self.definition(weight))]
            shape = tuple(int(d) for d in weight.shape)
            yield KeptWeight(together(names), shape, self.reasons.get(weight) or self.why(weight, result))

    def why(self, weight: Node, result: Graph) -> str:
        """Why a weight that no linear layer reads stays."""
        readers = result.users[weight]
        if readers and all(user.has(Trait.GATHER) for user in readers):
            return "a table: of it only the rows that are looked up are read"
        names = ", ".join(dict.fromkeys(user.op.name for user in readers))
        return f"no linear layer reads it, but {names or 'the caller'}"


def together(names: Iterable[str]) -> str:
    """Names as one text: ``layers.0.{q_proj, k_proj}``."""
    parts = [name.split(".") for name in dict.fromkeys(names)]
    if len(parts) < 2:
        return ".".join(parts[0]) if parts else ""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    shared = len(list(columns))
    rest = ", ".join(".".join(part[shared:]) for part in parts)
    return ".".join([*parts[0][:shared], f"{{{rest}}}"])


def _sources(node: Node) -> list[Node]:
    return [x for x in topological((node,)) if x.op is ops.weight]
