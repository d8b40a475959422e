"""Lowerings of recurrent layers: for each layer and direction a linear layer over all inputs, and the recurrence."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import ops
from ..ir.node import Node
from .aten_view import pick
from .table import Call, NotLowered, full, lowers, permute

KINDS = {
    "aten.rnn_tanh.input": "tanh",
    "aten.rnn_relu.input": "relu",
    "aten.lstm.input": "lstm",
    "aten.gru.input": "gru",
}


@lowers("rnn_tanh.input", "rnn_relu.input", "gru.input")
def _recurrent(
    call: Call,
    x: Node,
    hx: Node,
    params: Sequence[Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Node, ...]:
    return _layers(call, x, [hx], params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


@lowers("lstm.input")
def _lstm(
    call: Call,
    x: Node,
    hx: Sequence[Node],
    params: Sequence[Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Node, ...]:
    return _layers(call, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _layers(
    call: Call,
    x: Node,
    initial: Sequence[Node],
    params: Sequence[Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Node, ...]:
    if dropout and train:
        raise NotLowered("a recurrent layer with dropout in training mode")
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    if each != (4 if has_biases else 2):
        raise NotLowered("a recurrent layer with a projection")
    y = permute(x, (1, 0, 2)) if batch_first else x  # [T, B, I]
    finals: list[tuple[Node, ...]] = []
    for layer in range(num_layers):
        sides = []
        for direction in range(directions):
            at = layer * directions + direction
            states = [pick(h, 0, at) for h in initial]
            side, *final = _one(KINDS[call.name], y, params[each * at : each * (at + 1)], states, direction == 1)
            sides.append(side)
            finals.append(tuple(final))
        y = sides[0] if directions == 1 else ops.concat(*sides, dim=2)
    last = (ops.concat(*(ops.unsqueeze(s, 0) for s in states), dim=0) for states in zip(*finals, strict=True))
    return (permute(y, (1, 0, 2)) if batch_first else y, *last)


def _one(kind: str, x: Node, params: Sequence[Node], states: list[Node], reverse: bool) -> tuple[Node, ...]:
    """One layer in one direction: its outputs [T, B, H] and its final states [B, H]."""
    w_input, w_hidden, *biases = params
    gates = ops.linear(x, w_input, *biases[:1])
    bias = biases[1] if biases else full(w_hidden.shape[:1], 0, x.dtype)
    return ops.results(ops.recurrence(gates, w_hidden, bias, *states, kind=kind, reverse=reverse))
