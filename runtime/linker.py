"""The linker: what makes a shared library, so that kernels can be kept between processes. Running needs none."""

from __future__ import annotations

import os
import shutil
from functools import lru_cache

LINKER_ADVICE = "no C or C++ compiler was found to link them with; install gcc or clang, or name one in CXX"
_DRIVERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")


@lru_cache(maxsize=1)
def find_linker() -> str | None:
    """The compiler driver that links: ``CXX`` or ``CC`` of the environment, or the first usual one on the path."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    if named:
        return shutil.which(named.split()[0])
    return next((found for found in map(shutil.which, _DRIVERS) if found), None)
