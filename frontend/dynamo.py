"""The graphs that Dynamo hands to a backend, as captures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState
from torch._guards import tracing as tracing_context

from .arguments import Leaf
from .capture import Capture
from .export import capture_request
from .program import Request


def lower_fx(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    fallback: Literal["allow", "error"] = "allow",
    static: bool = False,
    around: torch.dtype | None = None,
    device: str = "cpu",
) -> Capture:
    """Capture one of Dynamo's graphs, through ``torch.export`` as any module.

    A dim is symbolic where Dynamo says so, and dims are one size where Dynamo's symbols are one. Its guards hold where
    the result is called; those of the capture are fewer.

    Args:
        gm: the graph, at the level of torch functions. Tensors that it holds become weights.
        example_inputs: what Dynamo passes: tensors, real or fake, and integers, symbolic or not.
        fallback: as for :func:`~smelt.frontend.export.capture`.
        static: make the sizes of the example inputs those of every call.
        around: the dtype that autocast casts to where the graph was traced; None where it was off.
        device: the kind of device that this is the autocast of.

    Raises:
        CaptureError, UnsupportedError: as for :func:`~smelt.frontend.export.capture`.
        TensorifyScalarRestartAnalysis: for Dynamo, which then traces again with the graph's floats as constants.
    """
    _specialise_floats(gm)
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    leaf_of = _static_leaf if static else _leaf
    leaves = tuple(leaf_of(n, value) for n, value in zip(placeholders, example_inputs, strict=True))
    spec = pytree.tree_flatten((tuple(range(len(leaves))), {}))[1]
    request = Request(GraphCall(gm, leaves, around, device), leaves, spec, None, fallback)
    # Dynamo is still at work: without this, PyTorch would trace into its fake mode and add to its guards
    with tracing_context(None), torch.autocast(device, enabled=False):
        return capture_request(request, gm)


def _specialise_floats(gm: fx.GraphModule) -> None:
    """Ask Dynamo for constants where it made inputs of Python floats, as it does under ``dynamic=True``.

    They are the epsilons and scales of a model: attributes of operators, which no kernel takes as data.
    """
    restart = False
    for node in gm.graph.nodes:
        memo = getattr(node.meta.get("example_value"), "item_memo", None)
        name = getattr(memo.node._expr, "name", None) if isinstance(memo, torch.SymFloat) else None
        if node.op == "placeholder" and name is not None and not TensorifyState.should_specialize(name):
            TensorifyState.specialize(name)
            restart = True
    if restart:
        raise TensorifyScalarRestartAnalysis


def _leaf(node: fx.Node, value: Any) -> Leaf:
    """How an input is traced: tensors by fresh ones of their sizes, symbolic integers by the length of one."""
    seen = node.meta.get("example_value", value)
    if isinstance(value, Tensor):
        shape = seen.shape if isinstance(seen, Tensor) else value.shape
        names = {axis: name for axis, size in enumerate(shape) if (name := _name(size)) and not name.isdigit()}
        axes = {axis: name if name.isidentifier() else "" for axis, name in names.items()}
        stand_in = torch.empty([_number(d) for d in value.shape], dtype=value.dtype, device=value.device)
        return Leaf(node.name, stand_in, axes, strides=_strides(value))
    if isinstance(seen, torch.SymInt):
        name = _name(seen)
        return Leaf(node.name, torch.empty(_number(value)), {0: name}, size=name)
    return Leaf(node.name, value)


def _static_leaf(node: fx.Node, value: Any) -> Leaf:
    return Leaf(node.name, value, strides=_strides(value)) if isinstance(value, Tensor) else Leaf(node.name, value)


def _strides(value: Tensor) -> tuple[int, ...] | None:
    """The strides of an input that is not row-major: whether ``reshape`` copies depends on them."""
    return None if value.is_contiguous() else tuple(_number(stride) for stride in value.stride())


def _name(size: Any) -> str:
    return str(size.node.expr) if isinstance(size, torch.SymInt) else ""


def _number(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


class GraphCall(nn.Module):
    """One of Dynamo's graphs as a module of tensors, its nodes' origins kept.

    The autocast that is around its calls, to this dtype, is a region of it like those within: only what the graph
    computes is cast, and not what is done to it while it is captured.
    """

    def __init__(
        self, gm: fx.GraphModule, leaves: Sequence[Leaf], around: torch.dtype | None = None, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.model = gm
        self._around, self._device = around, device
        self._leaves = leaves

    def forward(self, *tensors: Tensor) -> Any:
        """Run the graph, each integer that is a size taken from the tensor that stands for it."""
        given = iter(tensors)
        values: list[Any] = []
        for leaf in self._leaves:
            if leaf.size:
                values.append(next(given).shape[0])
            else:
                values.append(next(given) if leaf.is_tensor else leaf.value)
        cast = nullcontext() if self._around is None else torch.autocast(self._device, self._around)
        with cast, fx.traceback.preserve_node_meta():
            return fx.Interpreter(self.model).run(*values)
