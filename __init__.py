"""smelt compiles PyTorch Transformers for inference: a graph in, a small set of fused kernels out.

``fast = smelt.compile(model)`` is called as the model is. ``fast.ir()`` and ``fast.report()`` show what became of it,
and ``smelt.verify(fast, *args)`` holds its results against PyTorch's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .ir.errors import (
    BackendError,
    CacheError,
    CaptureError,
    CheckError,
    ExpectationError,
    GraphError,
    InputError,
    ParseError,
    QuantizationError,
    SmeltError,
    UnsupportedError,
    VerifyError,
)

if TYPE_CHECKING:
    from .rewrites.quantization import Quantization
    from .rewrites.registry import register_rule, unregister_rule
    from .rewrites.rule import Rule
    from .runtime.compile import compile
    from .runtime.module import CompiledModule
    from .runtime.target import Target
    from .runtime.verify import verify

# Loaded when they are first asked for: the pipeline behind them takes longer to import than smelt may.
_LAZY = {
    "CompiledModule": "runtime.module",
    "Quantization": "rewrites.quantization",
    "Rule": "rewrites.rule",
    "Target": "runtime.target",
    "compile": "runtime.compile",
    "register_rule": "rewrites.registry",
    "unregister_rule": "rewrites.registry",
    "verify": "runtime.verify",
}

__all__ = [
    "BackendError",
    "CacheError",
    "CaptureError",
    "CheckError",
    "CompiledModule",
    "ExpectationError",
    "GraphError",
    "InputError",
    "ParseError",
    "Quantization",
    "QuantizationError",
    "Rule",
    "SmeltError",
    "Target",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "compile",
    "register_rule",
    "unregister_rule",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
