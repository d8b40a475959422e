"""The import of TVM's Python package, which :func:`load_tvm` makes shorter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INSTALL = "pip install 'apache-tvm>=0.27.0.post1'"
_DISCO = "tvm.runtime.disco"


def load_tvm() -> None:
    """Import TVM.

    TVM imports its distributed runtime although the library behind it is not loaded yet, and goes on without it. The
    error that says so comes with a backtrace through the compiler's library, which takes 0.6 s of 0.9. So that import
    fails at once here. A later ``import tvm.runtime.disco`` works as it would have.
    """
    if "tvm" not in sys.modules:
        with _absent(_DISCO):
            import tvm  # noqa: F401


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """A module that cannot be imported meanwhile."""
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
