"""Recurrent layers: the part that runs along time. The projection of the inputs is a ``linear`` before it."""

from __future__ import annotations

import torch

from ..node import REQUIRED, Node, Trait
from ..types import Dim, TensorType, TupleType
from .base import declare, is_float, require, require_dtype, same_dtype

GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}


def _recurrence_type(
    gates: TensorType, w: TensorType, bias: TensorType, *states: TensorType, kind: str, reverse: bool
) -> TupleType:
    require(kind in GATES, f"recurrence: unknown kind {kind!r}")
    same_dtype("recurrence", (gates, w, bias, *states))
    require_dtype("recurrence", gates, is_float)
    require(w.rank == 2 and gates.rank == 3 and bias.rank == 1, f"recurrence: {gates}, {w} and {bias} do not fit")
    hidden = w.shape[1]
    require(w.shape[0] == gates.shape[2] == bias.shape[0] == GATES[kind] * hidden, f"recurrence: {gates}, {w}, {bias}")
    require(len(states) == (2 if kind == "lstm" else 1), f"recurrence: {kind} with {len(states)} states")
    t, b, _ = gates.shape
    for s in states:
        require(s.shape == (b, hidden), f"recurrence: a state of {s} for {gates}")
    dtype = gates.dtype
    return TupleType((TensorType((t, b, hidden), dtype), *(TensorType((b, hidden), dtype) for _ in states)))


def step(
    kind: str, gates: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, states: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """One step in time: the new states, the hidden state first. Gate order is PyTorch's: i f g o; r z n."""
    h = states[0]
    inner = h @ w.T + bias
    if kind == "tanh":
        return (torch.tanh(gates + inner),)
    if kind == "relu":
        return (torch.relu(gates + inner),)
    if kind == "lstm":
        i, f, g, o = (gates + inner).chunk(4, -1)
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    (xr, xz, xn), (hr, hz, hn) = gates.chunk(3, -1), inner.chunk(3, -1)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return ((1 - z) * n + z * h,)


def _recurrence_value(
    gates: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, *states: torch.Tensor, kind: str, reverse: bool
) -> tuple[torch.Tensor, ...]:
    steps = range(gates.shape[0])
    outputs = {}
    for t in reversed(steps) if reverse else steps:
        states = step(kind, gates[t], w, bias, states)
        outputs[t] = states[0]
    empty = gates.new_empty((0, gates.shape[1], w.shape[1]))
    return (torch.stack([outputs[t] for t in steps]) if outputs else empty, *states)


def _recurrence_flops(node: Node) -> Dim:
    gates, w = node.inputs[:2]
    return gates.shape[0] * gates.shape[1] * (2 * w.shape[0] * w.shape[1] + 20 * w.shape[0])


# recurrence(gates [T, B, G H], w [G H, H], bias [G H], h [B, H] [, c [B, H]]) -> (y [T, B, H], h [, c])
# gates holds W x + b of the inputs; G is 1 (tanh, relu), 4 (lstm) or 3 (gru)
recurrence = declare(
    "recurrence",
    infer=_recurrence_type,
    evaluate=_recurrence_value,
    arity=(4, 5),
    attrs={"kind": REQUIRED, "reverse": False},
    traits={Trait.RECURRENCE},
    flops=_recurrence_flops,
)
