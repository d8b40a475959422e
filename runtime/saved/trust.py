"""Which modules of Python are known by the version of their package, and need not be looked into."""

from __future__ import annotations

import sys
from functools import cache

# Packages that a model calls and does not consist of. Their versions are part of every key.
_KNOWN = ("torch", "numpy", "sympy", "tvm", "tvm_ffi", "safetensors", "smelt")
# Packages that no model computes with: what they hold never shows in a result.
_ASIDE = frozenset(
    {"tokenizers", "huggingface_hub", "hf_xet", "networkx", "PIL", "psutil", "httpx", "httpx2", "httpcore", "httpcore2"}
    | {"truststore", "requests", "urllib3", "certifi", "charset_normalizer", "idna", "tqdm", "yaml", "packaging"}
    | {"filelock", "fsspec", "rich", "typer", "click", "regex", "jinja2", "markupsafe", "pydantic", "anyio", "h11"}
    | {"typing_extensions", "pkg_resources", "setuptools", "importlib_metadata", "pytest", "_pytest", "pluggy"}
    # what asks servers for files, under the name of a session
    | {"transformers.utils.hub"}
)
# Parts of PyTorch that are Python models are made of: looked into, since users replace functions there.
_LOOKED_INTO = ("torch.nn.modules", "torch.nn.functional", "torch.nn.init", "torch.nn.attention", "torch.functional")

# Parts of PyTorch that it imports itself, and in which users may replace functions.
_NAMES = ("nn", "nn.functional", "nn.modules", "nn.init", "nn.utils", "functional", "linalg", "special", "fft", "ops")
_MORE = ("autograd", "sparse", "random", "amp", "overrides", "compiler", "backends", "utils", "utils.checkpoint")
PARTS = frozenset(f"torch.{name}" for name in _NAMES + _MORE)


@cache
def is_known(module: str) -> bool:
    """Whether a module, by its dotted name, belongs to the standard library or to a package known by its version."""
    if any(module == part or module.startswith(f"{part}.") for part in _LOOKED_INTO):
        return False
    if module in _ASIDE:
        return True
    root = module.partition(".")[0]
    return root in _KNOWN or root in _ASIDE or root in sys.stdlib_module_names or root == ""


def known_packages() -> tuple[str, ...]:
    """The packages that are known by their version."""
    return _KNOWN
