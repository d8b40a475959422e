"""Products by the dot instructions of bfloat16 pairs and int8 quads: awkward sizes, special values, who takes them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smelt.codegen.dot import terms_at_once
from smelt.codegen.machine import Machine
from smelt.codegen.prologue import phases
from smelt.codegen.schedule import MatmulSchedule, candidates, default_schedule
from smelt.ir import ops
from smelt.ir.types import Dim, symbol
from smelt.runtime.target import Target

from .harness import Case, Kernel, build, operand
from .matmul_cases import BATCHED, linear_case
from .prologue_cases import norm_case

M, N, K, B = symbol("m"), symbol("n"), symbol("k"), symbol("b")
BF16, I8, U8, I32 = torch.bfloat16, torch.int8, torch.uint8, torch.int32
MACHINE = Machine(has_bf16_dot=True, has_vnni=True)
ROWS = [{"m": m} for m in (0, 1, 2, 4, 5, 8, 9, 17, 100, 400)]
SIZES = [(1, 1), (2, 3), (3, 17), (64, 2), (768, 48), (5, 500), (513, 33)]

here = Target.detect("cpu").machine
needs_bf16 = pytest.mark.skipif(not here.has_bf16_dot, reason="this processor has no dot instruction of bfloat16")
needs_vnni = pytest.mark.skipif(not here.has_vnni, reason="this processor has no dot instruction of int8")


def on_dot(case: Case, **changes: object) -> Case:
    """The case as a machine with the instructions runs it."""
    schedule = default_schedule(case.program(), MACHINE)
    assert isinstance(schedule, MatmulSchedule)
    assert schedule.group > 1
    return replace(case, schedule=replace(schedule, **changes))  # type: ignore[arg-type]


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


def _pairs() -> dict[str, Case]:
    found = {f"{k}x{n}": on_dot(linear_case((M,), k, n, BF16, sizes=ROWS)) for k, n in SIZES}
    found["relu"] = on_dot(linear_case((M,), 66, 50, BF16, ops.relu))
    found["gelu"] = on_dot(linear_case((M,), 64, 96, BF16, ops.gelu))
    two = [{"b": b, "m": m} for b, m in ((0, 3), (1, 1), (3, 17))]
    found["two row axes"] = on_dot(linear_case((B, M), 40, 33, BF16, sizes=two))
    found["no rows"] = on_dot(linear_case((), 40, 33, BF16, sizes=[{}]))
    found["column major"] = on_dot(linear_case((M,), 24, 40, BF16, layouts=[(1, 0)]))
    found["transposed operand"] = on_dot(linear_case((M,), 24, 40, BF16, operands={0: (1, 0)}))
    found["blocks of terms"] = on_dot(linear_case((M,), 70, 100, BF16), block_k=32)
    found["blocks, copied"] = on_dot(linear_case((M,), 70, 100, BF16), block_k=32, blocked=True, pack_left=True)
    found["panels, copied"] = on_dot(linear_case((M,), 70, 100, BF16), block_k=32, blocked=True, pack_right=True)
    found["blocks, odd"] = on_dot(linear_case((M,), 71, 100, BF16), block_k=32, block_m=1)
    for name, case in {
        "norm": norm_case(dtype=BF16),
        "norm, stored": norm_case(dtype=BF16, stored=lambda x, n: [n]),
        "norm, odd": norm_case(17, 33, BF16),
        "norm, odd, stored": norm_case(17, 33, BF16, stored=lambda x, n: [n]),
        "norm, all threads": replace(norm_case(384, 16, BF16), sizes=[{"m": 50}], rtol=0.2),  # of sums of about 20
    }.items():
        found[name] = on_dot(case)
    found["norm, in steps"] = on_dot(norm_case(dtype=BF16), held_rows=8)
    return found


def _products() -> dict[str, Case]:
    def product(left: tuple[Dim, ...], right: tuple[Dim, ...], turned: bool = False, **rest: object) -> Case:
        a, b = operand(0, left, BF16), operand(1, right, BF16)
        axes = (*range(len(right) - 2), len(right) - 1, len(right) - 2)
        result = ops.matmul(a, ops.permute(b, dims=axes) if turned else b)
        return on_dot(Case([a, b], [result], **{"sizes": BATCHED, "rtol": 5e-2, **rest}))  # type: ignore[arg-type]

    fixed = [{"b": b, "m": m, "n": n} for b, m, n in ((1, 1, 1), (2, 17, 33), (3, 49, 64), (2, 0, 3), (2, 3, 0))]
    found = {
        "batched": product((B, M, K), (B, K, N)),
        "transposed": product((B, M, K), (B, N, K), True),
        "strided": product((B, M, K), (B, N, K), True, operands={0: (1, 0, 2), 1: (2, 1, 0)}),
        "shared right": product((B, M, K), (K, N)),
    }
    for terms in (1, 37, 64):
        found[f"{terms} terms"] = product((B, M, terms), (B, terms, N), sizes=fixed)
        found[f"{terms} terms, transposed"] = product((B, M, terms), (B, N, terms), True, sizes=fixed)
    a, b = operand(0, (B, M, 31), BF16), operand(1, (B, 31, N), BF16)
    computed = ops.matmul(ops.relu(a), ops.neg(b))
    found["computed operands"] = on_dot(Case([a, b], [ops.tanh(computed)], fixed, rtol=5e-2))
    return found


@pytest.fixture(scope="module")
def pairs() -> dict[str, Kernel]:
    return build(_pairs() | _products())


@needs_bf16
@pytest.mark.parametrize("name", [*_pairs(), *_products()])
def test_pairs(pairs: dict[str, Kernel], name: str) -> None:
    for sizes in pairs[name].case.sizes:
        pairs[name].check(sizes)


@needs_bf16
def test_every_candidate_computes_the_same() -> None:
    base = linear_case((M,), 70, 100, BF16)
    cases = {str(i): replace(base, schedule=s) for i, s in enumerate(candidates(base.program(), MACHINE))}
    for kernel in build(cases).values():
        for sizes in ({"m": 1}, {"m": 49}):
            kernel.check(sizes)


@needs_bf16
@pytest.mark.parametrize("terms", [30, 31])
def test_nan_and_infinity_stay_in_their_rows(terms: int) -> None:
    kernel = build({"0": on_dot(linear_case((M,), terms, 20, BF16))})["0"]
    tensors = kernel.case.tensors({"m": 9})
    for row, value in ((0, "nan"), (2, "inf"), (4, "-inf")):
        tensors[0][row, terms - 1] = float(value)
    tensors[1][3, 0] = float("inf")  # a column, with zeros in some rows
    tensors[0][6, 0] = 0
    kernel.check({"m": 9}, tensors)


@needs_bf16
def test_memory_past_the_last_term_is_not_read_into_the_sum() -> None:
    """Rows of an odd number of terms lie side by side: a pair of the last one would have the next row's first."""
    kernel = build({"0": on_dot(linear_case((M,), 7, 5, BF16))})["0"]
    x, w, b = kernel.case.tensors({"m": 4})
    x[2] = float("nan")
    out = kernel.run([x, w, b], {"m": 4})[0]
    assert [bool(row.isnan().any()) for row in out] == [False, False, True, False]


@needs_bf16
def test_sums_of_many_terms_are_as_exact_as_eagers() -> None:
    torch.manual_seed(1)
    case = on_dot(linear_case((M,), 16384, 16, BF16))
    kernel = build({"0": case})["0"]
    tensors = [t.abs() for t in case.tensors({"m": 8})]
    exact = case.meaning(tensors, {"m": 8}, torch.float64)[0]
    eager, ours = case.meaning(tensors, {"m": 8}, None)[0], kernel.run(tensors, {"m": 8})[0]
    assert rmse(ours, exact) <= 1.1 * rmse(eager, exact)


@needs_bf16
def test_what_the_instruction_does_to_small_numbers() -> None:
    """Operands below the least normal number count as zero, as they do in the bf16 products of oneDNN."""
    kernel = build({"0": on_dot(linear_case((M,), 2, 1, BF16))})["0"]
    tiny, least = 2.0**-130, 2.0**-126
    x = torch.tensor([[tiny, 0], [least, 0], [tiny, 1]], dtype=BF16)
    w, b = torch.tensor([[2.0**100, 3]], dtype=BF16), torch.zeros(1, dtype=BF16)
    assert kernel.run([x, w, b], {"m": 3})[0].flatten().tolist() == [0, 2.0**-26, 3]


def rmse(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())


# --- int8 -------------------------------------------------------------------------------------------------------------


def bytes_case(terms: int, columns: int, left: torch.dtype = I8, rows: int | None = None, **rest: object) -> Case:
    x, w = operand(0, (rows or M, terms), left), operand(1, (columns, terms), I8)
    product = ops.linear(ops.cast(x, dtype=I32), ops.cast(w, dtype=I32))
    low = {U8: 0, I8: -128}[left]
    sizes = [{}] if rows else ROWS
    return Case([x, w], [product], sizes, weights=frozenset([1]), low=low, high=128, **rest)  # type: ignore[arg-type]


def _quads() -> dict[str, Case]:
    found = {
        f"{k}x{n}": on_dot(bytes_case(k, n))
        for k, n in [(1, 1), (2, 3), (3, 17), (4, 16), (64, 2), (17, 49), (70, 100), (513, 33)]
    }
    found |= {f"unsigned {k}x{n}": on_dot(bytes_case(k, n, U8)) for k, n in ((64, 48), (17, 49))}
    found["blocks of terms"] = on_dot(bytes_case(72, 100), block_k=32)
    found["blocks, copied"] = on_dot(bytes_case(71, 100), block_k=32, blocked=True, pack_left=True)
    found["scaled"] = on_dot(_scaled())
    return found


def _scaled() -> Case:
    """A float result: the integer sum times a scale of the row and one of the column."""
    x, w = operand(0, (M, 40), I8), operand(1, (33, 40), I8)
    rows, columns = operand(2, (M, 1)), operand(3, (33,))
    total = ops.cast(ops.linear(ops.cast(x, dtype=I32), ops.cast(w, dtype=I32)), dtype=torch.float32)
    return Case([x, w, rows, columns], [ops.mul(ops.mul(total, rows), columns)], ROWS, weights=frozenset([1]), high=128)


@pytest.fixture(scope="module")
def quads() -> dict[str, Kernel]:
    return build(_quads())


@needs_vnni
@pytest.mark.parametrize("name", list(_quads()))
def test_quads(quads: dict[str, Kernel], name: str) -> None:
    for sizes in quads[name].case.sizes:
        quads[name].check(sizes)


@needs_vnni
def test_the_largest_bytes_are_exact() -> None:
    terms = 16384
    kernel = build({"0": on_dot(bytes_case(terms, 3))})["0"]
    x = torch.tensor([-128, 127]).to(I8).repeat_interleave(terms).reshape(2, terms)
    w = torch.tensor([-128, 127, 1]).to(I8).repeat_interleave(terms).reshape(3, terms)
    expected = torch.tensor([[-128], [127]]) * torch.tensor([-128, 127, 1]) * terms
    assert torch.equal(kernel.run([x, w], {"m": 2})[0].long(), expected)


# --- who takes them ---------------------------------------------------------------------------------------------------


def group(case: Case, machine: Machine) -> int:
    return terms_at_once(case.program(), machine)


def test_the_machine_decides() -> None:
    floats, whole = linear_case((M,), 64, 48, BF16), bytes_case(64, 48)
    assert [group(floats, m) for m in (Machine(), MACHINE, Machine(has_vnni=True))] == [1, 2, 1]
    assert [group(whole, m) for m in (Machine(), MACHINE, Machine(has_bf16_dot=True))] == [1, 4, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_dtypes_are_multiplied_term_by_term(dtype: torch.dtype) -> None:
    assert group(linear_case((M,), 64, 48, dtype), MACHINE) == 1


def test_a_weight_that_is_computed_in_the_kernel_is_multiplied_term_by_term() -> None:
    x, w = operand(0, (M, 64), BF16), operand(1, (48, 64), torch.float32)
    case = Case([x, w], [ops.linear(x, ops.cast(w, dtype=BF16))], weights=frozenset([1]))
    program = case.program()
    assert terms_at_once(program, MACHINE) == (1 if any(p.format.value == "panels" for p in program.params) else 2)


def test_products_of_bytes_that_are_no_weights_are_multiplied_term_by_term() -> None:
    a, b = (ops.cast(operand(i, s, I8), dtype=I32) for i, s in enumerate([(B, M, 8), (B, 8, N)]))
    assert group(Case([a.inputs[0], b.inputs[0]], [ops.matmul(a, b)]), MACHINE) == 1


def test_rows_that_are_held_are_pairs() -> None:
    found = phases(norm_case(dtype=BF16).program())
    assert found is not None
    assert found.held is not None
    assert found.held.type.dtype == BF16
