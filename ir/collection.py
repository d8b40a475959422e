"""Garbage collection put off while a model is compiled."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_put_off: list[None] = []  # one for each block that put it off


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection meanwhile.

    A process that holds a model has millions of objects, and tracing makes many more that are kept: each full
    collection takes a third of a second and frees next to nothing. It is put off for all threads.

    At the end what was made meanwhile is looked at, and no more: Python would catch up on a full one at once.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    _put_off.append(None)
    try:
        yield
    finally:
        if 0 < gc.get_threshold()[0] < gc.get_count()[0]:
            gc.collect(0)
        _put_off.pop()
        gc.enable()


def collect_young() -> None:
    """Collect what was made since collection was put off: for when there is time. Nothing where it was not."""
    if _put_off:
        gc.collect(0)
