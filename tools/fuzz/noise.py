"""How much of a difference rounding explains: the program run in PyTorch with every result off by a unit or so.

The numeric contract is a rule for whole outputs of models. Random programs compare rounded values, take the largest of
nearly equal ones and subtract what is nearly the same, so that one rounding may decide an element. Such elements move
when the program runs with noise, and the noise says how far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...runtime.contract import TOLERANCES

ROUNDS = (*[1] * 12, *[4] * 12)  # the noise of each run, in units in the last place
MARGIN = 6.0  # how much further than the noise a result may lie
# what only moves values: equal ones stay equal
_MOVES = frozenset(
    [
        "clone",
        "copy_",
        "_to_copy",
        "cat",
        "stack",
        "index",
        "gather",
        "index_select",
        "embedding",
        "where",
        "masked_fill",
        "slice_scatter",
        "select_scatter",
        "constant_pad_nd",
        "repeat",
        "roll",
        "flip",
        "tril",
        "triu",
        "relu",
        "neg",
        "abs",
        "amax",
        "amin",
        "max",
        "min",
        "maximum",
        "minimum",
        "clamp",
        "zeros_like",
        "ones_like",
        "fill",
        "full",
        "full_like",
        "zero_",
        "fill_",
        "masked_fill_",
        "index_fill",
        "scatter",
        "index_put",
        "index_put_",
        "arange",
        "zeros",
        "ones",
        "eye",
        "scalar_tensor",
        "lift_fresh",
        "detach",
        "empty",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "floor",
        "ceil",
        "round",
        "trunc",
        "sign",
    ]
)


class Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every floating result is changed by up to ``units`` of its last place, at random."""

    def __init__(self, seed: int, units: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)
        self.units = units

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        aliased = any(r.alias_info is not None for r in func._schema.returns)
        if name in _MOVES or (aliased and not name.endswith("_")):
            return result
        if aliased:
            if isinstance(result, Tensor) and result.dtype.is_floating_point and result.numel():
                result.copy_(self.noisy(result))
            return result
        if isinstance(result, Tensor):
            return self.noisy(result)
        return type(result)(self.noisy(x) for x in result) if isinstance(result, tuple | list) else result

    def noisy(self, value: Any) -> Any:
        """A tensor with noise; anything else, and integers, as they are."""
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point or not value.numel():
            return value
        unit = torch.finfo(value.dtype).eps * self.units
        steps = torch.randint(-1, 2, value.shape, generator=self.generator, dtype=torch.int8)
        wide = value.double()
        return (wide + wide.abs() * unit * steps.double()).to(value.dtype)


Observed = TypeVar("Observed")


def noisy_runs(observe: Callable[[], Observed]) -> list[Observed]:
    """What ``observe`` gives with noise, several times."""
    found: list[Observed] = []
    for seed, units in enumerate(ROUNDS):
        with Noise(seed, units):
            found.append(observe())
    return found


def explained(path: str, ours: Any, eager: Any, runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether our value lies where noise may put eager's, element by element."""
    others = [run[path] for run in runs if isinstance(run.get(path), Tensor) and run[path].shape == eager.shape]
    if not isinstance(ours, Tensor) or ours.shape != eager.shape or ours.dtype != eager.dtype or not others:
        return False
    values = torch.stack([eager, *others]).double()  # [runs, ...]
    mine = ours.double()
    if not eager.dtype.is_floating_point:
        return bool(((mine == values[0]) | (values != values[0]).any(0)).all())
    finite = values.isfinite()
    edge = finite.any(0) & ~finite.all(0)
    same = (mine == values[0]) | (mine.isnan() & values[0].isnan())
    never = ~finite.any(0)  # NaN here, inf there: which one is decided by rounding too
    mixed = never & (values.isnan().any(0) & ~values.isnan().all(0))
    low = values.nan_to_num(0, 0, 0).amin(0)
    high = values.nan_to_num(0, 0, 0).amax(0)
    rtol, atol = TOLERANCES[eager.dtype]
    reach = MARGIN * (high - low) + atol + rtol * values[0].abs()
    near = finite.all(0) & (mine >= low - reach) & (mine <= high + reach)
    return bool((same | edge | mixed | near).all())
