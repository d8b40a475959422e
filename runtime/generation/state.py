"""What a model keeps on itself: something that each call sets anew, or a tensor that the first one computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...frontend.untouched import untouched, value_of, watched
from ..state import preserved


def keeps_once(step: nn.Module, names: Sequence[str], call: Callable[[], Any]) -> bool:
    """Whether the attributes that a step sets are tensors that it sets once; then they are set afterwards.

    A second call tells, which leaves them alone, as with the frequencies of long contexts in Phi-3.

    Args:
        names: what was set while the step was traced, by path.
        call: calls the step in PyTorch, on copies.
    """
    try:
        with torch.no_grad(), preserved(step), untouched(step):
            call()
            with watched(step) as again:
                call()
            once = not again and all(isinstance(value_of(step, name), Tensor) for name in names)
        if once:
            with torch.no_grad(), preserved(step):
                call()
    except Exception:  # the call is at fault, which PyTorch says when it runs it
        return False
    return once
