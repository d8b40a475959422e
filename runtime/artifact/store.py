"""The weights of all entry points, each once: by identity where they are state, by their values where they are not."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

from torch import Tensor

from ...ir.errors import UnsupportedError
from .names import plain_name
from .weights import bytes_of


class Store:
    """The weights of an artifact under the names that it has them by.

    Attributes:
        tensors: by name. State is the model's own tensor.
        digests: of the bytes of each, but for state, which calls change.
    """

    def __init__(self, state: Collection[int]) -> None:
        """``state`` are the storages, by address, that an entry point writes to."""
        self.tensors: dict[str, Tensor] = {}
        self.digests: dict[str, bytes] = {}
        self._state = state
        self._names: dict[Any, str] = {}

    def add(self, name: str, tensor: Tensor, entry: str) -> str:
        """What a weight of an entry point is called in the artifact.

        Raises:
            UnsupportedError: it shares memory with state without being the same tensor.
        """
        key, digest = self._key(name, tensor)
        found = self._names.get(key)
        if found is None:
            wanted = name if name not in self.tensors else f"{entry}.{name}"
            found = plain_name(wanted, self.tensors, f"weight.{len(self.tensors)}")
            self._names[key] = found
            self.tensors[found] = tensor
            if digest is not None:
                self.digests[found] = digest
        return found

    def _key(self, name: str, tensor: Tensor) -> tuple[Any, bytes | None]:
        """What tells a weight from others, and its digest where it is not state."""
        about = (tensor.dtype, tuple(tensor.shape))
        storage = storage_of(tensor)
        if storage not in self._state:
            digest = hashlib.sha256(bytes_of(tensor)).digest()
            return (*about, digest), digest
        key = ("state", storage)
        known = self._names.get(key)
        if known is not None and not _is_same(tensor, self.tensors[known]):
            raise UnsupportedError(
                f"{name} shares memory with {known}, which a call changes: an artifact cannot hold views of state"
            )
        return key, None


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others; 0 for an empty one."""
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0


def _is_same(left: Tensor, right: Tensor) -> bool:
    return (
        (left.data_ptr(), left.dtype) == (right.data_ptr(), right.dtype)
        and left.shape == right.shape
        and left.stride() == right.stride()
    )
