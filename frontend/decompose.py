"""One operator as several: PyTorch's own decomposition of an operator that the table does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from .aten import LOWERINGS


@dataclass(frozen=True)
class Decomposition:
    """The graph of a decomposition, over the operator's tensors in order; whether its result is one tensor."""

    module: fx.GraphModule
    single: bool


@cache
def _table() -> Mapping[Any, Any]:
    """PyTorch's decompositions of all operators but those that have a lowering."""
    everything: Any = torch._decomp.core_aten_decompositions()
    return {op: rule for op, rule in everything.items() if str(op) not in LOWERINGS}


def decompose(name: str, node: fx.Node, fake_mode: Any) -> Decomposition | None:
    """The decomposition of a node's operator for the shapes of its arguments; None where there is none.

    ``name`` is the overload: that of the node, or the one that computes what the node's writes in place.
    """
    target = _overload(name)
    if target is None or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    if target not in _table() and not _is_composite(target):
        return None
    leaves, spec = pytree.tree_flatten(_fakes(node))
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def call(*tensors: torch.Tensor) -> Any:
        filled = list(leaves)
        for i, tensor in zip(at, tensors, strict=True):
            filled[i] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    try:
        with fake_mode, enable_python_dispatcher(), torch.no_grad():
            functional = torch.func.functionalize(call, remove="mutations_and_views")
            module = make_fx(functional, decomposition_table=dict(_table()))(*(leaves[i] for i in at))
    except Exception:  # whatever stops PyTorch's tracing, the operator can still be executed
        return None
    if any(n.target is target for n in module.graph.nodes):
        return None
    return Decomposition(module, isinstance(node.meta.get("val"), torch.Tensor))


def _fakes(node: fx.Node) -> Any:
    """The arguments of a node, fake values for nodes."""
    return pytree.tree_map(lambda v: v.meta.get("val") if isinstance(v, fx.Node) else v, (node.args, node.kwargs))


def takes_the_same(name: str, target: torch._ops.OpOverload) -> bool:
    """Whether this PyTorch has an operator overload of that name, which takes what another one does."""
    found = _overload(name)
    return found is not None and _types_taken(found)[: len(_types_taken(target))] == _types_taken(target)


def _types_taken(target: torch._ops.OpOverload) -> list[str]:
    return [str(argument.type) for argument in target._schema.arguments]


def result_of(name: str, node: fx.Node, fake_mode: Any) -> Any:
    """What an operator gives for the fake arguments of a node; None where PyTorch cannot tell."""
    target = _overload(name)
    args, kwargs = _fakes(node)
    try:
        with fake_mode, torch.no_grad():
            return target(*args, **kwargs) if target is not None else None
    except Exception:  # whatever an operator does on fake tensors
        return None


def _is_composite(target: torch._ops.OpOverload) -> bool:
    try:
        return target._can_decompose()
    except RuntimeError:  # an operator of TorchScript's, which has no kernels
        return False


def _overload(name: str) -> torch._ops.OpOverload | None:
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found if isinstance(found, torch._ops.OpOverload) else None
