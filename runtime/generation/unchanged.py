"""Whether a model is still what was captured of it. Looked at where a text begins: a walk is too slow for each token.

Kernels read packed copies of weights, and a capture knows nothing of a module or hook that came after it.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_RECORDERS = "transformers.utils.output_capturing"  # whose hooks are put on modules when they are first needed
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
SAMPLED = 16  # elements of each weight


class Change(Enum):
    """What is not as it was."""

    NOTHING = 0
    WEIGHTS = 1
    MODULES = 2


class Watch:
    """A model as it was when it was last looked at.

    Seen are other modules, hooks, ``forward`` and training mode; other tensors as weights; and weights that were
    written to, by PyTorch, or in a way that it does not count, such as through ``.data``: of those ``SAMPLED`` elements
    of each weight tell.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._state = _State(model)
        self._samples = _Samples(self._state.weights)

    def change(self, written: Collection[int] = ()) -> Change:
        """What became of the model since this was last asked.

        Args:
            written: the addresses of weights that the model's own calls write to, which is no change.
        """
        with self._lock:
            before, now = self._state, _State(self._model)
            self._state = now
            if before.lies_as(now):
                ours = [place in written for place in now.places]
                same = self._samples.as_before(ours) & _as_before(before.versions, now.versions, ours)
                return Change.NOTHING if same else Change.WEIGHTS
            self._samples = _Samples(now.weights)
        # one of two names that a weight had may mean another weight now
        known = _same(before.objects, now.objects) and _sharing(before.places) == _sharing(now.places)
        return Change.WEIGHTS if known else Change.MODULES


class _State:
    """What a walk over a model finds.

    Attributes:
        objects: what is compared by identity.
        weights: the parameters and buffers in memory that can be looked at.
        places, kinds, versions: of each weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self.objects: list[Any] = []
        self.weights: list[Tensor] = []
        for module in _modules(model):
            self._take(module.__dict__)
            self.objects += (module, type(module))
        self.places = [tensor.data_ptr() for tensor in self.weights]
        self.kinds = [(tensor.dtype, tensor.shape) for tensor in self.weights]
        self.versions = [0 if tensor.is_inference() else tensor._version for tensor in self.weights]

    def lies_as(self, other: _State) -> bool:
        """Whether all objects and weights are the same ones, in the same memory."""
        same = _same(self.objects, other.objects) and _same(self.weights, other.weights)
        return same and self.places == other.places and self.kinds == other.kinds

    def _take(self, attributes: dict[str, Any]) -> None:
        self.objects += (attributes.get("forward"), attributes.get("training"))
        for name in _HOOKS:
            if attributes.get(name):
                self.objects += [hook for hook in attributes[name].values() if hook.__module__ != _RECORDERS]
        for name in ("_parameters", "_buffers"):
            for tensor in (attributes.get(name) or {}).values():
                if type(tensor) in _PLAIN and tensor.is_cpu:
                    self.weights.append(tensor)
                else:
                    self.objects.append(tensor)


class _Samples:
    """Some elements of each weight, and what they were when they were last looked at."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._groups: dict[torch.dtype, list[int]] = {}
        self._views: list[Tensor | None] = [_sample(weight) for weight in weights]
        for i, view in enumerate(self._views):
            if view is not None:
                self._groups.setdefault(view.dtype, []).append(i)
        self._bytes = {dtype: self._read(group) for dtype, group in self._groups.items()}

    def as_before(self, ours: Sequence[bool]) -> bool:
        """Whether all are what they were but for those of weights that are ``ours``."""
        found = True
        for dtype, group in self._groups.items():
            before, now = self._bytes[dtype], self._read(group)
            if torch.equal(before, now):
                continue
            self._bytes[dtype] = now
            sizes = [self._nbytes(i) for i in group]
            pairs = zip(group, torch.split(before, sizes), torch.split(now, sizes), strict=True)
            found = found and all(ours[i] or torch.equal(old, new) for i, old, new in pairs)
        return found

    def _read(self, group: Sequence[int]) -> Tensor:
        return torch.cat([view for i in group if (view := self._views[i]) is not None]).view(torch.uint8)

    def _nbytes(self, i: int) -> int:
        view = self._views[i]
        return 0 if view is None else view.nbytes


def _sample(weight: Tensor) -> Tensor | None:
    """Elements of a weight at equal distances, [at most SAMPLED + 1]; None where it is in no one piece of memory."""
    count = weight.numel()
    if not count or weight.layout is not torch.strided:
        return None
    if count != 1 + sum((n - 1) * stride for n, stride in zip(weight.shape, weight.stride(), strict=True)):
        return None
    step = max(1, count // SAMPLED)
    return torch.as_strided(weight.detach(), ((count + step - 1) // step,), (step,), weight.storage_offset())


def _modules(root: nn.Module) -> Iterator[nn.Module]:
    """All modules once, in some order that is the same each time."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        module = waiting.pop()
        yield module
        for child in (module.__dict__.get("_modules") or {}).values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


def _as_before(before: Sequence[int], now: Sequence[int], ours: Sequence[bool]) -> bool:
    if before == now:
        return True
    return all(own or old == new for own, old, new in zip(ours, before, now, strict=True))


def _sharing(places: Sequence[int]) -> list[int]:
    """Which weights lie at one address: for each the first one that does."""
    first: dict[int, int] = {}
    return [first.setdefault(place, i) for i, place in enumerate(places)]
