"""The import of TVM's Python package, which :func:`load_tvm` makes shorter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

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


def load_compiler() -> None:
    """Import of TVM what compiles kernels for a processor, in a process that does nothing else: a third of it.

    TVM's graph language with its operators, and backends for GPUs, take the rest. In that process they can never be
    had: a placeholder stands where TVM's package names the former, and TVM is told by its own variable to leave out the
    latter.
    """
    if "tvm" not in sys.modules:
        os.environ["TVM_DEVICE_BACKEND_AUTOLOAD"] = "0"
        sys.modules["tvm.relax"] = ModuleType("tvm.relax")
        load_tvm()


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """A module that cannot be imported meanwhile."""
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
