"""Weights packed in panels."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from smelt.codegen.schedule import PanelLayout
from smelt.codegen.tvm import packing
from smelt.codegen.tvm.packing import (
    ALIGNMENT,
    CHUNK,
    HUGE_PAGE,
    Pool,
    aligned_empty,
    memory,
    pack_panels,
    panels_of,
    unpack_panels,
)

LAYOUTS = [PanelLayout(t, g) for t, g in ((1, 1), (16, 1), (48, 1), (16, 2), (48, 2), (16, 4), (48, 4))]
DTYPES = {1: torch.float32, 2: torch.bfloat16, 4: torch.int8}


def drawn(k: int, n: int, group: int = 1) -> torch.Tensor:
    """A random matrix of what is packed in such groups."""
    return (40 * torch.randn(k, n)).clamp(-128, 127).to(DTYPES[group])


@pytest.mark.parametrize("columns", [0, 1, 15, 16, 17, 64, 100])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_packing_is_undone(columns: int, layout: PanelLayout) -> None:
    for terms in (0, 1, 7, 8):
        matrix = drawn(terms, columns, layout.group)
        panels = pack_panels(matrix, layout)
        assert panels.shape == (-(-columns // layout.tile), layout.rows(terms), layout.tile, layout.group)
        assert panels.numel() == layout.elements(terms, columns)
        assert torch.equal(unpack_panels(panels, terms, columns, layout), matrix)


def test_terms_of_a_group_lie_side_by_side() -> None:
    matrix = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    assert pack_panels(matrix, PanelLayout(3, 2))[0, 0].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_quads_come_after_what_makes_up_for_signs() -> None:
    matrix = drawn(9, 5, 4)
    panels = pack_panels(matrix, PanelLayout(4, 4))
    assert panels[:, 0].reshape(-1).view(torch.int32).tolist() == [*(-128 * matrix.sum(0)).tolist(), 0, 0, 0]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_padding_is_zero(group: int) -> None:
    panels = pack_panels(torch.ones(3, 5).to(DTYPES[group]), PanelLayout(4, group))
    extra = 1 if group == 4 else 0
    assert panels[1, extra:, 1:].abs().sum() == 0
    assert panels[:, extra:].float().sum() == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_panels_are_aligned(dtype: torch.dtype) -> None:
    for rows in range(1, 9):
        assert pack_panels(torch.randn(rows, 5).to(dtype), PanelLayout(16)).data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("columns", [(96, 48), (5, 7, 100), (0, 16, 1), (3, 0, 0, 50), (1, 1, 1)], ids=str)
def test_matrices_side_by_side(columns: tuple[int, ...], layout: PanelLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [drawn(9, n, layout.group) for n in columns]
    expected = pack_panels(torch.cat(parts, 1), layout)
    for most in (1, 4 << 20):
        monkeypatch.setattr(packing, "WORK_BYTES", most)
        panels, work = panels_of([part.T.contiguous().T for part in parts], layout)
        for fill in reversed(work):
            fill()
        assert torch.equal(panels, expected)
        assert len(work) >= len(panels) or most > 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_strides_and_no_rows(layout: PanelLayout) -> None:
    matrix = drawn(40, 12, layout.group).view(40, 6, 2)[::2, :, 1].T
    assert torch.equal(unpack_panels(pack_panels(matrix, layout), 6, 20, layout), matrix)
    assert pack_panels(drawn(0, 5, layout.group), layout).numel() == layout.elements(0, 5)


def test_aligned_memory_of_no_elements() -> None:
    assert aligned_empty((0, 4), torch.float32).shape == (0, 4)


@pytest.mark.parametrize("nbytes", [0, 1, HUGE_PAGE - 1, HUGE_PAGE, 2 * HUGE_PAGE + 4097])
def test_memory_is_writable_to_its_last_byte(nbytes: int) -> None:
    found = memory(nbytes)
    assert found.shape == (nbytes,)
    part = found.fill_(7)[nbytes // 2 :]
    del found  # a part keeps the whole
    assert torch.equal(part, torch.full((nbytes - nbytes // 2,), 7, dtype=torch.uint8))


def test_what_lies_in_a_pool_is_apart() -> None:
    pool = Pool()
    with ThreadPoolExecutor(4) as threads:
        sizes = [CHUNK // 4 + 1, *((i * 791_911) % 9_000_000 + 1 for i in range(40))]
        taken = list(threads.map(lambda size: aligned_empty((size,), torch.uint8, pool), sizes))
    assert {t.data_ptr() % ALIGNMENT for t in taken} == {0}
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel()) for t in taken)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_packing_into_a_pool_changes_nothing() -> None:
    matrix, layout = drawn(70, 50), PanelLayout(16)
    pool = Pool()
    first, second = (pack_panels(matrix, layout, pool) for _ in range(2))
    assert torch.equal(first, pack_panels(matrix, layout))
    assert torch.equal(first, second)
