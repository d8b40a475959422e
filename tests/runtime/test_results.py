"""Memory for results: PyTorch's, and in huge pages where it is large."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.results import HUGE_PAGE, HUGE_PAGES, LARGE_BYTES, ResultMemory, empty_result

SMAPS = Path("/proc/self/smaps")
needs_linux = pytest.mark.skipif(
    HUGE_PAGES is None or not SMAPS.exists() or "VmFlags" not in SMAPS.read_text(), reason="no account of pages"
)


def asked_for_huge_pages(result: Tensor) -> bool:
    """Whether the system was asked for huge pages in the middle of a tensor's memory."""
    middle = result.data_ptr() + result.nbytes // 2
    inside = False
    for line in SMAPS.read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"{middle:x} is in no mapping")


@needs_linux
def test_a_large_result_is_in_huge_pages() -> None:
    assert asked_for_huge_pages(empty_result((64, 1 << 20), (1 << 20, 1), torch.float32))


@needs_linux
def test_the_results_of_a_model_are() -> None:
    fast = smelt.compile(nn.Linear(8, 1 << 16).eval(), cache=False)
    assert asked_for_huge_pages(fast(torch.ones(256, 8)))


@pytest.mark.parametrize(
    "nbytes", [0, 1, HUGE_PAGE - 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 10 * HUGE_PAGE + 7]
)
def test_results_of_any_size_are_tensors_as_others(nbytes: int) -> None:
    result = empty_result((nbytes,), (1,), torch.uint8)
    result.fill_(3)
    assert result.shape == (nbytes,)
    assert int(result.sum()) == 3 * nbytes
    # memory of PyTorch's, which grows as any other
    assert result.resize_(nbytes + 5).numel() == nbytes + 5


def test_strides_are_as_asked() -> None:
    result = empty_result((1000, 2000), (1, 1000), torch.float32)
    assert result.stride() == (1, 1000)
    assert result.dtype is torch.float32


@pytest.mark.parametrize("inference", [False, True])
def test_results_are_inference_tensors_as_pytorch_s_are(inference: bool) -> None:
    with torch.inference_mode(inference):
        result = empty_result((3, 4), (4, 1), torch.bfloat16)
        assert result.is_inference() is inference
        assert not result.requires_grad
    assert result.device == torch.device("cpu")


def test_results_lie_in_memory_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert empty_result((3, 4), (4, 1), torch.float32).device == torch.device("cpu")


# --- memory of earlier results -------------------------------------------------------------------------------------


SHAPE, STRIDES = (8, 1 << 20), (1 << 20, 1)


def test_memory_is_taken_again_once_nobody_has_a_result_in_it() -> None:
    memory = ResultMemory()
    first = memory.empty(0, SHAPE, STRIDES, torch.float32)
    address = first.data_ptr()
    del first
    again = memory.empty(0, SHAPE, STRIDES, torch.float32)
    assert again.data_ptr() == address
    assert (again.shape, again.stride(), again.dtype) == (SHAPE, STRIDES, torch.float32)
    assert memory.empty(1, SHAPE, STRIDES, torch.float32).data_ptr() != address
    small = memory.empty(2, (4,), (1,), torch.float32).data_ptr()
    assert small not in (address, 0)


@pytest.mark.parametrize(
    "hold",
    [
        lambda x: x,
        lambda x: x[3, 5:7],
        lambda x: x.numpy(),
        lambda x: x.detach(),
        lambda x: torch.from_dlpack(x),
        lambda x: x.untyped_storage(),
        lambda x: (torch.ones(1, requires_grad=True) * x).sum(),  # which keeps it for its gradient
    ],
)
def test_memory_that_somebody_sees_is_not_taken(hold: Callable[[Tensor], object]) -> None:
    memory = ResultMemory()
    first = memory.empty(0, SHAPE, STRIDES, torch.float32)
    address, held = first.data_ptr(), hold(first.fill_(1))
    del first
    other = memory.empty(0, SHAPE, STRIDES, torch.float32)
    assert other.data_ptr() != address
    del held


def test_memory_that_another_process_may_read_is_not_taken() -> None:
    memory = ResultMemory()
    memory.empty(0, SHAPE, STRIDES, torch.float32).share_memory_()
    kept = memory._kept[0].untyped_storage()
    other = memory.empty(0, SHAPE, STRIDES, torch.float32)
    assert other.untyped_storage().data_ptr() != kept.data_ptr()


def test_memory_of_another_size_is_not_taken() -> None:
    memory = ResultMemory()
    memory.empty(0, SHAPE, STRIDES, torch.float32)
    longer = memory.empty(0, (9, 1 << 20), STRIDES, torch.float32)
    assert longer.untyped_storage().nbytes() == 9 << 22


def test_results_of_calls_are_their_callers() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 1 << 16).eval()
    fast = smelt.compile(model, cache=False)
    xs = [torch.randn(32, 8) for _ in range(4)]
    with torch.no_grad():
        kept = [fast(x) for x in xs]
        parts = [fast(x)[3, 100:200] for x in xs]
        for x, whole, part in zip(xs, kept, parts, strict=True):
            torch.testing.assert_close(whole, model(x))
            torch.testing.assert_close(part, model(x)[3, 100:200])
        addresses = {fast(x).data_ptr() for x in xs}
    assert len(addresses) == 1
    with torch.inference_mode():
        assert fast(xs[0]).is_inference()
