"""The CUDA driver by ctypes: machine code loaded, and launched on a stream of PyTorch's. Neither Triton nor a compiler.

Code stays loaded until the process ends: what may still run is never taken away, and loading it again costs nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ...ir.errors import BackendError
from .errors import DriverError

LIBRARY = "libcuda.so.1"
FREE_SHARED = 48 << 10  # bytes of shared memory that a launch may have without asking

# numbers of ``cuda.h``
_SUCCESS = 0
_MAX_SHARED_OPTIN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PREFER_SHARED = 1  # CU_FUNC_CACHE_PREFER_SHARED

_pointer, _int, _uint = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_uint,),
    "cuGetErrorName": (_int, _pointer),
    "cuDeviceGet": (_pointer, _int),
    "cuDeviceGetAttribute": (_pointer, _int, _int),
    "cuDevicePrimaryCtxRetain": (_pointer, _int),
    "cuCtxGetCurrent": (_pointer,),
    "cuCtxSetCurrent": (_pointer,),
    "cuModuleLoadData": (_pointer, _pointer),
    "cuModuleGetFunction": (_pointer, _pointer, ctypes.c_char_p),
    "cuFuncSetAttribute": (_pointer, _int, _int),
    "cuFuncSetCacheConfig": (_pointer, _int),
    "cuLaunchKernel": (_pointer, *(_uint,) * 7, _pointer, _pointer, _pointer),
}


class Library(Protocol):
    """The driver's functions by name, each of which returns 0 where nothing went wrong."""

    def __getattr__(self, name: str) -> Any: ...


class Driver:
    """The driver of one process.

    Args:
        library: its functions; by default those of ``libcuda.so.1``.

    Raises:
        BackendError: there is no such library.
    """

    def __init__(self, library: Library | None = None) -> None:
        self._library = _open() if library is None else library
        self._lock = threading.Lock()
        self._contexts: dict[int, int] = {}
        self._functions: dict[tuple[int, bytes, str], int] = {}
        self._call("cuInit", 0)

    def most_shared(self, device: int) -> int:
        """The most bytes of shared memory that a block of threads may have on a GPU."""
        found = _int()
        self._call("cuDeviceGetAttribute", ctypes.byref(found), _MAX_SHARED_OPTIN, self._handle(device))
        return found.value

    def function(self, device: int, code: bytes, name: str, shared: int) -> int:
        """A function of a cubin, loaded on a GPU; the same code is loaded once.

        Args:
            device: the number of the GPU, as PyTorch counts.
            code: the cubin.
            name: of the function.
            shared: bytes of shared memory that its launches ask for.

        Raises:
            DriverError: the driver refuses the code, or has no such function.
        """
        key = (device, hashlib.sha256(code).digest(), name)
        with self._lock:
            if key not in self._functions:
                with self._entered(device):
                    self._functions[key] = self._loaded(code, name, shared)
            return self._functions[key]

    def launch(
        self, device: int, function: int, programs: int, threads: int, shared: int, stream: int, parameters: Any
    ) -> None:
        """Launch a function on a stream.

        Args:
            parameters: the addresses of the arguments, an array of pointers.

        Raises:
            DriverError: the driver refuses it.
        """
        self._enter(device)
        code = self._library.cuLaunchKernel(function, programs, 1, 1, threads, 1, 1, shared, stream, parameters, None)
        if code != _SUCCESS:
            raise self._error("cuLaunchKernel", code)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _loaded(self, code: bytes, name: str, shared: int) -> int:
        module, function = _pointer(), _pointer()
        image = (ctypes.c_char * len(code)).from_buffer_copy(code)
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        if shared > FREE_SHARED:
            self._call("cuFuncSetCacheConfig", function, _PREFER_SHARED)
            self._call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared)
        return function.value or 0

    @contextmanager
    def _entered(self, device: int) -> Iterator[None]:
        """Meanwhile a GPU's context is the calling thread's, which then gets back its own.

        PyTorch takes the context for its current device: whoever loads code for the second GPU stays on the first.
        """
        before = _pointer()
        self._call("cuCtxGetCurrent", ctypes.byref(before))
        self._enter(device)
        try:
            yield
        finally:
            if before.value != self._contexts[device]:
                self._call("cuCtxSetCurrent", before.value)

    def _enter(self, device: int) -> None:
        """Make the context that PyTorch uses of a GPU the calling thread's, unless it is."""
        context = self._contexts.get(device)
        if context is None:
            made = _pointer()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(made), self._handle(device))
            context = self._contexts[device] = made.value or 0
        now = _pointer()
        self._call("cuCtxGetCurrent", ctypes.byref(now))
        if now.value != context:
            self._call("cuCtxSetCurrent", context)

    def _handle(self, device: int) -> int:
        found = _int()
        self._call("cuDeviceGet", ctypes.byref(found), device)
        return found.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != _SUCCESS:
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> DriverError:
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorName(code, ctypes.byref(text)) == _SUCCESS and text.value
        return DriverError(name, code, text.value.decode() if known and text.value else f"error {code}")


def parameters_of(values: Sequence[int]) -> tuple[Any, Any]:
    """Memory of eight bytes for each argument, in which the values stand, and the array of pointers to them."""
    memory = (ctypes.c_uint64 * max(len(values), 1))(*values)
    start = ctypes.addressof(memory)
    return memory, (ctypes.c_void_p * max(len(values), 1))(*(start + 8 * i for i in range(len(values))))


def _open() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendError(f"kernels for a GPU need NVIDIA's driver, and {LIBRARY} cannot be loaded: {error}") from None
    for name, signature in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = signature, _int
    return library


_opened: list[Driver] = []
_opening = threading.Lock()


def driver() -> Driver:
    """The process's driver.

    Raises:
        BackendError: there is none.
    """
    with _opening:
        if not _opened:
            _opened.append(Driver())
        return _opened[0]
