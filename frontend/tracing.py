"""The settings under which PyTorch traces a model for us."""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table

from ..ir.collection import no_collection
from .branches import Branch, recorded_branches
from .complexity import bounded
from .lean import lean
from .places import located
from .untouched import Written, assigned, untouched

_ONE_AT_A_TIME = threading.RLock()


def load_tracer() -> None:
    """Import what ``torch.export`` imports when it is first called, which takes a sixth of a second.

    A garbage collection meanwhile would look at all that the model's process has, and take longer than that.
    """
    with no_collection():
        importlib.import_module("torch.export._trace")
        importlib.import_module("sympy.tensor.tensor")  # with the first sum of sizes


@contextmanager
def tracing(root: nn.Module, written: Written | None = None) -> Iterator[list[Branch]]:
    """Trace a module for inference; yields the branches that the model's Python takes (see :mod:`.branches`).

    The module's attributes are put back afterwards; ``written`` gets what was set.
    """
    with ExitStack() as stack:
        # what follows changes PyTorch for all threads
        stack.enter_context(_ONE_AT_A_TIME)
        names = stack.enter_context(untouched(root))
        set_meanwhile = stack.enter_context(assigned(root))
        types = stack.enter_context(assigned(root, equal=True))
        stack.enter_context(torch.no_grad())
        # fused paths of nn.MultiheadAttention and nn.TransformerEncoderLayer: operators for one layout and one device
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for op, shapes in RECURRENT.items():
            stack.enter_context(_shapes_only(op, shapes))
        stack.enter_context(_quiet())
        stack.enter_context(_no_partial_graphs())
        stack.enter_context(located(root))
        stack.enter_context(bounded())
        stack.enter_context(lean())
        yield stack.enter_context(recorded_branches())
    if written is not None:
        written.names = sorted({*names, *set_meanwhile})
        written.types = types


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's remarks on its own internals, and on attempts that fail, from the user."""
    loggers = [logging.getLogger(name) for name in NOISY]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        for message in NEEDLESS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


@contextmanager
def _no_partial_graphs() -> Iterator[None]:
    """Keep ``torch.export`` from printing to stderr what it had traced of a model when that failed."""
    module: Any = importlib.import_module("torch.export._trace")  # where ``print`` has no other use
    if "print" in vars(module):  # a trace within a trace
        yield
        return
    module.print = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.print


NOISY = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")
NEEDLESS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # recurrent layers refresh their list of flat weights on every call, with equal values
    r"The tensor attributes? .*_flat_weights",
)


@contextmanager
def _shapes_only(op: Any, rule: Callable[..., Any]) -> Iterator[None]:
    """Find the shapes of a recurrent layer by a rule: PyTorch's own way unrolls it and so fixes the sequence length."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    decomposition, kernel = decomposition_table.get(op), op.py_kernels.get(key)
    if decomposition is not None:
        decomposition_table[op] = rule
    if kernel is not None:
        op.py_kernels[key] = rule
    op._dispatch_cache.clear()
    try:
        yield
    finally:
        if decomposition is not None:
            decomposition_table[op] = decomposition
        if kernel is not None:
            op.py_kernels[key] = kernel
        op._dispatch_cache.clear()


def _outputs(x: Tensor, h: Tensor, bidirectional: bool, batch_first: bool) -> Tensor:
    steps = x.shape[1 if batch_first else 0]
    if isinstance(steps, int) and steps == 0:  # calls of no steps are captured apart, with that size a number
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")  # as PyTorch's operators do
    return x.new_empty((*x.shape[:2], h.shape[2] * (2 if bidirectional else 1)))


def _one_state(
    x: Tensor, hx: Tensor, params: Any, biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _outputs(x, hx, bidirectional, batch_first), torch.empty_like(hx)


def _two_states(
    x: Tensor, hx: Any, params: Any, biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _outputs(x, hx[0], bidirectional, batch_first), torch.empty_like(hx[0]), torch.empty_like(hx[1])


RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.rnn_tanh.input: _one_state,
    torch.ops.aten.rnn_relu.input: _one_state,
    torch.ops.aten.gru.input: _one_state,
    torch.ops.aten.lstm.input: _two_states,
}
