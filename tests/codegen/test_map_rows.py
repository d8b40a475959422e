"""Map, rows and scatter kernels, compiled, against what their regions mean."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import default_schedule
from smelt.ir import ops
from smelt.ir.node import Node

from .harness import Case, Kernel, build, operand, tvm_module
from .regions import BF16, I64, SIZES, B, S, one, x, y, z
from .rows_cases import AWKWARD, CASES

# --- reductions -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(CASES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_kernel_means_what_the_region_means(name: str, kernels: dict[str, Kernel]) -> None:
    for sizes in CASES[name].sizes:
        kernels[name].check(sizes)


# --- special values ---------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("at", [0, 5, 20, 69])
@pytest.mark.parametrize(
    "name", ["amax (2,)", "amin (1,)", "softmax 1", "argmax 1", "argmin 2", "argmax of any", "sum of any"]
)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_number_that_is_none(name: str, value: float, at: int, kernels: dict[str, Kernel]) -> None:
    kernel = kernels[name]
    sizes = {"b": 2, "s": 70}
    (source,) = kernel.case.tensors(sizes)
    source.reshape(2, 70, -1)[0, at] = value
    (expected,), (found,) = kernel.case.meaning([source], sizes), kernel.run([source], sizes)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-5, equal_nan=True)


def test_the_first_of_equals_is_chosen(kernels: dict[str, Kernel]) -> None:
    for name, source in {
        "argmax of any": torch.tensor([[0.0, 2.0] * 40, [NAN, 1.0] * 40, [-INF] * 80]),
        "argmin beside any": torch.tensor([[0.0, 2.0] * 40, [NAN, 1.0] * 40, [INF] * 80]).T.contiguous(),
    }.items():
        b, s = source.shape
        (found,) = kernels[name].run([source], {"b": b, "s": s})
        assert torch.equal(found, kernels[name].case.meaning([source], {"b": b, "s": s})[0])


def test_a_row_of_nothing(kernels: dict[str, Kernel]) -> None:
    empty = torch.empty(3, 0)
    assert kernels["sum of any"].run([empty], {"b": 3, "s": 0})[0].tolist() == [0, 0, 0]
    assert kernels["softmax of any"].run([empty], {"b": 3, "s": 0})[0].shape == (3, 0)
    assert kernels["sum beside any"].run([torch.empty(0, 3)], {"b": 0, "s": 3})[0].tolist() == [0, 0, 0]


def test_rows_that_are_all_masked(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["masked softmax"], {"b": 2, "s": 5}
    scores, mask = torch.randn(2, 4, 5, 5), torch.tensor([[True] * 5, [False] * 5])
    (found,) = kernel.run([scores, mask], sizes)
    assert found[1].isnan().all()
    assert not found[0].isnan().any()


# --- indices out of range ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "position", "bad"),
    [
        ("embedding", 1, 7),
        ("embedding", 1, -1),
        ("embedding of one row", 1, 1),
        ("index wraps", 1, 7),
        ("index wraps", 1, -8),
        ("index by two", 2, 5),
        ("index along the last axis", 1, 2**40),
        ("gather", 1, 7),
        ("gather", 1, -1),
        ("mean of embeddings", 1, 7),
        ("mean over (2,) of embeddings of 16", 1, 7),
        ("sum over (1, 2) of embeddings of 100", 1, -1),
        ("var over (2,) of embeddings of 32", 1, 2**20),
        ("cumsum of embeddings", 1, -1),
        ("softmax of embeddings where data says so", 1, 7),
        ("embedding under padding", 1, 7),
        ("embedding beside something", 1, -(2**50)),
        ("index_put", 2, 9),
        ("index_put", 2, -10),
        ("index_put adds torch.float32", 2, 9),
        ("scatter", 1, -1),
        ("scatter along the last axis", 1, 9),
        ("scatter adds", 1, 2**33),
    ],
)
def test_index_out_of_range(name: str, position: int, bad: int, kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels[name], {"b": 2, "s": 3}
    tensors = kernel.case.tensors(sizes)
    kernel.run(tensors, sizes)
    tensors[position].reshape(-1)[-1] = bad
    with pytest.raises(IndexError):
        kernel.run(tensors, sizes)  # which also checks that nothing around the operands was touched
    with pytest.raises(IndexError):
        kernel.case.interpret(kernel.program, tensors, sizes)
    with pytest.raises(IndexError):
        kernel.case.meaning(tensors, sizes)


def empty_choices() -> dict[str, Case]:
    rows, at, new = x(S, 4), y(B, dtype=I64), z(B, 4)
    return {
        "from nothing": Case([rows, at], [ops.index(rows, at, dim=0)]),
        "into nothing": Case(
            [rows, new, operand(2, (B,), I64)], [ops.index_put(rows, y(B, 4), operand(2, (B,), I64), dim=0)]
        ),
    }


@pytest.mark.parametrize("name", empty_choices())
def test_nothing_to_choose_from(name: str) -> None:
    case = empty_choices()[name]
    if name == "into nothing":
        case.inputs = [x(S, 4), y(B, 4), operand(2, (B,), I64)]
    kernel = build({name: case})[name]
    tensors = case.tensors({"b": 0, "s": 0})
    kernel.run(tensors, {"b": 0, "s": 0})
    tensors = case.tensors({"b": 2, "s": 0})
    with pytest.raises(IndexError):
        kernel.run(tensors, {"b": 2, "s": 0})


def test_the_last_writer_wins() -> None:
    """In row-major order of the indices; PyTorch leaves it open."""
    target, values, places = x(9, 2), y(S, B), z(B, S, dtype=I64)
    value = ops.reshape(ops.permute(values, dims=(1, 0)), shape=(B, S, 1))
    case = Case([target, values, places], [ops.index_put(target, value, places, dim=0)])
    kernel, sizes = build({"put": case})["put"], {"b": 5, "s": 7}
    given = [torch.zeros(9, 2), torch.randn(7, 5), torch.randint(-9, 9, (5, 7))]
    expected = torch.zeros(9, 2)
    for b in range(5):
        for s in range(7):
            expected[given[2][b, s]] = given[1][s, b]
    assert torch.equal(kernel.run(given, sizes)[0], expected)
    assert torch.equal(case.interpret(kernel.program, given, sizes)[0], expected)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["awkward softmax", "awkward columns", "awkward gelu"])
def test_results_do_not_depend_on_chance(name: str, kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels[name], AWKWARD[0]
    tensors = kernel.case.tensors(sizes)
    first = kernel.run(tensors, sizes)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(kernel.run(tensors, sizes), first, strict=True))


# --- vectors ----------------------------------------------------------------------------------------------------------


def vector_cases() -> dict[str, Case]:
    """Kernels of a Transformer, with a sequence of any length."""
    a, b, w, c, table = x(B, S, 768), y(B, S, 768), z(768), operand(3, (768,)), x(30522, 768)
    n = x(B, S, 768)
    heads = ops.permute(ops.reshape(n, shape=(B, S, 12, 64)), dims=(0, 2, 1, 3))
    return {
        "layer_norm": Case([a, b, w, c], [ops.layer_norm(ops.add(a, b), w, c, eps=1e-5)]),
        "gelu": one(lambda v: ops.gelu(v), (B, S, 3072)),
        "softmax": one(lambda v: ops.softmax(v, dim=2), (B, S, S)),
        "add": Case([a, b], [ops.add(a, b)]),
        "rope": Case([n, y(S, 64), z(S, 64)], [ops.rope(heads, y(S, 64), z(S, 64))]),
        "embedding": Case([table, y(B, S, dtype=I64)], [ops.embedding(table, y(B, S, dtype=I64))]),
        "mean over the sequence": one(lambda v: ops.mean(v, dims=(1,)), (B, S, 768)),
        "mean of embeddings": Case(
            [table, y(B, S, dtype=I64)], [ops.mean(ops.embedding(table, y(B, S, dtype=I64)), dims=(1,))]
        ),
        "heads side by side": one(
            lambda v: ops.reshape(ops.permute(v, dims=(0, 2, 1, 3)), shape=(B, S, 768)), (B, 12, S, 64)
        ),
        "cast": one(lambda v: ops.cast(v, dtype=BF16), (B, S, 768)),
    }


def test_rows_that_are_added_up_are_looked_up_once() -> None:
    program = vector_cases()["mean of embeddings"].program()
    text = tvm_module.kernel_text("k", program, default_schedule(program, Machine()))
    _, loop = text.split("T.serial(n_s)")
    before, inside = loop.split("T.vectorized", 1)
    assert "err[0] = " in before
    assert "err[0] = " not in inside


@pytest.mark.parametrize("name", vector_cases())
def test_code_is_vectors(name: str) -> None:
    """LLVM is given whole vectors: no function of libm, no load of single elements that a vector is put together of."""
    case = vector_cases()[name]
    program = case.program()
    text = tvm_module.kernel_text("k", program, default_schedule(program, Machine()))
    count = len(program.params) + 1
    host = tvm_module.Host("main", (tvm_module.Call("k", tuple(range(count))),), count, program.symbols)
    code = tvm_module.build([text], [host], tvm_module.host_cpu()).mod.inspect_source("ll")
    called = set(re.findall(r"call [^@\n]*@([\w.]+)\(", code))
    assert all(name.startswith(("llvm.", "TVM", "__TVM", "__tvm", "k_")) for name in called), called
    assert re.search(r"= load <(16|64) x (float|i32)>", code)
    # a vector that is put together lane by lane; lane 0 alone is a broadcast
    assert not re.findall(r"insertelement <16 x \w+> %\w+, \w+ %\w+, i64 [1-9]", code)


# --- chains of views --------------------------------------------------------------------------------------------------


def chain(seed: int) -> Case:
    """A random chain of views, pads, concatenations and pointwise operators."""
    generator = torch.Generator().manual_seed(seed)

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    source = x(*[(B, 6, S, 4), (S, 8, B), (4, B, 6)][pick(3)])
    n = source
    for _ in range(2 + pick(4)):
        n = STEPS[pick(len(STEPS))](n, pick)
    return Case([source], [ops.tanh(n) if pick(2) else ops.sum(ops.exp(n), dims=(pick(n.tensor_type.rank),))], SIZES)


def _known(n: Node, least: int) -> list[int]:
    return [d for d, size in enumerate(n.shape) if isinstance(size, int) and size >= least]


def _permuted(n: Node, pick: Callable[[int], int]) -> Node:
    return ops.transpose(n, pick(n.tensor_type.rank), pick(n.tensor_type.rank))


def _merged(n: Node, pick: Callable[[int], int]) -> Node:
    if n.tensor_type.rank < 2:
        return n
    at = pick(n.tensor_type.rank - 1)
    return ops.reshape(n, shape=(*n.shape[:at], n.shape[at] * n.shape[at + 1], *n.shape[at + 2 :]))


def _divided(n: Node, pick: Callable[[int], int]) -> Node:
    known = [d for d in _known(n, 4) if n.shape[d] % 2 == 0]
    if not known or n.tensor_type.rank > 5:
        return n
    at = known[pick(len(known))]
    return ops.reshape(n, shape=(*n.shape[:at], 2, n.shape[at] // 2, *n.shape[at + 1 :]))


def _cut(n: Node, pick: Callable[[int], int]) -> Node:
    known = _known(n, 3)
    if not known:
        return n
    at = known[pick(len(known))]
    return ops.slice_(n, dim=at, start=pick(2), stop=n.shape[at], step=1 + pick(2))


def _turned(n: Node, pick: Callable[[int], int]) -> Node:
    return ops.flip(n, dims=(pick(n.tensor_type.rank),))


def _framed(n: Node, pick: Callable[[int], int]) -> Node:
    low, high = [0] * n.tensor_type.rank, [0] * n.tensor_type.rank
    low[pick(len(low))], high[pick(len(high))] = 1, 2
    return ops.pad(n, low=tuple(low), high=tuple(high), value=0.5)


def _beside(n: Node, pick: Callable[[int], int]) -> Node:
    return ops.concat(n, ops.neg(n), dim=pick(n.tensor_type.rank))


STEPS: list[Callable[[Node, Callable[[int], int]], Node]] = [
    _permuted,
    _merged,
    _divided,
    _cut,
    _turned,
    _framed,
    _beside,
]
CHAINS = {f"chain {seed}": chain(seed) for seed in range(60)}


@pytest.fixture(scope="module")
def chain_kernels() -> dict[str, Kernel]:
    return build(CHAINS)


@pytest.mark.parametrize("name", CHAINS)
def test_chain_of_views(name: str, chain_kernels: dict[str, Kernel]) -> None:
    for sizes in CHAINS[name].sizes:
        chain_kernels[name].check(sizes)
