"""The linker: what makes a shared library, so that kernels can be kept between processes. Running needs none."""

from __future__ import annotations

from functools import lru_cache

LINKER_ADVICE = "no C or C++ compiler was found to link them with; install gcc or clang, or name one in CXX"


@lru_cache(maxsize=1)
def find_linker() -> str | None:
    """The compiler driver that links: ``CXX`` or ``CC`` of the environment, or the first usual one on the path."""
    from ..codegen.tvm.linker import linker_command  # imported here: another backend needs no linker

    return next(iter(linker_command()), None)
