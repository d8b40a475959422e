"""What ``compile(quantize=...)`` asks for, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from ..ir.errors import QuantizationError
from ..ir.node import Node

LEAST_GROUP = 16
_BITS = {"int8": 8, "int4": 4, "fp8": 8}
_WHY_ALIKE = {
    "int8": "sums of other products are not exact integers",
    "fp8": "tensor cores multiply two numbers of float8, and a sum is scaled once",
}


@dataclass(frozen=True)
class Quantization:
    """Weights of linear layers in few bits, and rows of their inputs as int8 or float8 if asked for.

    Attributes:
        weights: ``"int8"``, ``"int4"`` or ``"fp8"`` (float8_e4m3fn, which is symmetric).
        group_size: how many terms of a row share a scale, a multiple of 16; None for one scale for each row, that is
            for each output of the layer.
        symmetric: a number is ``q * scale``; otherwise ``(q - zero) * scale``, with a zero for each scale.
        activations: None leaves them as they are; ``"int8"`` and ``"fp8"`` quantise each row of a layer's input when it
            is called, by the row's largest magnitude. That takes symmetric weights of the same kind with one scale for
            each row.
        keep: layers to leave as they are, by name or a part of it with whole components: ``"lm_head"``,
            ``"layers.0"``, ``"*_proj"``.

    Raises:
        QuantizationError: a setting is none of these, or they do not go together.
    """

    weights: Literal["int8", "int4", "fp8"] = "int8"
    group_size: int | None = None
    symmetric: bool = True
    activations: Literal["int8", "fp8"] | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weights not in _BITS:
            raise QuantizationError(f'weights is {self.weights!r}: say "int8", "int4" or "fp8"')
        if self.group_size is not None and not _is_group(self.group_size):
            raise QuantizationError(f"group_size is {self.group_size!r}: say a multiple of {LEAST_GROUP}, or None")
        if not isinstance(self.symmetric, bool):
            raise QuantizationError(f"symmetric is {self.symmetric!r}: say True or False")
        if self.float8 and not self.symmetric:
            raise QuantizationError('weights="fp8" takes symmetric=True: its numbers have a sign of their own')
        if self.activations not in (None, "int8", "fp8"):
            raise QuantizationError(f'activations is {self.activations!r}: say "int8", "fp8" or None')
        if not _are_names(self.keep):
            raise QuantizationError(f'keep is {self.keep!r}: give a tuple of names, such as ("lm_head",)')
        object.__setattr__(self, "keep", tuple(self.keep))
        kind = self.activations
        if kind and (self.weights, self.group_size, self.symmetric) != (kind, None, True):
            raise QuantizationError(
                f'activations="{kind}" takes weights="{kind}", group_size=None and symmetric=True: {_WHY_ALIKE[kind]}'
            )

    @property
    def bits(self) -> int:
        """The bits of a weight."""
        return _BITS[self.weights]

    @property
    def float8(self) -> bool:
        """Whether weights are floating-point numbers of eight bits, not whole ones."""
        return self.weights == "fp8"

    def kept(self, names: Sequence[str]) -> str | None:
        """The pattern by which a layer of one of these names is to stay as it is; None where it is not."""
        found = (p for p in self.keep for name in names if fnmatchcase(f".{name}.", f"*.{p}.*"))
        return next(found, None)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise QuantizationError where ``keep`` has a name that no part of the model has."""
        for pattern in self.keep:
            if not any(fnmatchcase(f".{name}.", f"*.{pattern}.*") for name in names):
                some = ", ".join(name for name in names if name) or "none"
                raise QuantizationError(
                    f"keep names {pattern!r}, which no part of the model is called: there are {some[:300]}"
                )

    def __str__(self) -> str:
        how = "each row" if self.group_size is None else f"each {self.group_size} terms"
        text = f"{self.weights} weights, a scale for {how}{'' if self.symmetric else ' and a zero'}"
        return text + (f", {self.activations} activations" if self.activations else "")


def _are_names(keep: object) -> bool:
    return isinstance(keep, tuple | list) and all(isinstance(name, str) and name for name in keep)


def _is_group(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0 and size % LEAST_GROUP == 0


NAMED: Mapping[str, Quantization] = {
    "int8": Quantization("int8"),
    "int4": Quantization("int4", group_size=128),
    "int8-dynamic": Quantization("int8", activations="int8"),
    "fp8": Quantization("fp8"),
    "fp8-dynamic": Quantization("fp8", activations="fp8"),
}


def quantization_of(asked: str | Quantization | None) -> Quantization | None:
    """The settings that a name stands for.

    Raises:
        QuantizationError: there is no such name.
    """
    if asked is None or isinstance(asked, Quantization):
        return asked
    if not isinstance(asked, str) or asked not in NAMED:
        names = ", ".join(f'"{name}"' for name in NAMED)
        raise QuantizationError(f"quantize is {asked!r}: say {names} or smelt.Quantization(...)")
    return NAMED[asked]


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in few bits.

    Attributes:
        name: of the layers that read it.
        definition: the weight before, on the model's own weights: [N, K].
        parts: the names of q, scale and the zeros that there may be, among the derived weights.
        bits, group, float8: see ``ir.ops.quantize``.
    """

    name: str
    definition: Node
    parts: tuple[Node, ...]
    bits: int
    group: int
    float8: bool = False

    @property
    def bytes_before(self) -> int:
        """The bytes of the weight before."""
        return int(self.definition.tensor_type.nbytes)

    @property
    def bytes_after(self) -> int:
        """The bytes of its parts."""
        return sum(int(part.tensor_type.nbytes) for part in self.parts)


@dataclass(frozen=True)
class KeptWeight:
    """A weight that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass
class Quantized:
    """What the pass did.

    Attributes:
        hoisted: the weights that were computed at load before the pass, by name.
        weights: those in few bits.
        kept: the matrices of floats that are still read.
    """

    settings: Quantization
    hoisted: dict[str, Node] = field(default_factory=dict)
    weights: list[QuantizedWeight] = field(default_factory=list)
    kept: list[KeptWeight] = field(default_factory=list)
