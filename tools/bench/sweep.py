"""One model at many sizes: a single compiled model for all of them, against peers made for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ...ir.errors import SmeltError
from ...runtime.module import CompiledModule
from ..errors import ModelError
from ..models import Model
from ..zoo import ZOO
from .outcome import Outcome
from .peers import SMELT
from .quantised import compiled
from .run import DTYPES, How, load, measure_model


class RecaptureError(SmeltError, RuntimeError):
    """A model was captured again in a sweep, which measures one compiled model; the message names the guard."""


@dataclass(frozen=True)
class Sweep:
    """Batches and lengths."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Every pair."""
        return product(self.batches, self.lengths)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Sweep:
        """A sweep from ``b=1,4,16`` and ``s=32,128``, in one text or several.

        Raises:
            ModelError: it is none.
        """
        found: dict[str, tuple[int, ...]] = {"b": (1,), "s": (128,)}
        for part in " ".join(texts).split():
            name, _, values = part.partition("=")
            sizes = tuple(int(v) for v in values.split(",") if v.isdigit() and int(v))
            if name not in found or not sizes or len(sizes) != values.count(",") + 1:
                raise ModelError(f"{part!r} is no part of a sweep: say b=1,4,16 s=32,128,512")
            found[name] = sizes
        return cls(found["b"], found["s"])


def measure_sweep(spec: str, names: Sequence[str], how: How, sweep: Sweep) -> Iterator[Outcome]:
    """The outcome at each pair of sizes; smelt is compiled once and starts are not measured.

    Raises:
        ModelError: the model is none of the zoo's, whose inputs can be made in any size.
        RecaptureError: one compiled model was not enough for all sizes.
        VerifyError: a compiled model's result is not eager's.
    """
    name = spec.removeprefix("zoo:").partition(":")[0].partition("@")[0]
    if not spec.startswith("zoo:") or "@" in spec or name not in ZOO:
        raise ModelError(f"{spec} cannot be swept: name a model of the zoo without a size, as zoo:bert-base")
    base, fast = load(spec, how.dtype), None
    for batch, length in sweep:
        model = at(base, name, batch, length, DTYPES[how.dtype])
        if fast is None and SMELT in names:
            fast = compiled(base, how.dtype, how.threads)
        yield measure_model(model, names, replace(how, starts=0), fast=fast)
        if fast is not None:
            check_one_capture(fast)


def check_one_capture(fast: CompiledModule) -> None:
    """Raise RecaptureError where a compiled model was not the same for all sizes."""
    if fast.is_split or fast.recaptured:
        why = fast.recaptured[0] if fast.recaptured else "it is split into several graphs"
        raise RecaptureError(f"the model was captured again within the sweep, so its times are no one model's: {why}")


def at(base: Model, name: str, batch: int, length: int, dtype: torch.dtype) -> Model:
    """The same model with inputs of other sizes."""
    assert isinstance(base.model, torch.nn.Module)
    args, kwargs = ZOO[name].inputs(base.model, batch, length)

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    args, kwargs = pytree.tree_map(cast, (tuple(args), dict(kwargs)))
    return Model(f"{base.name}@{batch}x{length}", base.model, args, kwargs)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The worst ratio to the best peer, and where it is."""
    ratios = {outcome.model: ratio for outcome in outcomes if (ratio := outcome.best_peer()) is not None}
    if not ratios:
        return "There is no ratio to a peer."
    worst = min(ratios, key=ratios.__getitem__)
    return (
        f"The best peer takes at least {ratios[worst]:.2f} times as long as smelt, at {worst}; "
        f"smelt is fastest at {sum(ratio >= 1 for ratio in ratios.values())} of {len(ratios)} sizes."
    )
