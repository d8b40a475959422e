"""What decides a capture and its kernels besides the model: versions, settings of PyTorch, and what was asked for."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..options import Options
from ..precision import products_of
from ..tuned import schedules_for
from .kinds import Unsure

_PACKAGES = ("torch", "numpy", "sympy", "apache-tvm", "transformers")
_CONFIGS = ("torch._dynamo.config", "torch.fx.experimental._config", "torch._export.config", "torch._functorch.config")


def settings(options: Options) -> Iterator[str]:
    """The settings, one in a line.

    Raises:
        Unsure: one of them is of a kind that cannot be told from others.
    """
    yield from _versions()
    yield from _options(options)
    yield from _pytorch()


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    found = [f"python {sys.version}", f"machine {platform.machine()} {platform.system()}", f"smelt {own_digest()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} is absent")
    found.append(f"torch {torch.__version__} {torch.version.git_version}")
    return tuple(found)


@lru_cache(maxsize=1)
def own_digest() -> str:
    """The digest of smelt's own sources."""
    root = Path(__file__).resolve().parents[2]
    hashed = hashlib.sha256()
    for folder in ("ir", "frontend", "rewrites", "codegen", "runtime"):
        for path in sorted((root / folder).rglob("*.py")):
            hashed.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()


def _options(options: Options) -> Iterator[str]:
    if options.optimize != "rules" or options.check is not None or options.expect:
        raise Unsure("captures are kept without optimize=, check= and expect= only")
    if options.quantize is not None:
        raise Unsure("captures are kept without quantize= only")
    # not imported for this: whoever registered a rule has it loaded
    registry = sys.modules.get(f"{__package__.split('.')[0]}.rewrites.registry")
    if registry is not None and registry.has_added():
        raise Unsure("rules were registered by the user")
    asked = options.dynamic
    dynamic = asked if isinstance(asked, bool) else {name: dict(axes) for name, axes in asked.items()}
    yield f"target {options.target!r}"
    yield f"dynamic {dynamic!r}"
    yield f"fallback {options.fallback}"
    tuned = schedules_for(options, options.open_cache(), {})
    yield f"tune {options.tune} {tuned.digest if tuned else ''}"


def _pytorch() -> Iterator[str]:
    """The settings of PyTorch that a model may ask for, or that decide what its operators do."""
    native: Any = torch._C
    if native._len_torch_function_stack() or native._len_torch_dispatch_stack():
        raise Unsure("a mode of PyTorch is active, such as torch.device(...) as a context")
    values = {
        "dtype": torch.get_default_dtype(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": [products_of(backend) for backend in ("cuda", "mkldnn")],
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "cache": torch.is_autocast_cache_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "flush": torch.get_flush_denormal() if hasattr(torch, "get_flush_denormal") else None,
        "sdpa": [getattr(native, f"_get_{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math", "cudnn")],
        "order": list(map(int, native._get_sdp_priority_order())),
    }
    for name, value in values.items():
        yield f"torch {name} {value}"
    for name in _CONFIGS:
        module: Any = sys.modules.get(name)
        if module is not None:
            # what tracing sets for a while stays entered, with the value that it has by default
            for option, entry in sorted(module._config.items()):
                if module._is_default(option) or entry.alias is not None:
                    continue
                value = getattr(module, option)
                if value != entry.default:
                    yield f"{name} {option} {value!r}"
