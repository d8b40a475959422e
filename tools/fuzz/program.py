"""What a random program is: a list of steps with tensors to call it with, printable as Python that stands alone."""

from __future__ import annotations

import itertools
import linecache
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "boolean": torch.bool,
}
SHORT = {dtype: name for name, dtype in DTYPES.items()}
_NAME = re.compile(r"\b[xbv]\d+\b")
_HEADER = """import torch
from math import inf, nan
from torch import nn
from torch.nn import functional as F

f64, f32, f16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
i64, i32, boolean = torch.int64, torch.int32, torch.bool
"""
_FOOTER = """
if __name__ == "__main__":
    import smelt

    fast = smelt.compile(Program().eval(), dynamic=DYNAMIC)
    for call in CALLS:
        print(smelt.verify(fast, *call))
"""

Call = tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """One statement: ``targets = source``, or ``source`` alone where it has none. ``op`` and ``dtype`` are what it is
    counted as: its operator, and the dtype of what that reads first."""

    op: str
    targets: tuple[str, ...]
    source: str
    dtype: str = ""

    @property
    def line(self) -> str:
        """The statement as Python."""
        return f"{', '.join(self.targets)} = {self.source}" if self.targets else self.source

    @property
    def reads(self) -> frozenset[str]:
        """The inputs, buffers and values that it names."""
        return names_in(self.source)


@dataclass(frozen=True)
class Program:
    """A module with one method, and the calls it is checked with.

    Attributes:
        inputs: the names of its arguments, ``x0``, ``x1`` …
        buffers: its buffers by name, ``b0`` …, which steps may write to.
        steps: its statements in order; their targets are ``v0``, ``v1`` …
        outputs: expressions of the tuple that it returns.
        calls: the arguments of each call; the first is what it is captured with.
        dynamic: whether it is captured for all sizes.
    """

    inputs: tuple[str, ...]
    buffers: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    dynamic: bool = True

    def source(self, note: str = "") -> str:
        """The program as Python source that stands alone; run by itself it verifies."""
        calls = f"DYNAMIC = {self.dynamic}\n{self._calls()}"
        parts = [f'"""{note}"""\n' if note else "", _HEADER, "\n\n", self._module(), "\n\n", calls]
        return "".join(parts) + "\n" + _FOOTER

    def _module(self) -> str:
        lines = ["class Program(nn.Module):"]
        if self.buffers:
            lines += ["    def __init__(self):", "        super().__init__()"]
            lines += [f'        self.register_buffer("{n}", {literal(t)})' for n, t in self.buffers.items()] + [""]
        lines.append(f"    def forward({', '.join(['self', *self.inputs])}):")
        lines += [f"        {name} = self.{name}" for name in self.buffers]
        lines += [f"        {step.line}" for step in self.steps]
        lines.append(f"        return ({', '.join(self.outputs)},)")
        return "\n".join(lines) + "\n"

    def _calls(self) -> str:
        lines = ["CALLS = ["]
        for call in self.calls:
            lines += ["    (", *(f"        {literal(t)}," for t in call), "    ),"]
        return "\n".join([*lines, "]"]) + "\n"


def first_name(source: str) -> str | None:
    """The first input, buffer or value that a piece of source names."""
    found = _NAME.search(source)
    return found.group() if found else None


def names_in(source: str) -> frozenset[str]:
    """The inputs, buffers and values that a piece of source names."""
    return frozenset(_NAME.findall(source))


def literal(tensor: Tensor) -> str:
    """A tensor as Python source, every value exactly."""
    flat = f"torch.tensor([{', '.join(map(_number, tensor.flatten().tolist()))}], dtype={SHORT[tensor.dtype]})"
    return flat if tensor.ndim == 1 else f"{flat}.reshape({tuple(tensor.shape)!r})"


def _number(value: float | bool) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return repr(value)


# --- running ----------------------------------------------------------------------------------------------------------

_numbers = itertools.count()


@dataclass(frozen=True)
class Loaded:
    """The source of a program, executed: modules made from it, and the calls that stand in it."""

    names: dict[str, Any]

    @property
    def calls(self) -> Sequence[Call]:
        """The arguments of each call."""
        calls: Sequence[Call] = self.names["CALLS"]
        return calls

    @property
    def dynamic(self) -> bool:
        """Whether it is captured for all sizes."""
        return bool(self.names["DYNAMIC"])

    def module(self) -> nn.Module:
        """A new instance of the program, in eval mode."""
        made: nn.Module = self.names["Program"]()
        return made.eval()


def load(source: str, *, wide: bool = False) -> Loaded:
    """Execute a program's source. With ``wide`` every floating dtype that it names is float64."""
    name = f"<random program {next(_numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "random_program"}
    exec(compile(source, name, "exec"), names)
    if wide:
        names.update((short, torch.float64) for short, dtype in DTYPES.items() if dtype.is_floating_point)
    return Loaded(names)


def forget(loaded: Loaded) -> None:
    """Drop the source that tracebacks read, once a program is done with."""
    linecache.cache.pop(loaded.names["Program"].forward.__code__.co_filename, None)
