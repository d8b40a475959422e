"""Garbage collection put off while a model is compiled."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection meanwhile.

    A process that holds a model has millions of objects, and tracing makes many more that are kept: each full
    collection takes a third of a second and frees next to nothing. It is put off for all threads.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
