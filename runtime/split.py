"""Models that are more than one graph: Dynamo splits them where their Python depends on values, and runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .entry import Entry
from .options import Options

if TYPE_CHECKING:
    from .graph_function import GraphFunction


class SplitModel:
    """A model whose graphs are compiled one by one, with Python between them.

    Attributes:
        reason: why it is not one graph.
    """

    def __init__(self, model: Callable[..., Any], options: Options, reason: str) -> None:
        self.reason = reason
        self._functions: list[GraphFunction] = []
        self._options = options
        self._lock = threading.RLock()
        self._run = torch.compile(model, backend=self._compile, dynamic=options.dynamic is not False)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's result."""
        with self._lock, torch.no_grad():
            return self._run(*args, **kwargs)

    def _compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        # Dynamo takes longer to import than all else of a warm start
        from .dynamo_backend import compile_graph
        from .graph_function import GraphFunction

        function = compile_graph(gm, example_inputs, self._options)
        if isinstance(function, GraphFunction):
            self._functions.append(function)
        return function

    @property
    def entries(self) -> list[Entry]:
        """The graphs, in the order in which they were first reached."""
        return [entry for function in self._functions for entry in function.entries]
