"""From an FX graph of ATen operators to ours: one node after the other, through the table of lowerings.

Mutation is resolved on the way (see :mod:`.memory`). What has no lowering is decomposed by PyTorch where that leads to
operators that have one, and otherwise becomes an ``aten.call``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from ..ir import ops
from ..ir.errors import BroadcastError, CaptureError, TypeRuleError, UnsupportedError
from ..ir.node import Node, Origin, result_types
from ..ir.types import TensorType, symbols_of
from .aten import LOWERINGS
from .capture import Fallback
from .decompose import Decomposition, decompose, result_of
from .instances import Instances
from .memory import Memory, functional_name, written_argument
from .numbers import SizeNumber
from .origins import origin_of
from .repeats import NAMESPACE
from .sizes import Sizes
from .table import Call, NeedsEqual, NeedsFixed, NeedsFunctional, NotLowered, cast

# checks of what the types and the guards already say
DROPPED = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten._assert_async.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
    "aten._functional_assert_async.msg",
    "aten._functional_assert_scalar.default",
    "aten._functional_sym_constrain_range.default",
    "aten._functional_sym_constrain_range_for_size.default",
}
# wrapped regions that mean what their body means
INLINED = {"wrap_with_set_grad_enabled", "tag_activation_checkpoint", "wrap_activation_checkpoint", "invoke_subgraph"}


class Lowering:
    """Lowers the graphs of one capture.

    Attributes:
        fallbacks: what PyTorch is to execute, by operator and reason, with the lines of the model.
        refused: FX nodes whose lowering gave a wrong type, and how: they fall back.
    """

    def __init__(
        self,
        sizes: Sizes,
        attribute: Callable[[str, Any], Node] | None = None,
        fake_mode: Any = None,
        source: str = "",
        allow_fallback: bool = True,
    ) -> None:
        self.sizes = sizes
        self.fallbacks: dict[tuple[str, str], list[str]] = {}
        self.refused: Mapping[str, str] = {}
        self._attribute = attribute
        self._fake_mode = fake_mode
        self._source = source  # where a line is not known
        self._allow_fallback = allow_fallback
        self._serial = 0
        self.layers: Instances | None = None  # the marked layers of the trace

    def run(self, module: fx.GraphModule, bindings: Sequence[Any]) -> tuple[Any, Memory]:
        """The value of the graph's output node, and the memory that it wrote.

        Args:
            module: the graph, its nodes with fake values in ``meta["val"]``.
            bindings: the value of each placeholder: a node, a dim, a constant.
        """
        memory = Memory(self.call, self.number, self.sizes)
        given = iter(bindings)
        result: Any = None
        for node in module.graph.nodes:
            if node.op == "placeholder":
                memory.define(node, next(given))
            elif node.op == "get_attr":
                memory.define(node, self._get_attribute(module, node))
            elif node.op == "call_function":
                self._call_function(node, memory)
            elif node.op == "output":
                result = memory.read(node.args[0])
            else:
                raise NeedsFunctional(f"{node.op} {node.target}")
        return result, memory

    # --- one node ----------------------------------------------------------------------------------------------------

    def _get_attribute(self, module: fx.GraphModule, node: fx.Node) -> Any:
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, torch.Tensor) and self._attribute is not None:
            return self._attribute(str(node.target), value)
        return value

    def _call_function(self, node: fx.Node, memory: Memory) -> None:
        target: Any = node.target
        value = node.meta.get("val")
        if str(target) in DROPPED:
            return
        if target is operator.getitem:
            source, index = node.args
            memory.define(node, memory.read(source)[index])
        elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float):
            memory.define(node, self.number(value))
        elif isinstance(target, torch._ops.HigherOrderOperator):
            memory.define(node, self._region(node, memory))
        elif isinstance(target, torch._ops.OpOverload):
            self._operator(node, target, memory)
        else:
            raise CaptureError(f"the captured graph calls {target}, which is no operator: please report this")

    def number(self, value: Any) -> Any:
        """A Python number of the trace: a dim, a float over sizes, or itself."""
        if isinstance(value, torch.SymInt):
            return self.sizes.dim(value)
        if isinstance(value, torch.SymFloat):
            expression = self.sizes.expression(value.node.expr)
            return float(expression) if expression.is_number else SizeNumber(expression)
        if isinstance(value, torch.SymBool):
            decided = self.sizes.expression(value.node.expr)
            if decided in (sympy.true, sympy.false):
                return bool(decided)
            raise UnsupportedError(f"the condition {decided} is kept as a value")
        return value

    def origin_of(self, node: fx.Node) -> Origin:
        """Where a node comes from."""
        origin = origin_of(node)
        origin.source = origin.source or self._source
        return origin

    def _operator(self, node: fx.Node, target: torch._ops.OpOverload, memory: Memory) -> None:
        if target.namespace == NAMESPACE and self.layers is not None:
            arguments, number = memory.read(node.args)
            memory.define(node, self.layers.lower(target._schema.name.split("::")[1], arguments, number))
            return
        origin = self.origin_of(node)
        if target._schema.is_mutable:
            written = written_argument(node, target)
            types = _types(written, self.sizes)
            value = self.call(node, functional_name(target), memory, origin, types, in_place=True)
            memory.write(written, value)
            memory.alias(node, written)
            return
        memory.define(node, self.call(node, str(target), memory, origin, expected=_types(node, self.sizes)))

    def call(
        self,
        node: fx.Node,
        name: str,
        memory: Memory,
        origin: Origin,
        expected: tuple[TensorType, ...],
        in_place: bool = False,
    ) -> Any:
        """The lowered results of one operator call, checked against the types that PyTorch found.

        What is written in place is cast to what is written to: a condition may be written to floats.
        """
        args, kwargs = memory.read(node.args), memory.read(node.kwargs)
        call = Call(name, expected, self.sizes)
        if name.startswith("aten.squeeze"):
            self._watch_squeeze(args, origin)
        if name == "aten.as_strided.default":
            _check_dense(node)
        try:
            found = self._lowered(call, args, kwargs, node, in_place)
            if in_place and isinstance(found, Node):
                found = cast(found, expected[0].dtype)
            types = tuple(t for v in flat(found) if isinstance(v, Node) for t in result_types(v.type))
            if types != expected:
                raise TypeRuleError(f"the lowering gives {_listed(types)}, PyTorch {_listed(expected)}")
        except TypeRuleError as error:
            seen = [*expected, *(v.type for v in flat((args, kwargs)) if isinstance(v, Node))]
            symbols = symbols_of(dim for type_ in seen for dim in type_.shape)
            need = NeedsEqual(symbols, str(error), node=node.name)
            if isinstance(error, BroadcastError):
                need.pinned = _pinned(error.left, error.right)
            raise need from error
        except NeedsEqual as need:
            need.node = node.name
            raise
        mark(found, origin)
        return found

    def _lowered(self, call: Call, args: Any, kwargs: Any, node: fx.Node, in_place: bool) -> Any:
        reason = self.refused.get(node.name, "no lowering")
        lowering = LOWERINGS.get(call.name)
        if lowering is not None and node.name not in self.refused:
            try:
                return lowering(call, *args, **kwargs)
            except NotLowered as refusal:
                reason = str(refusal)
            except TypeError as error:
                # arithmetic on a number that is known only with the sizes
                if isinstance(error, TypeRuleError) or not any(isinstance(v, SizeNumber) for v in flat((args, kwargs))):
                    raise
                reason = "a number that depends on sizes"
        decomposed = self._decomposed(node, call.name, args, kwargs)
        if decomposed is not None:
            return decomposed
        if in_place and self._fake_mode is not None:
            value = result_of(call.name, node, self._fake_mode)
            if isinstance(value, torch.Tensor):
                call = replace(call, types=(self.sizes.type_of(value),))
        return self._fallback(call, args, kwargs, node, reason)

    def _watch_squeeze(self, args: Any, origin: Origin) -> None:
        """An axis of symbolic size was kept by a squeeze: it must not be 1."""
        x = args[0]
        rank = x.tensor_type.rank
        named = args[1] if len(args) > 1 else None
        wanted = range(rank) if named is None else [named] if isinstance(named, int) else named
        for d in {d % rank for d in wanted} if rank else ():
            if not isinstance(x.shape[d], int):
                self.sizes.require(sympy.Ne(x.shape[d], 1), origin.source)

    # --- regions -----------------------------------------------------------------------------------------------------

    def _region(self, node: fx.Node, memory: Memory) -> Any:
        target: Any = node.target
        name = target.name() if callable(getattr(target, "name", None)) else str(target)
        args = memory.read(node.args)
        bodies = [at for at, arg in enumerate(args) if isinstance(arg, fx.GraphModule)]
        if len(bodies) == 1 and (name in INLINED or (name == "wrap_with_autocast" and args[2] is False)):
            at = bodies[0]
            operands = [a for a in args[at + 1 :] if not isinstance(a, str)]
            found, inner = self.run(args[at], operands)
            if inner.written():
                raise NeedsFunctional(f"{name} around a mutation")
            return found
        if name == "wrap_with_autocast":
            raise NeedsFunctional("an autocast region")
        raise UnsupportedError(
            f"{name} at {self.origin_of(node).source or 'an unknown line'}: control flow inside of a captured graph "
            "is not supported; compile the parts around it"
        )

    # --- no lowering -------------------------------------------------------------------------------------------------

    def _decomposed(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        """The operator through PyTorch's decomposition, where that ends in operators with lowerings."""
        if self._fake_mode is None:
            return None
        found: Decomposition | None = decompose(name, node, self._fake_mode)
        if found is None:
            return None
        inner = Lowering(self.sizes, self._attribute, self._fake_mode, self._source, allow_fallback=False)
        operands = [v for v in flat((args, kwargs)) if isinstance(v, Node)]
        try:
            values, memory = inner.run(found.module, operands)
        except (UnsupportedError, CaptureError, NotLowered, NeedsFunctional, NeedsFixed):
            return None
        if memory.written():
            return None
        kept = [v for v in flat(values) if isinstance(v, Node)]
        return kept[0] if found.single else tuple(kept)

    def _fallback(self, call: Call, args: Any, kwargs: Any, node: fx.Node, reason: str) -> Any:
        source = self.origin_of(node).source
        if not self._allow_fallback:
            raise UnsupportedError(f"{call.name}: {reason}")
        value = node.meta.get("val")
        leaves = value if isinstance(value, list | tuple) else [value]
        if not call.types or not all(isinstance(v, torch.Tensor) for v in leaves):
            raise UnsupportedError(f"{call.name} at {source or 'an unknown line'}: its results are not all tensors")
        if call.name.startswith(_QUANTISED):
            raise UnsupportedError(f"{call.name} at {source or 'an unknown line'}: quantised tensors of PyTorch's")
        operands: list[Node] = []
        templates = tuple(_template(a, operands, call.name) for a in args)
        named = tuple((k, _template(v, operands, call.name)) for k, v in kwargs.items() if _keeps(k, v))
        made = ops.aten_call(
            *operands, target=call.name, args=templates, kwargs=named, types=call.types, serial=self._next_serial(node)
        )
        lines = self.fallbacks.setdefault((call.name, reason), [])
        if source and source not in lines:
            lines.append(source)
        return ops.results(made) if isinstance(value, list | tuple) else made

    def _next_serial(self, node: fx.Node) -> int:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded not in tags:
            return 0
        self._serial += 1
        return self._serial

    def listed(self) -> tuple[Fallback, ...]:
        """The fallbacks for the report."""
        return tuple(Fallback(op, reason, tuple(lines)) for (op, reason), lines in self.fallbacks.items())


# operators that make or take tensors which mean nothing without their scales; a trace shows them as float
_QUANTISED = ("quantized.", "aten.quantize_per_", "aten.dequantize.", "aten.int_repr.", "aten.q_")


def _pinned(left: Any, right: Any) -> frozenset[sympy.Symbol]:
    """The symbols of an expression that must be a number."""
    expression, number = (right, left) if isinstance(left, int) else (left, right)
    if not isinstance(number, int) or not isinstance(expression, sympy.Expr) or expression.is_Symbol:
        return frozenset()
    return frozenset(symbols_of([expression]))


def _types(node: fx.Node, sizes: Sizes) -> tuple[TensorType, ...]:
    """The types of the tensors in a node's fake value."""
    value = node.meta.get("val")
    leaves = value if isinstance(value, list | tuple) else [value]
    tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
    if any(v.layout is not torch.strided for v in tensors):
        raise UnsupportedError(f"{node.target} gives a sparse tensor")
    return tuple(map(sizes.type_of, tensors))


def flat(value: Any) -> Iterable[Any]:
    """The leaves of nested lists, tuples and dicts."""
    if isinstance(value, list | tuple):
        for v in value:
            yield from flat(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from flat(v)
    else:
        yield value


def _check_dense(node: fx.Node) -> None:
    """Tensors have no strides here: memory can be addressed as such only where it is all of a dense tensor."""
    base = node.args[0]
    fake = base.meta.get("val") if isinstance(base, fx.Node) else None
    if fake is None or not fake.is_contiguous() or fake.storage_offset() != 0:
        raise UnsupportedError("as_strided of a view: use slices, permute or unfold on the tensor itself")


def _listed(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types))


def mark(found: Any, origin: Origin) -> None:
    """Give an origin to every node made for a result."""
    pending = [v for v in flat(found) if isinstance(v, Node)]
    while pending:
        node = pending.pop()
        if not node.origin.made_by:
            node.keep_origin(origin)
            pending.extend(node.inputs)


_MEANINGLESS = {"pin_memory", "generator"}
_PASSED_ON = (bool, int, float, str, sympy.Expr, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _keeps(name: str, value: Any) -> bool:
    if name == "generator" and value is not None:
        raise UnsupportedError("a random operator with a generator of its own: use the default one")
    return name not in _MEANINGLESS


def _template(value: Any, operands: list[Node], name: str) -> tuple[Any, ...]:
    """An argument of an ``aten.call``: see ``ir.ops.structure``."""
    if isinstance(value, Node):
        operands.append(value)
        return ("operand", len(operands) - 1)
    if isinstance(value, list | tuple):
        return ("list", *(_template(v, operands, name) for v in value))
    if value is None or isinstance(value, _PASSED_ON):
        return ("value", value)
    raise UnsupportedError(f"{name}: an argument of type {type(value).__name__} cannot be passed on to PyTorch")
