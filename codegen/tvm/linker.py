"""The compiler driver that links object files, as the environment names it."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import suppress

_DRIVERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")


def linker_command() -> list[str]:
    """The words of ``CXX`` or ``CC``, as ``ccache g++``, or the first usual driver on the path; none without one."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    if not named:
        return [found for found in map(shutil.which, _DRIVERS) if found][:1]
    words = named.split()
    with suppress(ValueError):  # a quote that does not end
        words = shlex.split(named)
    found = shutil.which(words[0]) if words else None
    return [found, *words[1:]] if found else []
