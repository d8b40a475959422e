"""Products that compute their rows in the same kernel: norms and activations before a linear layer, and odd sizes."""

import pytest

from smelt.codegen.machine import Machine
from smelt.codegen.program import Skeleton
from smelt.codegen.prologue import phases
from smelt.codegen.schedule import default_schedule, scratch
from smelt.codegen.simplify import simplify_program
from smelt.ir import ops
from smelt.ir.errors import UnsupportedError

from .harness import Case, Kernel, build, operand
from .prologue_cases import GRID, B, M, cases, doubled, norm_case, patches


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(cases())


@pytest.mark.parametrize("name", list(cases()))
def test_rows_before_a_product(kernels: dict[str, Kernel], name: str) -> None:
    for sizes in kernels[name].case.sizes:
        kernels[name].check(sizes)


def test_an_index_out_of_range_is_reported(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["embedding"]
    tensors = kernel.case.tensors({"b": 2, "m": 3})
    tensors[1][1, 2] = 11
    with pytest.raises(IndexError):
        kernel.run(tensors, {"b": 2, "m": 3})


def test_nan_stays_in_its_row(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["torch.float32, stored"]
    tensors = kernel.case.tensors({"m": 9})
    tensors[0][3, 7] = float("nan")
    out, norm = kernel.run(tensors, {"m": 9})
    assert [bool(row.isnan().any()) for row in norm] == [i == 3 for i in range(9)]
    assert out[3].isnan().all()
    assert not out[4:].isnan().any()


# --- what is held where -----------------------------------------------------------------------------------------------


def test_rows_that_are_a_result_are_read_from_there() -> None:
    stored, alone = norm_case(stored=lambda x, n: [n]).program(), norm_case().program()
    for program, lent in ((stored, 0), (alone, 1)):
        found = phases(program)
        assert found is not None
        assert (found.held is not None) == bool(lent)
        assert len(scratch(program, default_schedule(program, Machine()))) == lent


def test_memory_for_rows_is_bounded() -> None:
    program = norm_case(terms=1024).program()
    (held,) = scratch(program, default_schedule(program, Machine()))
    sizes = [held.type.shape[0].subs(M, m) for m in (3, 10**6)]  # type: ignore[union-attr]
    assert sizes == [3, 1024]


def test_phases_are_programs_without_prologue() -> None:
    found = phases(norm_case().program())
    assert found is not None
    assert phases(found.product) is None
    assert found.rows.skeleton is Skeleton.ROWS
    assert all(s.combine for s in found.rows.stages)


def test_a_product_of_what_is_in_memory_has_no_phases() -> None:
    x, w = operand(0, (M, 8)), operand(1, (4, 8))
    assert phases(Case([x, w], [ops.linear(x, w)], weights=frozenset([1])).program()) is None


@pytest.mark.parametrize("columns", [128, 127])
def test_rows_whose_terms_lie_apart_are_brought_together_for_many_columns(columns: int) -> None:
    found = phases(patches(3, 16, 16, columns).program())
    assert (found is not None) == (columns == 128)


def test_rows_cannot_be_read_at_other_columns() -> None:
    norm = norm_case(16, 16).outputs[0].inputs[0]
    product = norm_case(16, 16).outputs[0]
    case = Case(norm_case(16, 16).inputs, [ops.add(product, norm)], weights=frozenset([3]))
    with pytest.raises(UnsupportedError, match="another point"):
        case.program()


def test_statistics_cannot_be_read_after_the_product() -> None:
    x, w = operand(0, (M, 8)), operand(1, (8, 8))
    mean = ops.mean(x, dims=(1,), keepdim=True)
    case = Case([x, w], [ops.add(ops.linear(ops.sub(x, mean), w), mean)], weights=frozenset([1]))
    with pytest.raises(UnsupportedError, match="before"):
        default_schedule(case.program(), Machine())


def test_simplified_programs_mean_the_same() -> None:
    case = norm_case(rows=(B, M), before=doubled, stored=lambda x, n: [x])
    program = case.program(plain=True)
    for sizes in GRID:
        case.check_program(sizes, program)
        case.check_program(sizes, simplify_program(program))
