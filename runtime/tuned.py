"""The schedules that were chosen for programs by tuning, as ``compile`` looks them up.

A choice counts where it was made for the same program, target, threads and versions, against the schedule that is still
the default one, and where it is in the program's space: nothing that a file says can make a kernel that was never built
and checked for that space.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import sympy
from torch import Tensor

from ..codegen.program import Program
from ..codegen.schedule import Schedule, default_schedule
from ..codegen.space import space
from .cache import KernelCache
from .executable import Executable
from .options import Options
from .target import Target
from .tuner_lock import LOCK, read_lock
from .tuner_records import FILE, Choice, Records, key_of, record_to_dict, versions

Sizes = Mapping[sympy.Symbol, int]


class Tuned:
    """Gives the schedule that was chosen for a program; None where none was.

    Args:
        target: what kernels are compiled for.
        choices: all that are known; of several for one program the nearest in sizes counts, of equals the last.
        sizes: that the model is called at first, by symbol.
    """

    def __init__(self, target: Target, choices: Iterable[Choice], sizes: Sizes | None = None) -> None:
        self.target = target
        self.sizes = {str(symbol): size for symbol, size in (sizes or {}).items()}
        self._choices = list(choices)

    def __call__(self, program: Program) -> Schedule | None:
        """The schedule of a program."""
        if not self._by_key:
            return None
        found = self._by_key.get(key_of(program, self.target), ())
        usable = [choice for choice in found if fault_of(choice, program, self.target) is None]
        return min(usable, key=self._distance).schedule if usable else None

    @cached_property
    def _by_key(self) -> dict[str, list[Choice]]:
        """The last choices first."""
        found: dict[str, list[Choice]] = {}
        known = versions() if self._choices else ""
        for choice in reversed(self._choices):
            if choice.versions == known:
                found.setdefault(choice.key, []).append(choice)
        return found

    @property
    def digest(self) -> str:
        """What changes with the choices: part of a key under which something is kept that is made by them."""
        if not self._by_key:
            return ""
        text = json.dumps([[record_to_dict(c) for c in self._by_key[key]] for key in sorted(self._by_key)], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _distance(self, choice: Choice) -> float:
        shared = choice.sizes.keys() & self.sizes.keys()
        return sum(abs(math.log2(max(choice.sizes[s], 1) / max(self.sizes[s], 1))) for s in shared)


def fault_of(choice: Choice, program: Program, target: Target) -> str | None:
    """Why a choice for a program does not count any more; None where it does."""
    if choice.versions != versions():
        return "made with another version"
    if choice.default != default_schedule(program, target.machine):
        return "the default schedule is another one now"
    if choice.schedule not in space(program, target.machine):
        return "the schedule is not in the space"
    return None


def tuned_for(target: Target, cache: KernelCache | None, sizes: Sizes | None = None) -> Tuned:
    """What is known of a target: the user's records, unless nothing is kept, and over them smelt.lock."""
    kept = Records.of_user(cache).choices() if cache is not None else []
    return Tuned(target, [*kept, *read_lock(Path(LOCK))], sizes)


def schedules_for(options: Options, cache: KernelCache | None, sizes: Sizes) -> Tuned | None:
    """The schedules that a model is compiled with; None for the default ones."""
    return None if options.tune == "off" else tuned_for(options.target, cache, sizes)


def tuned_now(
    executable: Executable, tensors: Sequence[Tensor], sizes: Sizes, target: Target, cache: KernelCache | None
) -> Tuned:
    """The schedules after the kernels of an executable, as far as they are not tuned yet, were tuned at some sizes."""
    # only who asks for it pays for importing it
    from .roofs import roofs_of
    from .tuner import Settings, Tuner, progress_of
    from .tuner_task import tasks_of

    with tempfile.TemporaryDirectory() as folder:
        records = Records.of_user(cache) if cache is not None else Records(Path(folder) / FILE)
        kernels = progress_of(tasks_of(executable, tensors, sizes), target, roofs_of(target, cache))
        found = Tuner(kernels, target, records, Settings(resume=True)).run()
    choices = [kernel.choice for kernel in found if kernel.choice is not None]
    known = Records.of_user(cache).choices() if cache is not None else []
    return Tuned(target, [*known, *read_lock(Path(LOCK)), *choices], sizes)
