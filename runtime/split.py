"""Models that are more than one graph: Dynamo splits them where their Python depends on values, and runs it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..ir.errors import CaptureError
from .entry import Entry
from .hooks import is_hooked
from .options import Options
from .stateful import kept_of

if TYPE_CHECKING:
    from .graph_function import GraphFunction

# Between our call and Dynamo's first attempt these alone are on the stack: nothing of the model has run.
_AROUND = (__file__, "torch/_dynamo/eval_frame.py", "torch/nn/modules/module.py")
_CONVERTS = "torch/_dynamo/convert_frame.py"


class Untraceable(Exception):
    """Dynamo failed at a call before anything of it ran; the message says why."""


class SplitModel:
    """A model whose graphs are compiled one by one, with Python between them.

    Attributes:
        reason: why it is not one graph.
    """

    def __init__(self, model: Callable[..., Any], options: Options, reason: str) -> None:
        self.reason = reason
        self._model = model
        self._functions: list[GraphFunction] = []
        self._options = options
        self._lock = kept_of(model).lock
        self._run = torch.compile(model, backend=self._compile, dynamic=options.dynamic is not False)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's result.

        Raises:
            Untraceable: Dynamo cannot follow the call, of which nothing has run: PyTorch may run it.
            CaptureError: it cannot follow a part of the call, and others have run.
        """
        # who has not imported it has no error of it
        from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

        try:
            with self._lock, torch.no_grad():
                return self._run(*args, **kwargs)
        except BackendCompilerFailed:  # ours, which says what it is about
            raise
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            if self._nothing_ran(error):
                raise Untraceable(reason) from error
            name = getattr(self._model, "__name__", type(self._model).__name__)
            raise CaptureError(
                f"{name} is split, and Dynamo failed at a part of it after others had run: {reason}\n"
                "Keep that part from it by torch.compiler.disable, or call the model itself, which is .original"
            ) from error

    def _nothing_ran(self, error: Exception) -> bool:
        """Whether Dynamo failed at the call as a whole."""
        if isinstance(self._model, nn.Module) and is_hooked(self._model):
            return False
        for frame, _ in traceback.walk_tb(error.__traceback__):
            path = frame.f_code.co_filename.replace("\\", "/")
            if path.endswith(_CONVERTS):
                return True
            if not path.endswith(_AROUND):
                return False
        return False

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
