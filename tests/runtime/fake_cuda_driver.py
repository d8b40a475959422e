"""A CUDA driver that is played: modules that are loaded, and launches with the bytes of their arguments.

What code a function has and how many bytes its parameters take is read from the cubin, as a real driver does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from smelt.codegen.triton.elf import read_cubin
from smelt.runtime.artifact import gpu_load
from smelt.runtime.artifact.gpu_load import Gpu
from smelt.runtime.cuda.code import CodeLauncher
from smelt.runtime.cuda.device import host_device
from smelt.runtime.cuda.driver import Driver

from .fake_gpu import TARGET

INVALID_IMAGE = 200
NAMES = {1: b"CUDA_ERROR_INVALID_VALUE", INVALID_IMAGE: b"CUDA_ERROR_INVALID_IMAGE", 209: b"CUDA_ERROR_NO_BINARY"}


@dataclass(frozen=True)
class Launched:
    """A launch as it arrived."""

    function: str
    programs: int
    threads: int
    shared: int
    stream: int
    arguments: tuple[bytes, ...]


class FakeLibrary:
    """Attributes:
    log: what was called besides asking, in order.
    launches: what was launched.
    fails: the error of each call that fails, by name.
    context: the calling thread's context.
    """

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.launches: list[Launched] = []
        self.fails: dict[str, int] = {}
        self.context: int | None = None
        self._modules: dict[int, bytes] = {}
        self._functions: dict[int, tuple[str, tuple[int, ...], int]] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        fails = super().__getattribute__("fails") if name.startswith("cu") else {}
        return (lambda *args: fails[name]) if name in fails else found

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0

    def cuGetErrorName(self, code: int, out: Any) -> int:
        out._obj.value = NAMES.get(code)
        return 0 if code in NAMES else 1

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = 100 + index
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        assert (attribute, device) == (97, 100)
        out._obj.value = 227 << 10
        return 0

    def cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> int:
        self.log.append(("retain", device))
        out._obj.value = 1000 + device
        return 0

    def cuCtxGetCurrent(self, out: Any) -> int:
        out._obj.value = self.context
        return 0

    def cuCtxSetCurrent(self, context: int) -> int:
        self.log.append(("context", context))
        self.context = context
        return 0

    def cuModuleLoadData(self, out: Any, image: Any) -> int:
        assert self.context is not None
        code = bytes(image.raw)
        read_cubin(code)
        out._obj.value = 5000 + len(self._modules)
        self._modules[out._obj.value] = code
        return 0

    def cuModuleGetFunction(self, out: Any, module: Any, name: bytes) -> int:
        function = read_cubin(self._modules[module.value]).functions[name.decode()]
        assert function.threads is not None
        out._obj.value = 7000 + len(self._functions)
        self._functions[out._obj.value] = (name.decode(), function.parameters, function.threads)
        self.log.append(("load", name.decode()))
        return 0

    def cuFuncSetCacheConfig(self, function: Any, config: int) -> int:
        assert config == 1
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        self.log.append(("attribute", self._functions[function.value][0], attribute, value))
        return 0

    def cuLaunchKernel(self, function: int, *rest: Any) -> int:
        name, sizes, threads = self._functions[function]
        x, y, z, wide, high, deep, shared, stream, parameters, extra = rest
        assert (y, z, high, deep, extra) == (1, 1, 1, 1, None)
        assert wide == threads
        assert self.context is not None
        given = tuple(ctypes.string_at(address, size) for address, size in zip(parameters, sizes, strict=True))
        self.launches.append(Launched(name, x, wide, shared, stream, given))
        return 0


@contextmanager
def playing_driver(
    library: FakeLibrary | None = None, capability: int = 90, shared: int = 227 << 10
) -> Iterator[FakeLibrary]:
    """Meanwhile artifacts are loaded on a GPU whose driver is played; what its kernels would compute is not there."""
    played = library or FakeLibrary()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_load, "find_gpu", lambda spec: gpu_of(played, capability, shared))
        yield played


def gpu_of(library: Any, capability: int = 90, shared: int = 227 << 10) -> Gpu:
    """A GPU whose driver is played and whose memory is the CPU's."""
    assert TARGET.gpu is not None
    target = replace(TARGET, cpu=f"sm_{capability}", gpu=replace(TARGET.gpu, capability=capability))
    launcher = CodeLauncher(Driver(library), 0, lambda: 7, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
    return Gpu(target, launcher, shared, host_device(launcher))
