"""smelt compiles PyTorch Transformers for inference: a graph in, a small set of fused kernels out.

``fast = smelt.compile(model)`` is called as the model is. ``fast.ir()`` and ``fast.report()`` show what became of it,
and ``smelt.verify(fast, *args)`` holds its results against PyTorch's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .ir.errors import (
    ArtifactError,
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
    from .runtime.artifact.export import Artifact, export
    from .runtime.artifact.load import load
    from .runtime.artifact.loaded import LoadedArtifact
    from .runtime.compile import compile
    from .runtime.cuda.errors import OutOfMemoryError
    from .runtime.module import CompiledModule
    from .runtime.target import Target
    from .runtime.verify import verify

# Loaded when they are first asked for: the pipeline behind them takes longer to import than smelt may.
_LAZY = {
    "Artifact": "runtime.artifact.export",
    "CompiledModule": "runtime.module",
    "LoadedArtifact": "runtime.artifact.loaded",
    "OutOfMemoryError": "runtime.cuda.errors",
    "Quantization": "rewrites.quantization",
    "Rule": "rewrites.rule",
    "Target": "runtime.target",
    "compile": "runtime.compile",
    "export": "runtime.artifact.export",
    "load": "runtime.artifact.load",
    "register_rule": "rewrites.registry",
    "unregister_rule": "rewrites.registry",
    "verify": "runtime.verify",
}

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendError",
    "CacheError",
    "CaptureError",
    "CheckError",
    "CompiledModule",
    "ExpectationError",
    "GraphError",
    "InputError",
    "LoadedArtifact",
    "OutOfMemoryError",
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
    "export",
    "load",
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
