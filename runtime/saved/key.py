"""The key of a capture: the digest of everything that decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..calls import Call
from ..options import Options
from .kinds import Unsure
from .settings import settings
from .state import State
from .values import NoForm, constant_data, tree_data


def key_of(model: Callable[..., Any], call: Call, options: Options) -> tuple[str, list[Tensor]]:
    """The key of the captures of a model that may be for a call, and the model's tensors that are no weights.

    Of the call its tree, its constants, and the types of its tensors are in the key, not their sizes: a capture tells
    itself which sizes it is for.

    Raises:
        Unsure: something that may decide the capture cannot be told from others.
    """
    try:
        lines = [*settings(options), tree_data(call.spec), *map(_leaf, call.leaves)]
    except NoForm as error:
        raise Unsure(str(error)) from None
    state = State(model)
    text = "\n".join([*lines, state.digest])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), state.loose


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"tensor {leaf.dtype} {leaf.ndim} {leaf.device}"
    return f"constant {type(leaf).__name__} {constant_data(leaf)!r}"
