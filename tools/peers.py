"""What a model is benchmarked against. Each peer is made ready by compiling for, and running, one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..runtime.compile import compile
from .errors import ModelError
from .models import Model
from .timing import Runner

SMELT = "smelt"


def prepare(name: str, model: Model, threads: int) -> Runner:
    """A runner of the model on that many threads; the first call of it may still compile.

    Raises:
        ModelError: there is no such peer.
    """
    if name not in PEERS:
        raise ModelError(f"there is no peer {name!r}; there are: {', '.join(PEERS)}")
    torch.set_num_threads(threads)
    call = PEERS[name](model, threads)

    def run() -> Any:
        with torch.no_grad():
            return call(*model.args, **model.kwargs)

    return run


def _smelt(model: Model, threads: int) -> Callable[..., Any]:
    return compile(model.model, threads=threads)


def _eager(model: Model, threads: int) -> Callable[..., Any]:
    return model.model


def _inductor(model: Model, threads: int) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(model.model)
    return compiled


PEERS: Mapping[str, Callable[[Model, int], Callable[..., Any]]] = {
    SMELT: _smelt,
    "eager": _eager,
    "inductor": _inductor,
}
