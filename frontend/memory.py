"""Mutation resolved: values of FX nodes where some of them write to memory that others see.

PyTorch's fake tensors know which values share memory. The first node of such a group owns it; the others are views,
made again from the owner's value where that changed since. A write to a view is put back into the owner.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.node import Node
from .aten_index import _select_scatter as put_position
from .aten_index import _slice_scatter as put_slice
from .decompose import takes_the_same
from .origins import origin_of
from .sizes import Sizes
from .table import Call, NeedsFunctional, cast, expand, permute, reshape


class Memory:
    """The values of a graph's nodes while it is lowered, and which of them share memory."""

    def __init__(self, call: Callable[..., Any], number: Callable[[Any], Any], sizes: Sizes) -> None:
        self._call = call  # lowers a call of an operator
        self._number = number  # lowers a number
        self._sizes = sizes
        self._values: dict[fx.Node, Any] = {}
        self._made: dict[fx.Node, int] = {}  # the version of the owner that a value was read from
        self._owner: dict[int, fx.Node] = {}
        self._shared: set[int] = set()  # memory that several tensors of the caller's are in
        self._version: dict[fx.Node, int] = {}
        self._aliases: dict[fx.Node, fx.Node] = {}

    def define(self, node: fx.Node, value: Any) -> None:
        """Enter the value of a node."""
        owner = self._owner_of(node, claim=True)
        self._values[node] = value
        if owner is not None:
            self._made[node] = self._version.get(owner, 0)

    def alias(self, node: fx.Node, other: fx.Node) -> None:
        """Enter a node that is another one: what an operator in place returns."""
        self._aliases[node] = other

    def read(self, value: Any) -> Any:
        """An argument of a node with every node in it replaced by its present value."""
        if isinstance(value, fx.Node):
            return self._present(value)
        if isinstance(value, list | tuple):
            return [self.read(v) for v in value]
        if isinstance(value, dict):
            return {k: self.read(v) for k, v in value.items()}
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._number(value)
        if isinstance(value, slice):
            return slice(self.read(value.start), self.read(value.stop), self.read(value.step))
        return value

    def write(self, node: fx.Node, value: Node) -> None:
        """Change the memory that a node's value lives in.

        Raises:
            NeedsFunctional: the view is not one that can be put back.
            UnsupportedError: the memory is that of several weights or arguments.
        """
        node = self._resolved(node)
        if node.meta["val"].untyped_storage()._cdata in self._shared:
            raise UnsupportedError(f"a write to {node.name}, which shares its memory with another tensor of the model")
        owner = self._owner_of(node, claim=False)
        if owner is None:
            raise NeedsFunctional(f"a write to {node.name}, whose memory is not known")
        while node is not owner:
            base = self._base(node)
            value = self._put_back(node, base, value)
            node = base
        self._version[owner] = self._version.get(owner, 0) + 1
        self._values[owner] = value
        self._made[owner] = self._version[owner]

    def written(self) -> dict[fx.Node, Node]:
        """Placeholders and attributes that were written, with what they became."""
        outer = ("placeholder", "get_attr")
        return {node: self._values[node] for node in self._version if node.op in outer}

    # --- sharing -----------------------------------------------------------------------------------------------------

    def _owner_of(self, node: fx.Node, claim: bool) -> fx.Node | None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        key = value.untyped_storage()._cdata
        if claim and key not in self._owner:
            self._owner[key] = node
        owner = self._owner.get(key)
        if owner is not None and owner is not node and node.op in ("placeholder", "get_attr"):
            # each stands for itself, as long as nobody writes
            self._shared.add(key)
            return node
        return owner

    def _resolved(self, node: fx.Node) -> fx.Node:
        while node in self._aliases:
            node = self._aliases[node]
        return node

    def _present(self, node: fx.Node) -> Any:
        """A node's value, made again from its owner's where that was written since."""
        node = self._resolved(node)
        owner = self._owner_of(node, claim=False)
        if owner is None or self._made.get(node, 0) == self._version.get(owner, 0):
            return self._values.get(node)
        chain = [node]
        while self._made.get(chain[-1], 0) != self._version[owner] and chain[-1] is not owner:
            chain.append(self._base(chain[-1]))
        for view in reversed(chain[:-1]):
            self._values[view] = self._again(view)
            self._made[view] = self._version[owner]
        return self._values[node]

    def _base(self, view: fx.Node) -> fx.Node:
        """The operand whose memory a view shows."""
        for operand in view.all_input_nodes:
            whole = operand
            if not isinstance(operand.meta.get("val"), torch.Tensor) and operand.all_input_nodes:
                whole = operand.all_input_nodes[0]  # one of several views, as split gives
            mine, its = view.meta["val"], whole.meta.get("val")
            if isinstance(its, torch.Tensor) and its.untyped_storage()._cdata == mine.untyped_storage()._cdata:
                return self._resolved(whole)
        raise NeedsFunctional(f"{view.name} shares memory in an unknown way")

    def _again(self, view: fx.Node) -> Any:
        """A view of its base's present value; one of several views by making all of them."""
        several = view.target is operator.getitem
        maker: Any = view.args[0] if several else view
        if not isinstance(maker.target, torch._ops.OpOverload):
            raise NeedsFunctional(f"{maker.name} shares memory in an unknown way")
        fakes = maker.meta["val"] if several else [maker.meta["val"]]
        types = tuple(self._sizes.type_of(v) for v in fakes)
        made = self._call(maker, str(maker.target), self, origin_of(maker), types)
        return made[view.args[1]] if several else made

    # --- writing back ------------------------------------------------------------------------------------------------

    def _put_back(self, view: fx.Node, base: fx.Node, value: Node) -> Node:
        """The base's value with the view's part of it replaced."""
        current: Node = self._present(base)
        name = str(view.target)
        call = Call(name, (current.tensor_type,), self._sizes)
        args = self.read(view.args[1:])
        if name in _SAME:
            return reshape(cast(value, current.dtype), current.shape)
        if name in _WRITERS:
            return _WRITERS[name](call, current, value, *args)
        raise NeedsFunctional(f"a write through {name}")


# views that hold all elements of their base in the same order
_SAME = {
    f"aten.{name}"
    for name in (
        "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "alias.default", "detach.default",
        "contiguous.default", "to.dtype", "to.device", "to.dtype_layout", "to.other", "lift_fresh_copy.default",
        "view_as.default", "ravel.default",
    )
}  # fmt: skip


def _put_permuted(call: Call, base: Node, value: Node, dims: Any) -> Node:
    rank = base.tensor_type.rank
    order = [d % rank for d in dims]
    return permute(value, [order.index(d) for d in range(rank)])


def _put_transposed(call: Call, base: Node, value: Node, a: int = -2, b: int = -1) -> Node:
    rank = base.tensor_type.rank
    order = list(range(rank))
    if rank > 1:
        order[a], order[b] = order[b], order[a]
    return permute(value, order)


def _put_expanded(call: Call, base: Node, value: Node, *_: Any) -> Node:
    """What a place in memory holds after a write through a view that has it several times.

    PyTorch writes to such views only what is one for all elements, but not always to all of them: of those that share a
    place, the first that is not what it was is the one that was written.
    """
    new = value.tensor_type.rank - base.tensor_type.rank
    repeated = [at for at, size in enumerate(value.shape) if at < new or base.shape[at - new] != size]
    if any(value.shape[at] == 0 for at in repeated):
        return base
    old = expand(reshape(base, (*[1] * new, *base.shape)), value.shape)
    changed = _differs(value, old)
    for at in repeated:
        first = ops.argmax(ops.cast(changed, dtype=torch.int64), dim=at, keepdim=True)
        value, changed = ops.gather(value, first, dim=at), ops.gather(changed, first, dim=at)
    return ops.where(reshape(changed, base.shape), reshape(value, base.shape), base)


def _differs(a: Node, b: Node) -> Node:
    """Where two nodes of one type differ, also in the sign of a zero; NaN is NaN."""
    differs = ops.ne(a, b)
    if not a.dtype.is_floating_point:
        return differs
    one = ops.scalar_like(1.0, a)
    sign = ops.ne(ops.div(one, a), ops.div(one, b))
    number = ops.bit_or(ops.eq(a, a), ops.eq(b, b))
    return ops.bit_and(ops.bit_or(differs, sign), number)


_WRITERS: dict[str, Callable[..., Node]] = {
    "aten.slice.Tensor": put_slice,
    "aten.select.int": put_position,
    "aten.permute.default": _put_permuted,
    "aten.transpose.int": _put_transposed,
    "aten.t.default": _put_transposed,
    "aten.expand.default": _put_expanded,
}

_INPLACE_NAMES = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__iand__": "__and__"}


def functional_name(target: torch._ops.OpOverload) -> str:
    """The overload that computes what one in place writes: ``aten.add.Tensor`` for ``aten.add_.Tensor``.

    Raises:
        NeedsFunctional: it changes more than the elements of its first argument.
    """
    namespace, name, overload = str(target).split(".")
    if name in _INPLACE_NAMES:
        return f"{namespace}.{_INPLACE_NAMES[name]}.{overload}"
    packet = f"{namespace}.{_OTHER_NAMES.get(name, name.removesuffix('_'))}"
    if name.endswith("_") and name not in _OF_SHAPE:
        for functional in (f"{packet}.{overload}", f"{packet}.Tensor", f"{packet}.default"):
            if takes_the_same(functional, target):
                return functional
    raise NeedsFunctional(f"{target}")


_OTHER_NAMES = {"normal_": "normal_functional"}

# in place on the shape or the storage rather than on the elements
_OF_SHAPE = {
    "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "resize_", "resize_as_", "set_",
    "as_strided_", "data_set_", "rename_",
}  # fmt: skip


def written_argument(node: fx.Node, target: torch._ops.OpOverload) -> fx.Node:
    """The node that an operator in place writes to.

    Raises:
        NeedsFunctional: it writes to several, or to one given by keyword.
    """
    written = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    first = node.args[0] if node.args else None
    leads = len(written) == 1 and written[0].name == target._schema.arguments[0].name
    if not leads or not isinstance(first, fx.Node):
        raise NeedsFunctional(f"{target}")
    return first
