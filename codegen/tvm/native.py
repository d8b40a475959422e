"""Native code, loaded and called without TVM's Python package: its runtime library takes milliseconds to load.

Importing the package takes a quarter of a second, which a process that finds its kernels in the cache does not need.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...ir.errors import BackendError
from .loading import INSTALL

try:
    import tvm_ffi
    from tvm_ffi.libinfo import load_lib_ctypes
except ImportError as error:  # told here: a target is found without TVM once its processor is kept
    raise BackendError(f"apache-tvm cannot be imported ({error}); install it again: {INSTALL}") from error

# turns in which an idle worker of the pool yields to others before it sleeps: some 5 ms, TVM's own 300,000 take 120 ms
_SPINS = ("TVM_THREAD_POOL_SPIN_COUNT", "10000")

_pool = threading.local()  # TVM's thread pool is one for each thread that calls it


def _forked() -> None:
    """In a child: the pool of the thread that forked, if it had one, has lost its threads, and would wait forever."""
    _pool.lost = getattr(_pool, "lost", False) or hasattr(_pool, "size")
    _pool.__dict__.pop("size", None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@lru_cache(maxsize=1)
def folder() -> Path:
    """Where TVM's package lies.

    Raises:
        ImportError: it is not installed.
    """
    spec = find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("apache-tvm is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache(maxsize=1)
def _runtime() -> Any:
    """TVM's runtime library in the process, as its package loads it; a library is in a process once."""
    os.environ.setdefault(*_SPINS)
    return load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=[folder() / "lib"])


@lru_cache(maxsize=1)
def _compiler() -> Any:
    """TVM's compiler, a library of a quarter of a gigabyte that running kernels does not need."""
    _runtime()
    return load_lib_ctypes("tvm", "tvm_compiler", "RTLD_LOCAL", extra_lib_paths=[folder() / "lib"])


def load_libraries() -> tuple[Any, ...]:
    """TVM's libraries in the process, the compiler's too."""
    return _runtime(), _compiler()


def global_function(name: str) -> Any:
    """A function that TVM's compiler registers."""
    _compiler()
    return tvm_ffi.get_global_func(name)


def tvm_version() -> str:
    """The installed version of TVM."""
    return version_of("apache-tvm")


@lru_cache(maxsize=1)
def host_cpu() -> str:
    """LLVM's name of this machine's processor."""
    return str(global_function("target.llvm_get_system_cpu")())


def load(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Host functions of a library that ``build`` made and ``export_library`` wrote."""
    _runtime()
    library = tvm_ffi.load_module(str(path))
    return {name: library[name] for name in names}


def argument(tensor: Any) -> Any:
    """A tensor of PyTorch's as host functions take it, in the same memory: as itself it is converted in each call."""
    return tvm_ffi.from_dlpack(tensor)


def set_threads(count: int) -> None:
    """Size TVM's thread pool, within the limit of ``TVM_NUM_THREADS``. Cheap where it has that size already.

    Raises:
        BackendError: the process was forked by this thread after it had run kernels.
    """
    if getattr(_pool, "size", None) != count:
        if getattr(_pool, "lost", False):
            raise BackendError(
                "this process was forked after kernels had run in the thread that forked, and its thread pool is gone: "
                "fork before the first call, or call from a new thread"
            )
        _runtime()
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, count)
        _pool.size = count
