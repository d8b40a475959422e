"""Weights packed in panels."""

import pytest
import torch

from smelt.codegen.tvm.packing import ALIGNMENT, HUGE_PAGE, aligned_empty, memory, pack_panels, unpack_panels


@pytest.mark.parametrize("columns", [0, 1, 15, 16, 17, 64, 100])
@pytest.mark.parametrize("tile", [1, 16, 48])
def test_packing_is_undone(columns: int, tile: int) -> None:
    matrix = torch.randn(7, columns)
    panels = pack_panels(matrix, tile)
    assert panels.shape == (-(-columns // tile), 7, tile)
    assert torch.equal(unpack_panels(panels, columns), matrix)


def test_padding_is_zero() -> None:
    panels = pack_panels(torch.ones(3, 5), 4)
    assert panels[1, :, 1:].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_panels_are_aligned(dtype: torch.dtype) -> None:
    for rows in range(1, 9):
        assert pack_panels(torch.randn(rows, 5).to(dtype), 16).data_ptr() % ALIGNMENT == 0


def test_any_strides_and_no_rows() -> None:
    matrix = torch.randn(40, 6, 2)[::2, :, 1].T
    assert torch.equal(unpack_panels(pack_panels(matrix, 16), 20), matrix)
    assert pack_panels(torch.randn(0, 5), 16).shape == (1, 0, 16)


def test_aligned_memory_of_no_elements() -> None:
    assert aligned_empty((0, 4), torch.float32).shape == (0, 4)


@pytest.mark.parametrize("nbytes", [0, 1, HUGE_PAGE - 1, HUGE_PAGE, 2 * HUGE_PAGE + 4097])
def test_memory_is_writable_to_its_last_byte(nbytes: int) -> None:
    found = memory(nbytes)
    assert found.shape == (nbytes,)
    part = found.fill_(7)[nbytes // 2 :]
    del found  # a part keeps the whole
    assert torch.equal(part, torch.full((nbytes - nbytes // 2,), 7, dtype=torch.uint8))
