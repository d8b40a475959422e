"""The weights of an artifact: one safetensors member that all entry points share, mapped into memory.

Tensors whose bytes are a multiple of 64 come first, so that each of them begins at such a multiple, as kernels want it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...codegen.tvm.packing import aligned_empty
from ...ir.errors import ArtifactError, UnsupportedError
from ..tensors import ALIGNMENT
from .container import CHUNK, Container, Source
from .names import tensor_name

WEIGHTS = "weights.safetensors"
MOST_HEADER = 100 << 20  # bytes, as safetensors has it
MOST_DIMS = 64
HASHERS = 4  # threads that check digests at most

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


# --- writing ----------------------------------------------------------------------------------------------------------


def weights_source(tensors: Mapping[str, Tensor], digests: Mapping[str, bytes] | None = None) -> Source:
    """The member that holds these tensors, row-major. Writing it raises ArtifactError where one has another digest.

    Raises:
        UnsupportedError: one of them is of a dtype that safetensors does not have, or is not strided.
    """
    header: dict[str, Any] = {}
    at = 0
    order = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNMENT != 0)
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES or tensor.layout is not torch.strided:
            raise UnsupportedError(f"{name} is {tensor.dtype}, {tensor.layout}: an artifact cannot hold it")
        end = at + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)

    def parts() -> Iterator[bytes | memoryview]:
        yield struct.pack("<Q", len(text)) + text
        for name in order:
            data = bytes_of(tensors[name])
            if digests is not None and name in digests and hashlib.sha256(data).digest() != digests[name]:
                raise ArtifactError(f"the weight {name} changed after the model was exported: export it again")
            yield memoryview(data)

    return Source(WEIGHTS, 8 + len(text) + at, parts)


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor, row-major, as a NumPy array."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).cpu().numpy()


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int


class Weights:
    """The weights of an open artifact, mapped to be read: who writes to one of these tensors ends the process."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._member = container.member(WEIGHTS)
        self._start = container.offsets[WEIGHTS]
        self._map = mmap.mmap(container.descriptor, container.size, mmap.MAP_PRIVATE, mmap.PROT_READ)
        self._bytes = _tensor_of(self._map)
        self._places = self._read_header()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def verify(self) -> None:
        """Hold the weights to their digests, in several threads.

        Raises:
            ArtifactError: they are damaged.
        """
        member = self._member
        digests = member.chunks or (member.sha256,)
        with memoryview(self._map) as view, ThreadPoolExecutor(HASHERS) as pool:
            begins = range(self._start, self._start + max(member.size, 1), CHUNK)
            found = pool.map(lambda at: _digest(view, at, min(at + CHUNK, self._start + member.size)), begins)
            for number, (digest, expected) in enumerate(zip(found, digests, strict=True)):
                if digest != expected:
                    raise self._container.fault(f"part {number} of {WEIGHTS} has another digest")

    def tensor(self, name: str) -> Tensor:
        """A weight, in the pages of the file.

        Raises:
            ArtifactError: there is none of this name.
        """
        place = self._place(name)
        flat = self._bytes[place.begin : place.end]
        if flat.data_ptr() % place.dtype.itemsize:
            flat = flat.clone()
        return flat.view(place.dtype).reshape(place.shape)

    def copy(self, name: str) -> Tensor:
        """A weight in memory of its own, aligned."""
        found = self.tensor(name)
        return aligned_empty(tuple(found.shape), found.dtype).copy_(found)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise self._container.fault(f"there is no weight {name}")
        return self._places[name]

    def _read_header(self) -> dict[str, _Place]:
        fault, size = self._container.fault, self._member.size
        raw = bytes(self._map[self._start : self._start + min(8, size)])
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else size
        if length > min(MOST_HEADER, size - 8):
            raise fault(f"the header of {WEIGHTS} does not fit in it")
        begin = self._start + 8 + length
        try:
            header = json.loads(bytes(self._map[self._start + 8 : begin]))
        except (ValueError, RecursionError):
            raise fault(f"the header of {WEIGHTS} is not JSON") from None
        if not isinstance(header, dict):
            raise fault(f"the header of {WEIGHTS} is not one")
        places: dict[str, _Place] = {}
        at = begin
        for name, entry in header.items():
            places[tensor_name(name)] = made = self._entry(entry, begin, at)
            at = made.end
        if at != self._start + size:
            raise fault(f"{WEIGHTS} has bytes that belong to no tensor")
        return places

    def _entry(self, entry: Any, begin: int, at: int) -> _Place:
        """A tensor that begins where the one before it ends."""
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]} if len(entry) == 3:
                known = dtype in _DTYPES and len(shape) <= MOST_DIMS and all(_is_size(dim) for dim in shape)
                if known and begin + first == at and last - first == _nbytes(shape, _DTYPES[dtype]):
                    end = begin + last
                    if end <= self._start + self._member.size:
                        return _Place(_DTYPES[dtype], tuple(shape), at, end)
        raise self._container.fault(f"the header of {WEIGHTS} lists something that is no tensor of it")


def _tensor_of(pages: mmap.mmap) -> Tensor:
    """Pages that can only be read as a tensor, uint8, which keeps them mapped.

    By their address, since PyTorch warns of a buffer that cannot be written to.
    """
    made: Any = type("Pages", (ctypes.c_uint8 * len(pages),), {})
    found = made.from_address(np.frombuffer(pages, dtype=np.uint8).ctypes.data)
    found.pages = pages
    return torch.frombuffer(found, dtype=torch.uint8)


def _is_size(dim: object) -> bool:
    return isinstance(dim, int) and not isinstance(dim, bool) and 0 <= dim < 1 << 62


def _nbytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _digest(view: memoryview, begin: int, end: int) -> str:
    return hashlib.sha256(view[begin:end]).hexdigest()


def check_types(weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Raise ArtifactError where a weight has another type than what computes with it was made for."""
    for name, (shape, dtype) in wanted.items():
        found = weights[name]
        if tuple(found.shape) != shape or found.dtype != dtype:
            has, needed = f"{found.dtype} {list(found.shape)}", f"{dtype} {list(shape)}"
            raise ArtifactError(f"the weight {name} is {has}, where {needed} is needed")
