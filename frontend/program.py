"""From an exported program to a capture: weights, sizes, guards, the lowered graph and its results."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..ir import ops
from ..ir.binding import bind_symbols
from ..ir.errors import InputError, UnsupportedError
from ..ir.graph import Graph, Mutation
from ..ir.node import Node, Trait
from ..ir.types import symbol, symbols_of
from .arguments import Leaf, traced
from .branches import Branch, is_idle, is_internal, may_be_idle
from .capture import Capture, Guard, OutputSpec, Reason, Specialised
from .instances import Instances, NotAlike
from .limits import limits_of
from .lower import Lowering, mark
from .memory import Memory
from .origins import origin_of, short
from .repeats import LayerCall
from .sizes import Sizes
from .table import NeedsEqual, NeedsFixed, NeedsFunctional
from .weights import WeightTable


class Unfit(Exception):
    """The captured program does not hold for the example's own sizes; the message says why."""


@dataclass(frozen=True)
class Request:
    """What is captured: the module of tensor arguments, all arguments, and how calls are to be read.

    ``source`` is the line where the model is defined, for operators that PyTorch traced no line for. A ``stateless``
    module is refused where it sets attributes.
    """

    module: nn.Module
    leaves: tuple[Leaf, ...]
    in_spec: pytree.TreeSpec
    signature: inspect.Signature | None
    fallback: str
    source: str = ""
    stateless: bool = False


def build(
    request: Request,
    program: ExportedProgram,
    branches: Sequence[Branch],
    notes: tuple[str, ...] = (),
    layers: Mapping[int, LayerCall] | None = None,
) -> Capture:
    """Lower an exported program; ``layers`` are those that are marked in it.

    Raises:
        NotAlike: layers that were taken for equal are not.
        Unfit: the program does not hold for the sizes of the example.
        NeedsFunctional: the program must go through PyTorch's functionalisation first.
        UnsupportedError: it needs what smelt does not do, or a fallback where that is an error.
    """
    return Builder(request, program, layers).capture(branches, notes)


class Builder:
    """The state of one build."""

    def __init__(
        self, request: Request, program: ExportedProgram, layers: Mapping[int, LayerCall] | None = None
    ) -> None:
        self.request = request
        self.layers = layers or {}
        self.program = program
        self.placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
        self.weights = WeightTable(request.module, program)
        self.refused: dict[str, str] = {}
        kinds = [spec.kind for spec in program.graph_signature.input_specs]
        arguments = [n for n, kind in zip(self.placeholders, kinds, strict=True) if kind == InputKind.USER_INPUT]
        self.arguments = dict(zip(arguments, traced(request.leaves), strict=True))
        fakes = [v for n in program.graph.nodes if isinstance(v := n.meta.get("val"), torch.Tensor)]
        self.fake_mode: Any = next((v.fake_mode for v in fakes if isinstance(v, FakeTensor)), None)
        self.sizes = Sizes(self.fake_mode.shape_env if self.fake_mode is not None else None)

    def capture(self, branches: Sequence[Branch], notes: tuple[str, ...]) -> Capture:
        """Lower the program: see :func:`build`."""
        while True:
            try:
                return self._capture(branches, notes)
            except NeedsFixed as need:
                self._fix(need)
            except NeedsEqual as need:
                self._make_equal(need)

    def _capture(self, branches: Sequence[Branch], notes: tuple[str, ...]) -> Capture:
        idle = [b for b in branches if may_be_idle(b)]
        asked = [(b.condition, b.where) for b in branches if b not in idle]
        conditions = self._conditions()
        self._name_sizes([*asked, *conditions])
        guards = self.sizes.settle([*asked, *conditions])
        inputs = self._inputs()
        bindings = self._bindings(inputs)
        lowering = Lowering(self.sizes, self.weights.constant, self.fake_mode, self.request.source)
        lowering.refused = self.refused
        lowering.layers = Instances(self.layers, self._weights_in)
        result, memory = lowering.run(self.program.graph_module, bindings)
        if lowering.fallbacks and self.request.fallback == "error":
            listed = "\n".join(f"  {f}" for f in lowering.listed())
            raise UnsupportedError(f"operators without a lowering, and fallback is 'error':\n{listed}")
        outputs, specs, mutations = self._results(result, memory, bindings)
        graph = Graph(inputs.values(), outputs, mutations)
        if any(node.op is ops.input and node not in graph.inputs for node in graph.nodes):
            raise NotAlike("the model reads what was computed inside of a layer and is not its result")
        late = self._conditions()[len(conditions) :]
        if not is_idle(graph.nodes):
            late.extend((b.condition, b.where) for b in idle)
        guards = (
            *guards,
            *self.sizes.settle(late),
            *self.sizes.settle_own([*self.sizes.required, *limits_of(graph.nodes)]),
        )
        graph = Graph(graph.inputs, graph.outputs, graph.mutations, self.sizes.ranges())
        self._check_example(graph, guards)
        used = {str(w.attrs["name"]) for w in graph.weights()} | {str(m.target.attrs["name"]) for m in mutations}
        return Capture(
            graph=graph,
            weights={name: t for name, t in self.weights.tensors.items() if name in used},
            inputs=tuple(leaf.spec() for leaf in self.request.leaves),
            in_spec=self.request.in_spec,
            outputs=specs,
            out_spec=self.program.call_spec.out_spec,
            fallbacks=lowering.listed(),
            specialised=self._specialised(),
            guards=guards,
            reasons=tuple(self._reasons()),
            notes=notes,
            signature=self.request.signature,
        )

    # --- sizes -------------------------------------------------------------------------------------------------------

    def _conditions(self) -> list[tuple[Any, str]]:
        """PyTorch's guards, without those on its own decisions."""
        env = self.sizes.shape_env
        if env is None:
            return []
        return [(g.expr, short(g.sloc)) for g in env.guards if not is_internal(g.expr, g.sloc)]

    def _tensor_arguments(self) -> Iterable[tuple[Leaf, Tensor]]:
        for node, leaf in self.arguments.items():
            yield leaf, node.meta["val"]

    def _name_sizes(self, conditions: Sequence[tuple[Any, str]]) -> None:
        """Name the symbols of the arguments' dims in order, after deciding which of them are one."""
        self.sizes.required.clear()
        named: dict[str, Any] = {}
        first: dict[int, Any] = {}
        for leaf, fake in self._tensor_arguments():
            for axis, size in enumerate(fake.shape):
                free = self.sizes.torch_expression(size)
                name = leaf.axes.get(axis, "")
                if not free.is_Symbol:
                    continue
                if name:
                    self.sizes.merge(named.setdefault(name, free), free, f"the size that is named {name}")
                elif axis == 0 and fake.ndim > 1 and not fake.dtype.is_floating_point:
                    # token ids and masks of one length are of one batch: a mask is often looked up by its row
                    self.sizes.merge(first.setdefault(leaf.value.shape[0], free), free)
        self._enter_names({free: name for name, free in named.items()})
        self._merge_by_guards(conditions, {free: name for name, free in named.items()})

    def _enter_names(self, names: dict[Any, str]) -> None:
        self.sizes.renamed.clear()
        wanted = {self.sizes.torch_expression(s): n for s, n in names.items()}
        count = 0
        for _, fake in self._tensor_arguments():
            for size in fake.shape:
                for free in sorted(self.sizes.torch_expression(size).free_symbols, key=str):
                    if free not in self.sizes.renamed:
                        name = wanted.get(free)
                        if name is None:
                            name, count = f"s{count}", count + 1
                        self.sizes.name(free, name)

    def _merge_by_guards(self, conditions: Sequence[tuple[Any, str]], names: dict[Any, str]) -> None:
        """Solve the guards that relate sizes in a way that neither a range nor a replacement says.

        A mask viewed as ``[batch, -1]`` leaves only ``rows * columns % batch == 0``, and sizes that no kernel can use:
        there, equal dims of one axis are taken for the same size.
        """
        open_guards = self.sizes.settle(conditions)
        solved = [self.sizes.solve(guard.condition) for guard in open_guards]
        if any(solved):
            self._enter_names(names)
            open_guards = self.sizes.settle(conditions)
        if self._merge_alike({s for g in open_guards for s in g.condition.free_symbols}, by_axis=True):
            self._enter_names(names)

    def _merge_alike(self, symbols: Collection[sympy.Symbol], by_axis: bool = False) -> bool:
        """Take dims of one length in the example for one size, where these symbols are concerned; whether any was."""
        alike: dict[Any, Any] = {}
        merged = False
        for leaf, fake in self._tensor_arguments():
            for axis, size in enumerate(fake.shape):
                free = self.sizes.torch_expression(size)
                if free.is_Symbol and self.sizes.renamed[free] in symbols:
                    other = alike.setdefault((axis if by_axis else 0, leaf.value.shape[axis]), free)
                    merged = merged or self.sizes.torch_expression(other) != free
                    self.sizes.merge(other, free)
        return merged

    def _make_equal(self, need: NeedsEqual) -> None:
        """Take sizes of one length in the example for one size; let an operator fall back that this does not help."""
        if self.sizes.solve(need.equation) or self._merge_alike(need.symbols):
            return
        if need.pinned:
            with suppress(Unfit):
                self._fix(NeedsFixed(need.pinned, str(need)))
                return
        if need.node is None or need.node in self.refused:
            raise need
        self.refused[need.node] = str(need)

    def _fix(self, need: NeedsFixed) -> None:
        """Take the example's sizes for those that a lowering must know."""
        wanted, fixed = symbols_of(need.dims), False
        for leaf, fake in self._tensor_arguments():
            for axis, size in enumerate(fake.shape):
                free = self.sizes.torch_expression(size)
                if free.is_Symbol and self.sizes.renamed.get(free) in wanted:
                    self.sizes.fix(free, leaf.value.shape[axis], need.reason)
                    fixed = True
        if not fixed:
            raise Unfit(f"{need.reason}: no argument tells the size of {', '.join(map(str, need.dims))}")

    def _check_example(self, graph: Graph, guards: Sequence[Guard]) -> None:
        known = {symbol(leaf.size): leaf.value.shape[0] for leaf in self.arguments.values() if leaf.size}
        try:
            tensors = (leaf.value for leaf in self.arguments.values() if not leaf.size)
            sizes = bind_symbols(graph, [t.shape for t in tensors], known)
        except InputError as error:
            raise Unfit(str(error)) from error
        for guard in guards:
            if not guard.holds(sizes):
                raise Unfit(f"the sizes of the example break the guard {guard}")

    def _specialised(self) -> tuple[Specialised, ...]:
        found = []
        for leaf, fake in self._tensor_arguments():
            for axis in leaf.axes:
                dim = self.sizes.dim(fake.shape[axis])
                if isinstance(dim, int):
                    found.append(Specialised(leaf.name, axis, dim, self.sizes.reason_of(fake.shape[axis])))
        return tuple(found)

    def _reasons(self) -> Iterable[Reason]:
        """Which lines made dims of arguments what they are, where they are not of any size."""
        for leaf, fake in self._tensor_arguments():
            for axis in leaf.axes:
                dim, reason = self.sizes.dim(fake.shape[axis]), self.sizes.reason_of(fake.shape[axis])
                narrowed = [] if isinstance(dim, int) else self.sizes.narrowed.get(dim, [])
                for where in (*([reason] if reason else []), *narrowed):
                    yield Reason(leaf.name, axis, where)

    # --- values ------------------------------------------------------------------------------------------------------

    def _inputs(self) -> dict[fx.Node, Node]:
        """The graph inputs, by placeholder; none for what only carries a size."""
        made: dict[fx.Node, Node] = {}
        for node, leaf in self.arguments.items():
            if not leaf.size:
                type_ = self.sizes.type_of(node.meta["val"])
                made[node] = ops.input(name=leaf.name, shape=type_.shape, dtype=type_.dtype)
                mark(made[node], origin_of(node))
        return made

    def _bindings(self, inputs: Mapping[fx.Node, Node]) -> list[Any]:
        """The value of each placeholder."""
        specs = zip(self.placeholders, self.program.graph_signature.input_specs, strict=True)
        return [inputs.get(n) if n in self.arguments else self.weights.node(spec) for n, spec in specs]

    def _weights_in(self, path: str) -> dict[str, Node]:
        """The weights of the module at a path, by their paths in it."""
        module = self.request.module.get_submodule(path)
        named = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        return {name: self.weights.named(f"{path}.{name}") for found in named for name, _ in found}

    def _results(
        self, result: Any, memory: Memory, bindings: Sequence[Any]
    ) -> tuple[list[Node], tuple[OutputSpec, ...], list[Mutation]]:
        """Graph outputs, how each leaf of the result is had from them, and what the caller's tensors become."""
        returned: Any = self._output_node().args[0]
        by_name = {n.name: b for n, b in zip(self.placeholders, bindings, strict=True)}
        outputs: list[Node] = []
        specs: list[OutputSpec] = []
        mutations = [Mutation(memory_target(by_name[n.name]), value) for n, value in memory.written().items()]
        for spec, node, value in zip(self.program.graph_signature.output_specs, returned, result, strict=True):
            if spec.kind == OutputKind.USER_OUTPUT:
                specs.append(self._output(node, value, outputs))
            elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                mutations.append(Mutation(self.weights.named(str(spec.target)), value))
            elif spec.kind == OutputKind.USER_INPUT_MUTATION:
                mutations.append(Mutation(by_name[str(spec.target)], value))
            else:
                raise NeedsFunctional(f"an output of kind {spec.kind}")
        return outputs, tuple(specs), [m for m in mutations if m.target is not m.value]

    def _output_node(self) -> fx.Node:
        found: fx.Node = next(n for n in reversed(self.program.graph.nodes) if n.op == "output")
        return found

    def _output(self, node: Any, value: Any, outputs: list[Node]) -> OutputSpec:
        if isinstance(node, fx.Node) and node in self.arguments:
            return OutputSpec("input", index=self.request.leaves.index(self.arguments[node]))
        if isinstance(value, Node):
            if value not in outputs:
                outputs.append(value)
            return OutputSpec("tensor", index=outputs.index(value))
        if isinstance(value, sympy.Expr):
            return OutputSpec("size", dim=value)
        return OutputSpec("constant", value=value)


def memory_target(target: Any) -> Node:
    """The node of a tensor of the caller's that is written."""
    if not isinstance(target, Node) or not target.has(Trait.SOURCE):
        raise NeedsFunctional("a write to a constant")
    return target
