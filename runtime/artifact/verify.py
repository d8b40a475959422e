"""A loaded artifact held to the model that it was made of, by the numeric contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from ...ir.errors import ArtifactError, UnsupportedError, VerifyError
from ...rewrites.quantization import Quantization
from ..compile import compile
from ..contract import compare
from ..state import buffers_of, preserved
from ..verify import VerifyResult, verify
from ..verify_caches import path_of
from .loaded import LoadedArtifact

HINT = "the model must have the weights that it was exported with: if they are made at random, seed them"


@dataclass
class _AsCompiled:
    """An entry point in the place of a compiled model: what it changes is the model's too."""

    loaded: LoadedArtifact
    entry: Callable[..., Any]
    original: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.loaded.reset()
        result = self.entry(*args, **kwargs)
        buffers = buffers_of(self.original)
        with torch.no_grad():
            for name, tensor in self.loaded.state.items():
                if name in buffers:
                    buffers[name].copy_(tensor)
        self.loaded.reset()
        return result

    def entry_for(self, *_: Any) -> Any:
        raise UnsupportedError("an artifact has no captured graph to interpret")


def verify_artifact(
    loaded: LoadedArtifact,
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    entry_point: str | None = None,
) -> VerifyResult:
    """Hold an artifact's results for a call to those of the model, as ``smelt.verify`` does; state is put back.

    An artifact with quantised weights is held to the model compiled in the same way, which is held to the model.

    Raises:
        VerifyError: an output breaks the numeric contract; the message names the worst one.
        ArtifactError: there is no such entry point, or several and none is named.
    """
    names = list(loaded.entry_points)
    if entry_point is None and len(names) > 1:
        raise ArtifactError(f"the artifact has several entry points: name one of {', '.join(names)}")
    name = entry_point or names[0]
    if name not in loaded.entry_points:
        raise ArtifactError(f"there is no entry point {name!r}: there is {', '.join(names)}")
    ours = _AsCompiled(loaded, loaded.entry_points[name], model)
    quantization = json.loads(loaded.settings.get("quantize", "null"))
    if quantization is None:
        try:
            return verify(ours, *args, **kwargs)  # type: ignore[arg-type]
        except VerifyError as error:
            raise VerifyError(f"{error}\n{HINT}") from None
    fast = compile(model, quantize=Quantization(**quantization | {"keep": tuple(quantization["keep"])}))
    result = verify(fast, *args, **kwargs)
    with preserved(model):
        mine = ours(*args, **kwargs)
    with preserved(model):
        _equal(mine, fast(*args, **kwargs))
    return result


def _equal(ours: Any, theirs: Any) -> None:
    mine, wanted = (pytree.tree_flatten_with_path(tree)[0] for tree in (ours, theirs))
    paths = [path_of(path) for path, _ in wanted]
    if [path_of(path) for path, _ in mine] != paths:
        raise VerifyError("the result has another structure than that of the quantised model")
    for path, (_, a), (_, b) in zip(paths, mine, wanted, strict=True):
        found = compare(path, a, b)
        if not found.passed:
            raise VerifyError(f"not the result of the model with the same quantisation, compiled here: {found}\n{HINT}")
