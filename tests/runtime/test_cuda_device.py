"""What is asked of ``torch.cuda``, and in which order. There is no GPU: its functions are replaced."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import smelt
from smelt.runtime.cuda.device import torch_device

GIB = 1 << 30


class Cuda:
    """``torch.cuda`` with two devices, the first of which is current."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.free = 5 * GIB
        self.now = "main"
        log = self.log

        class Graph:
            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                log.append(f"begin on {cuda.now}, {capture_error_mode}")

            def capture_end(self) -> None:
                log.append("end")
                cuda.free -= 1000

            def replay(self) -> None:
                log.append(f"replay on {cuda.now}")

        class Event:
            def record(self, stream: Any) -> None:
                log.append(f"record on {stream}")

            def wait(self, stream: Any) -> None:
                log.append(f"{stream} waits")

            def query(self) -> bool:
                return True

            def synchronize(self) -> None:
                log.append("synchronize")

        cuda = self
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "Stream", lambda index: f"side of {index}")
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "device", self.device)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "current_stream", lambda index=None: self.now)
        patch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(L2_cache_size=50 << 20))
        patch.setattr(torch.cuda, "mem_get_info", lambda index: (self.free, 80 * GIB))
        patch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty cache"))

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        self.log.append(f"device {index}")
        yield


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with pytest.MonkeyPatch.context() as patch:
        yield Cuda(patch)


def test_a_capture_is_made_on_a_stream_of_its_own(cuda: Cuda) -> None:
    gpu = torch_device(0)
    graph = gpu.capture(lambda: cuda.log.append(f"work on {cuda.now}"))
    assert cuda.log == ["begin on side of 0, thread_local", "work on side of 0", "end"]
    assert graph.nbytes == 1000
    graph.replay()
    assert cuda.log[-1] == "replay on main"


def test_a_capture_that_fails_is_ended(cuda: Cuda) -> None:
    def work() -> None:
        raise ValueError("as a launch may")

    with pytest.raises(ValueError, match="as a launch may"):
        torch_device(0).capture(work)
    assert cuda.log == ["begin on side of 0, thread_local", "end"]
    assert cuda.now == "main"


def test_captures_are_made_one_at_a_time(cuda: Cuda) -> None:
    started = threading.Event()

    def first() -> None:
        started.set()
        time.sleep(0.05)
        cuda.log.append("first")

    def second() -> None:
        started.wait()
        torch_device(0).capture(lambda: cuda.log.append("second"))

    threads = [threading.Thread(target=torch_device(0).capture, args=(first,)), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry for entry in cuda.log if not entry.startswith("begin")] == ["first", "end", "second", "end"]


def test_the_device_is_entered_where_it_is_not_current(cuda: Cuda) -> None:
    with torch_device(0).current():
        assert cuda.log == []
    with torch_device(1).current():
        assert cuda.log == ["device 1"]


def test_figures(cuda: Cuda) -> None:
    assert torch_device(1).cache_bytes == 50 << 20
    assert torch_device(1).memory() == (5 * GIB, 80 * GIB)


def test_kernels_are_compiled_for_the_device_in_every_thread(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from smelt.codegen.triton import loaded

    class Function:
        def warmup(self, *args: Any, **kwargs: Any) -> None:
            cuda.log.append("compile")

    launch = SimpleNamespace(buffers=("err",), symbols=(), warps=4, stages=1)
    narrow = SimpleNamespace(text="", launches=[launch], params=(), scratch=())
    file = SimpleNamespace(launches=[], narrow=narrow)  # the wider one is seldom called
    kernel: Any = SimpleNamespace(files=(file,))
    monkeypatch.setattr(loaded, "function_of", lambda text, launch: Function())
    monkeypatch.setattr(loaded, "interprets", lambda: False)
    torch_device(1).compile([kernel])
    assert cuda.log == ["device 1", "compile"]


def test_events_are_of_the_current_stream(cuda: Cuda) -> None:
    gpu = torch_device(0)
    mark = gpu.mark()
    with cuda.stream("other"):
        mark.wait()
    mark.synchronize()
    assert mark.done()
    assert cuda.log == ["record on main", "other waits", "synchronize"]


def test_full_memory_is_told_with_what_was_needed_and_free(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nGPU 0 has more to say.")

    monkeypatch.setattr(torch, "empty_strided", full)
    with pytest.raises(smelt.OutOfMemoryError) as told:
        torch_device(0).empty((1024, 1024), (2048, 1), torch.float32)
    assert (told.value.needed, told.value.free) == (4 * (1023 * 2048 + 1024), 5 * GIB)
    assert str(told.value) == (
        "cuda:0 is out of memory: 8,384,512 bytes were needed, 5,368,709,120 bytes of 85,899,345,920 bytes were free. "
        "Call the model with fewer rows, or free what you do not need. PyTorch said: CUDA out of memory. Tried to "
        "allocate 8 GiB."
    )


def test_the_functions_are_pytorchs() -> None:
    """What is replaced above is called as this PyTorch has it."""
    graph = torch.cuda.CUDAGraph
    inspect.signature(graph.capture_begin).bind(None, capture_error_mode="thread_local")
    inspect.signature(graph.capture_end).bind(None)
    inspect.signature(graph.replay).bind(None)
    inspect.signature(torch.cuda.Event.record).bind(None, None)
    inspect.signature(torch.cuda.Event.wait).bind(None, None)
    inspect.signature(torch.cuda.mem_get_info).bind(0)
    inspect.signature(torch.cuda.current_stream).bind(0)
    inspect.signature(torch.cuda.is_current_stream_capturing).bind()
