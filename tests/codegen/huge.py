"""Kernels' text at sizes that no memory holds: every index that it forms, in Python's integers. Nothing is stored.

The functions of a file are run with a play of ``triton.language``: a number knows its value and the largest size that
any 32-bit number had of which it was computed, lane by lane. A lane that is read or written must have needed no more
than 32 bits for its address and its mask, and must lie inside of its tensor. Of a loop the first and the last round
are run.
"""

# mypy: ignore-errors

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import numpy as np
import sympy

from smelt.codegen.triton.file import HEADER, KernelFile
from smelt.codegen.triton.source import size_name
from smelt.codegen.triton.width import strides_of
from smelt.ir.types import concrete

LIMIT = 2**31 - 1


class Overflow(AssertionError):
    """A number of 32 bits was larger than it can be."""


class Outside(AssertionError):
    """An address was outside of its tensor."""


class Number:
    """Whole numbers, or 0 for others: what no index is computed of. ``bits`` is 64 where none can overflow."""

    __array_ufunc__ = None

    def __init__(self, value, bits=32, peak=0):
        self.value, self.bits = np.asarray(value, dtype=np.int64), bits
        self.peak = np.asarray(peak, dtype=np.int64)
        if bits == 32:
            self.peak = np.maximum(self.peak, np.abs(self.value))

    @property
    def dtype(self):
        return SimpleNamespace(element_ty=64)

    def to(self, bits):
        return Number(self.value, bits, self.peak)

    def __getitem__(self, place):
        place = tuple(None if p is None else p for p in place) if isinstance(place, tuple) else place
        return Number(self.value[place], self.bits, np.broadcast_to(self.peak, self.value.shape)[place])

    def __bool__(self):
        checked(self.peak, "a branch")
        return builtins.bool(self.value)

    def __add__(self, other):
        return other + self if isinstance(other, Address) else both(np.add, self, other)

    def __and__(self, other):
        """Both: of a lane that is off for one reason, other reasons do not matter."""
        a, b = number(self), number(other)
        small = np.where(a.value == 0, a.peak, LIMIT * 4), np.where(b.value == 0, b.peak, LIMIT * 4)
        off = np.minimum(*small)
        return Number((a.value != 0) & (b.value != 0), 64, np.where(off < LIMIT * 4, off, np.maximum(a.peak, b.peak)))

    def __neg__(self):
        return Number(-self.value, self.bits, self.peak)


def number(x):
    """A number of what may be one of Python's."""
    if isinstance(x, Number):
        return x
    # Triton takes a literal for a number of as many bits as it needs
    return Number(x, 32 if abs(x) <= LIMIT else 64) if isinstance(x, int) else Number(0, 64)


def both(function, a, b):
    """A function of two numbers."""
    a, b = number(a), number(b)
    return Number(function(a.value, b.value), max(a.bits, b.bits), np.maximum(a.peak, b.peak))


def compared(function, a, b):
    found = both(function, a, b)
    return Number(found.value, 64, found.peak)


def divided(function, a, b):
    if not b.all():
        raise ZeroDivisionError("a GPU gives any number for it")
    return function(a, b)


def quotient(a, b):
    return divided(np.floor_divide, a, b)


def rest(a, b):
    return divided(np.remainder, a, b)


for name, function in {"sub": np.subtract, "mul": np.multiply, "or": np.bitwise_or}.items():
    setattr(Number, f"__{name}__", lambda a, b, f=function: both(f, a, b))
    setattr(Number, f"__r{name}__", lambda a, b, f=function: both(f, b, a))
Number.__radd__ = Number.__add__
Number.__floordiv__ = lambda a, b: both(quotient, a, b)
Number.__rfloordiv__ = lambda a, b: both(quotient, b, a)
Number.__mod__ = lambda a, b: both(rest, a, b)
Number.__truediv__ = Number.__rtruediv__ = Number.__rshift__ = lambda a, b: value_like(a, b)
for name, function in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal
}.items():  # fmt: skip
    setattr(Number, f"__{name}__", lambda a, b, f=function: compared(f, a, b))


def value_like(*args, **_):
    """A value that no index is computed of, which varies as others do."""
    shapes = [np.shape(x.value) for x in args if isinstance(x, Number)]
    return Number(np.zeros(np.broadcast_shapes(*shapes), np.int64), 64)


def checked(peak, what):
    most = int(np.max(peak, initial=0))
    if most > LIMIT:
        raise Overflow(f"{what} took {most}")


class Address:
    """Places in a tensor of so many elements; ``index`` is what a load of them gives."""

    def __init__(self, name, count, index, offset=None):
        self.name, self.count, self.index = name, count, index
        self.offset = Number(0) if offset is None else offset
        self.dtype = SimpleNamespace(element_ty=64)

    def __add__(self, other):
        return Address(self.name, self.count, self.index, self.offset + other)


class Play:
    """``triton.language`` for one program of a launch.

    Attributes:
        most: the largest number of 32 bits that an address was computed of.
    """

    def __init__(self, program):
        self.program, self.most = program, 0
        self.names = {f"int{n}": 64 if n > 32 else 32 for n in (1, 8, 16, 32, 64)}
        self.names |= {f"float{n}": 64 for n in (16, 32, 64)} | {"bfloat16": 64, "constexpr": 32, "uint8": 32}

    def __getattr__(self, name):
        return self.names.get(name, value_like)

    def program_id(self, axis):
        return Number(self.program)

    def arange(self, low, high):
        return Number(np.arange(low, high))

    def zeros(self, shape, kind):
        return Number(np.zeros(np.shape(shape) and tuple(shape), np.int64), kind)

    def full(self, shape, value, kind):
        value = number(value)
        return Number(np.broadcast_to(value.value, tuple(shape)), kind, value.peak)

    def where(self, condition, a, b):
        c, a, b = number(condition), number(a), number(b)
        # the side that is not taken does not matter
        peak = np.maximum(c.peak, np.where(c.value != 0, a.peak, b.peak))
        return Number(np.where(c.value != 0, a.value, b.value), max(a.bits, b.bits), peak)

    def minimum(self, a, b, **_):
        return both(np.minimum, a, b)

    def maximum(self, a, b, **_):
        return both(np.maximum, a, b)

    def load(self, at, mask=None, other=0):
        self.check(at, mask)
        return Number(np.full(np.shape(at.offset.value), at.index), 64)

    def store(self, at, value, mask=None):
        self.check(at, mask)

    def check(self, at, mask):
        offset, on = at.offset, number(1 if mask is None else mask)
        shape = np.broadcast_shapes(offset.value.shape, on.value.shape)
        checked(on.peak, f"a mask of {at.name}")
        on = np.broadcast_to(on.value, shape) != 0
        place, peak = (np.broadcast_to(x, shape)[on] for x in (offset.value, offset.peak))
        checked(peak, f"an address in {at.name}")
        self.most = max(self.most, int(np.max(peak, initial=0)))
        if np.any(place < 0) or np.any(place >= at.count):
            raise Outside(f"{at.name} of {at.count} at {place.min()} to {place.max()}")

    def dot(self, a, b, acc, **_):
        return acc

    def broadcast_to(self, x, shape):
        x = number(x)
        return Number(np.broadcast_to(x.value, tuple(shape)), x.bits, x.peak)

    def _reduced(self, x, axis, **_):
        shape = list(np.shape(x.value))
        return Number(np.zeros([1 if i == axis else n for i, n in enumerate(shape)], np.int64), 64)

    def sum(self, x, axis, keep_dims=False):
        found = self._reduced(x, axis)
        return found if keep_dims else Number(np.squeeze(found.value, axis), 64)

    max = min = _reduced

    def reshape(self, x, shape):
        return Number(np.zeros(tuple(shape), np.int64), 64)


class Library:
    """What kernels call of ours."""

    def __init__(self, play):
        self.play = play

    def __getattr__(self, name):
        return value_like

    def dot(self, a, b, acc):
        return acc

    def int_floor_div(self, a, b):
        return both(quotient, a, b)

    def int_remainder(self, a, b):
        return number(a) % b

    def max_of(self, x, axis):
        return self.play._reduced(x, axis)

    min_of = product_of = max_of

    def first_of(self, x, best, position, axis):
        return self.play._reduced(x, axis)


def some_rounds(*args):
    """The first and the last number of a range."""
    numbers = [number(x) for x in args]
    low, high, step = (0, *numbers, 1) if len(args) == 1 else (*numbers, 1)[:3]
    low, high, step = (int(number(x).value) for x in (low, high, step))
    rounds = range(low, high, step)
    peak = max(int(x.peak) for x in numbers)
    for at in sorted({rounds[0], rounds[-1]} if len(rounds) else ()):
        yield Number(at, max(x.bits for x in numbers), peak)


def largest(file: KernelFile, sizes: Mapping[sympy.Symbol, int], index: int = 0, places: Iterable[int] = ()) -> int:
    """The largest number of 32 bits that an address of a file's functions is computed of, at some sizes.

    Args:
        index: what an index from data is.
        places: programs to run besides the first, the last, and some between.

    Raises:
        Overflow: a number does not fit.
        Outside: a tensor is read or written where it has nothing.
        ZeroDivisionError: something is divided by 0.
    """
    params = {p.name: p for p in (*file.params, *file.scratch)}
    code, found = compile(file.text.removeprefix(HEADER), file.name, "exec"), 0
    for launch in file.launches:
        programs = concrete(launch.programs, sizes)
        if programs > LIMIT:
            raise Overflow(f"{launch.function} has {programs} programs")
        counts = {n: extent(params[n], sizes) if n in params else 1 for n in launch.buffers}
        given = {name: (name, count, index) for name, count in counts.items()}
        for program in sorted({p for p in (0, 1, programs // 3, programs - 1, *places) if 0 <= p < programs}):
            play = Play(program)
            space = {"tl": play, "lib": Library(play), "range": some_rounds, "triton": SimpleNamespace(jit=undecorated)}
            exec(code, space)
            numbers = [Number(sizes[s], 32 if file.bits == 32 else 64) for s in launch.symbols]
            names = [size_name(s) for s in launch.symbols]
            space[launch.function](
                **{n: Address(*x) for n, x in given.items()}, **dict(zip(names, numbers, strict=True))
            )
            found = max(found, play.most)
    return found


def undecorated(function=None, **_):
    """``triton.jit``, which does nothing here."""
    return (lambda f: f) if function is None else function


def extent(param, sizes):
    """The elements from the first to the last one of a parameter in memory."""
    shape = [concrete(n, sizes) for n in param.type.shape]
    if 0 in shape:
        return 0
    strides = [concrete(s, sizes) for s in strides_of(param)]
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
