"""A model with the calls that it is checked on and the one that it is timed on, and what is right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Args = tuple[Tensor, ...]
MOST_OVER_EAGER = 2.0  # the contract: an error at most twice that of PyTorch in the same dtype
POISON = 5.0  # in what calls should write: far from what they write, and finite, for masked values are multiplied by 0
# Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds it: that doubles the error of each result
MOST_OVER_EAGER_INTERPRETED = 5.0
# of the values, for results whose error in PyTorch happens to be next to nothing
FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


class Wrong(Exception):
    """A result that is not PyTorch's: it is not timed."""


def _nothing(model: nn.Module) -> list[Tensor]:
    return []


@dataclass
class Workload:
    """What is measured.

    Attributes:
        model: its parameters and buffers are on the device.
        args: those of the call that is timed.
        calls: those that results are compared on, in order; a model may change its own state from one to the next.
        tokens: results are logits, of which the largest is the next token.
        flops, nbytes: operations and bytes of one call at least.
        flush: the call is one kernel, timed with its operands out of the L2.
        quantize: how smelt is to hold the weights.
        plain: the model that PyTorch and the other compilers run where it is not ``model``, and
        wide: the same in float32: for weights of few bits, the numbers that these stand for.
        state: views of what the calls write in a model, which is poisoned before and compared after them.
        facts: what else the record should say.
    """

    model: nn.Module
    args: Args
    calls: Sequence[Args] = ()
    tokens: bool = False
    flops: int = 0
    nbytes: int = 0
    flush: bool = False
    quantize: str = ""
    plain: nn.Module | None = None
    wide: nn.Module | None = None
    state: Callable[[nn.Module], list[Tensor]] = _nothing
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval()

    @property
    def eager(self) -> nn.Module:
        """What PyTorch runs."""
        return self.plain or self.model

    @property
    def checked(self) -> Sequence[Args]:
        """The calls to compare results on."""
        return self.calls or [self.args]


@dataclass(frozen=True)
class Expected:
    """Results in a wider dtype, and PyTorch's own for the same calls; the state that they leave is the last one."""

    wide: list[list[Tensor]]
    eager: list[list[Tensor]]
    error: float  # eager's


def expected(work: Workload) -> Expected:
    """What the results should be: those in float32, in float64 where the model is in float32 itself."""
    own = _all_results(work.eager, work.eager, work, work.checked)
    dtype = torch.float64 if own[0][0].dtype == torch.float32 else torch.float32
    wide = work.wide or copy.deepcopy(work.eager).to(dtype)
    exact = _all_results(wide, wide, work, [tuple(_cast(x, dtype) for x in args) for args in work.checked])
    return Expected(exact, own, distance(own, exact))


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _all_results(
    call: Callable[..., Any], model: nn.Module, work: Workload, calls: Sequence[Args]
) -> list[list[Tensor]]:
    """The results of each call, then the state that they leave in the model that ``call`` runs."""
    with torch.no_grad():
        for view in work.state(model):
            view.fill_(POISON)
    found = [_results(call, args) for args in calls]
    return [*found, [view.clone() for view in work.state(model)]]


def _results(call: Callable[..., Any], args: Args) -> list[Tensor]:
    """The results as tensors of their own: what replays a graph writes to the same memory again."""
    with torch.no_grad():
        found = call(*args)
    return [x.clone() for x in (found if isinstance(found, tuple | list) else [found])]


def distance(found: Sequence[Sequence[Tensor]], exact: Sequence[Sequence[Tensor]]) -> float:
    """The largest over all results of ``|found - exact| / |exact|``; infinite where one is not a number."""
    worst = 0.0
    for ours, theirs in zip(found, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape:
                return float("inf")
            if b.numel():
                off = float((a.to(b.dtype) - b).norm() / b.norm().clamp(min=1e-30))
                worst = off if off > worst or off != off else worst
    return worst if worst == worst else float("inf")


@dataclass(frozen=True)
class Verdict:
    """How right a peer is: its error, relative to the values, and how often it took another token in a tie."""

    error: float
    eager_error: float
    tokens: int = 0
    ties: int = 0


def verdict(
    call: Callable[..., Any],
    work: Workload,
    right: Expected,
    most: float = MOST_OVER_EAGER,
    model: nn.Module | None = None,
) -> Verdict:
    """Hold a peer's results against what is right; ``model`` is the one whose state it changes.

    Raises:
        Wrong: an error of more than ``most`` times PyTorch's, or another token where there is no tie.
    """
    found = _all_results(call, model or work.eager, work, work.checked)
    if [len(x) for x in found] != [len(x) for x in right.eager]:
        raise Wrong("another number of results")
    error = distance(found, right.wide)
    limit = most * right.error + FLOOR[right.eager[0][0].dtype]
    if not error <= limit:
        raise Wrong(f"off by {error:.1e} of the values, where PyTorch is off by {right.error:.1e}")
    if not work.tokens:
        return Verdict(error, right.error)
    count = len(work.checked)
    triples = zip(found[:count], right.eager, right.wide, strict=False)
    ties = sum(_is_tie(*logits, most, at) for at, logits in enumerate(triples))
    return Verdict(error, right.error, count, ties)


def _is_tie(found: list[Tensor], eager: list[Tensor], wide: list[Tensor], most: float, at: int) -> bool:
    """Whether another token than eager's was taken; that is right only where rounding decides.

    Raises:
        Wrong: the two tokens' exact logits are further apart than ``most`` times what eager's logits are off.
    """
    ours, theirs, exact = (x[0].flatten(0, -2).to(wide[0].dtype) for x in (found, eager, wide))
    mine, own = ours.argmax(-1, keepdim=True), theirs.argmax(-1, keepdim=True)
    gap = (exact.gather(-1, own) - exact.gather(-1, mine)).abs()
    if (gap > most * (theirs - exact).abs().amax(-1, keepdim=True)).any():
        raise Wrong(f"token {at} is {mine.flatten().tolist()} in place of {own.flatten().tolist()}")
    return bool((mine != own).any())
