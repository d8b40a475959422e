"""Operators about other operators: one of several results, a fused region, a call that PyTorch executes."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..errors import TypeRuleError
from ..graph import Graph
from ..node import REQUIRED, Node, Trait, result_types
from ..types import Dim, TensorType, TupleType, Type
from .base import declare, require


def _item_type(x: TupleType, *, index: int) -> TensorType:
    require(isinstance(x, TupleType), f"item: {x} is one tensor")
    require(isinstance(index, int) and 0 <= index < len(x.items), f"item: {x} has no result {index}")
    return x.items[index]


# one result of an operator that has several
item = declare(
    "item",
    infer=_item_type,
    evaluate=lambda x, *, index: x[index],
    attrs={"index": REQUIRED},
    traits={Trait.PROJECTION},
)


def results(node: Node) -> tuple[Node, ...]:
    """The results of a node, each as a node of one tensor."""
    if not isinstance(node.type, TupleType):
        return (node,)
    return tuple(item(node, index=i) for i in range(len(node.type.items)))


def _region_type(
    *types: TensorType, region: Graph, layouts: tuple[tuple[int, ...], ...], in_place: tuple[tuple[int, int], ...]
) -> Type:
    require(isinstance(region, Graph), f"fused: the region is {region!r}, not a graph")
    expected = tuple(node.type for node in region.inputs)
    require(types == expected, f"fused: operands {list(map(str, types))}, the region takes {list(map(str, expected))}")
    require(len(layouts) == len(region.outputs), f"fused: {len(layouts)} layouts for {len(region.outputs)} results")
    for order, node in zip(layouts, region.outputs, strict=True):
        require(sorted(order) == list(range(node.tensor_type.rank)), f"fused: layout {order} of a {node.type}")
    outputs = tuple(node.tensor_type for node in region.outputs)
    for result, operand in in_place:
        known = 0 <= result < len(outputs) and 0 <= operand < len(types)
        require(known and outputs[result] == types[operand], f"fused: result {result} in place of operand {operand}")
    return outputs[0] if len(outputs) == 1 else TupleType(outputs)


def _region_value(*_: Any, **__: Any) -> Any:
    raise LookupError("a region is evaluated by the interpreter")


def _region_flops(node: Node) -> Dim:
    region = node.attrs["region"]
    assert isinstance(region, Graph)
    return sum((n.op.flops(n) for n in region.nodes), start=0)


# a region that becomes one kernel. layouts: for each result, its axes from the slowest to the fastest in memory.
# in_place: pairs of a result and the operand whose memory it takes over; nothing else reads that operand any more
fused = declare(
    "fused",
    infer=_region_type,
    evaluate=_region_value,
    arity=(0, None),
    attrs={"region": REQUIRED, "layouts": REQUIRED, "in_place": ()},
    traits={Trait.REGION},
    flops=_region_flops,
)


def _call_type(*_: Type, types: tuple[TensorType, ...], **__: Any) -> Type:
    several = isinstance(types, tuple) and len(types) > 0 and all(isinstance(t, TensorType) for t in types)
    require(several, f"aten.call: the types of the results are {types!r}")
    return types[0] if len(types) == 1 else TupleType(types)


def resolve(target: str) -> Any:
    """The PyTorch operator overload of a name such as ``aten.topk.default``.

    Raises:
        TypeRuleError: there is none.
    """
    found: Any = torch.ops
    for part in target.split("."):
        if not re.fullmatch("__[a-z]+__|(?!__)[A-Za-z0-9_]+", part):
            raise TypeRuleError(f"{target!r} is not the name of a PyTorch operator")
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise TypeRuleError(f"this PyTorch has no operator {target}") from error
    if not isinstance(found, torch._ops.OpOverload):
        raise TypeRuleError(f"{target!r} is not an operator overload of PyTorch")
    return found


def _fill(template: Any, operands: tuple[torch.Tensor, ...]) -> Any:
    """Arguments from their template: ("operand", i), ("value", v), ("list", items ...)."""
    kind, *rest = template
    if kind == "operand":
        return operands[rest[0]]
    return [_fill(t, operands) for t in rest] if kind == "list" else rest[0]


def _call(*operands: torch.Tensor, target: str, args: Any, kwargs: Any, types: Any, serial: int) -> Any:
    operator = resolve(target)
    if operator._schema.is_mutable:
        operands = tuple(x.clone() for x in operands)
    positional = [_fill(t, operands) for t in args]
    named = {name: _fill(t, operands) for name, t in kwargs}
    found = operator(*positional, **named)
    results = tuple(found) if isinstance(found, list | tuple) else (found,)
    return results if len(types) > 1 else results[0]


# an operator without a lowering, executed by PyTorch. args and kwargs are templates (see _fill); serial tells calls
# with effects (random numbers) apart, and is 0 for pure ones. One that writes to its operands writes to copies.
aten_call = declare(
    "aten.call",
    infer=_call_type,
    evaluate=_call,
    arity=(0, None),
    attrs={"target": REQUIRED, "args": REQUIRED, "kwargs": (), "types": REQUIRED, "serial": 0},
    traits={Trait.OPAQUE},
)

__all__ = ["aten_call", "fused", "item", "resolve", "result_types", "results"]
