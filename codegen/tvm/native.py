"""Native code, loaded and called without TVM's Python package: its runtime library takes milliseconds to load.

Importing the package takes a quarter of a second, which a process that finds its kernels in the cache does not need.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm_ffi.libinfo import load_lib_ctypes

_pool = threading.local()  # TVM's thread pool is one for each thread that calls it


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
def load_libraries() -> tuple[Any, ...]:
    """TVM's libraries in the process, as its package loads them; a library is in a process once."""
    paths = [folder() / "lib"]
    kinds = (("tvm_runtime", "RTLD_GLOBAL"), ("tvm_compiler", "RTLD_LOCAL"))
    return tuple(load_lib_ctypes("tvm", name, mode, extra_lib_paths=paths) for name, mode in kinds)


def global_function(name: str) -> Any:
    """A function that TVM's libraries register."""
    load_libraries()
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
    load_libraries()
    library = tvm_ffi.load_module(str(path))
    return {name: library[name] for name in names}


def set_threads(count: int) -> None:
    """Size TVM's thread pool, within the limit of ``TVM_NUM_THREADS``. Cheap where it has that size already."""
    if getattr(_pool, "size", None) != count:
        global_function("runtime.config_threadpool")(1, count)
        _pool.size = count
