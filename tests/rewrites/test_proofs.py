"""Proofs and exact evaluation: what they find equal, what they do not, and that they do not fool themselves."""

import pytest
import sympy
import torch

from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.ops import add, cast, concat, exp, input, matmul, mul, pad, permute, reshape, scalar_like, slice_, sub
from smelt.ir.ops import sum as sum_
from smelt.ir.types import Dim, symbol
from smelt.rewrites.certify.degree import error_bound
from smelt.rewrites.certify.field import DisagreeError, G, P, Q, agree
from smelt.rewrites.certify.positions import BeyondProofError, SplitIndex, regrouped
from smelt.rewrites.certify.proof import equal, prove
from smelt.rewrites.certify.scalars import Bits, Free, Reals
from smelt.rewrites.rule import rules_by_name
from smelt.rewrites.rules import RULES

ALL = rules_by_name(RULES)
M, N, K = symbol("m"), symbol("n"), symbol("k")


def tensor(name: str, *shape: Dim, dtype: torch.dtype = torch.float32) -> Node:
    return input(name=name, shape=shape, dtype=dtype)


# Rules of every kind that has a quick proof, and the readings that it may use.
PROVED = {
    "add-neg": {"any arithmetic", "IEEE 754 and machine integers"},
    "neg-neg": {"any arithmetic", "IEEE 754 and machine integers"},
    "add-add-constants": {"any arithmetic", "IEEE 754 and machine integers"},
    "where-else-true": {"any arithmetic"},
    "exp-of-expanded": {"any arithmetic"},
    "pow-of-expanded": {"any arithmetic"},
    "add-to-range": {"any arithmetic"},
    "range-at-least": {"any arithmetic"},
    "index-by-ranges": {"any arithmetic"},
    "reshape-of-expand": {"any arithmetic"},
    "slice-of-concat": {"any arithmetic"},
    "split-before-permute": {"any arithmetic"},
    "merge-before-permute": {"any arithmetic"},
    "slice-before-split": {"any arithmetic"},
    "linear-of-reshaped": {"any arithmetic"},
    "rope-of-halves": {"any arithmetic"},
    "layer-norm-in-half": {"any arithmetic"},
    "attention-of-triangle": {"any arithmetic"},
    "gelu-of-tanh-half-last": {"any arithmetic", "real numbers"},
    "layer-norm-of-sqrt": {"any arithmetic", "real numbers"},
}


@pytest.mark.parametrize("name", PROVED)
def test_a_rule_is_proved(name: str) -> None:
    proof = prove(ALL[name])
    assert set(proof.readings) <= PROVED[name]
    assert proof.instances > 1


def test_what_is_merely_true_of_samples_is_not_proved() -> None:
    # exp(3) is a number that nothing but evaluation tells
    with pytest.raises(BeyondProofError, match="not equal"):
        prove(ALL["fold-exp"])


# --- positions --------------------------------------------------------------------------------------------------------


def test_positions_are_merged_and_split() -> None:
    i, j = (sympy.Symbol(name, integer=True, nonnegative=True) for name in ("_i0", "_i1"))
    assert regrouped((i, j), (M, N), (M * N,), lambda *_: False) == (sympy.expand(i * N + j),)
    assert regrouped((i * N + j,), (M * N,), (M, N), lambda part, size: (part, size) == (j, N)) == (i, j)
    assert regrouped((i, 0, j), (M, 1, N), (1, M, N), lambda *_: True) == (0, i, j)


def test_one_index_is_split_on_request() -> None:
    i = sympy.Symbol("_i0", integer=True, nonnegative=True)
    with pytest.raises(SplitIndex) as caught:
        regrouped((i,), (M * N,), (M, N), lambda *_: False)
    assert (caught.value.index, caught.value.sizes) == (i, (M, N))


def test_shapes_that_share_no_axes_are_beyond_proof() -> None:
    i = sympy.Symbol("_i0", integer=True, nonnegative=True)
    with pytest.raises(BeyondProofError, match="no axes in common"):
        regrouped((i,), (M,), (N,), lambda *_: True)


# --- elements ---------------------------------------------------------------------------------------------------------

X = tensor("x", M, N)
SQUARE = tensor("x", N, N)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (permute(permute(X, dims=(1, 0)), dims=(1, 0)), X, True),
        (permute(SQUARE, dims=(1, 0)), SQUARE, False),
        (reshape(SQUARE, shape=(N * N,)), reshape(permute(SQUARE, dims=(1, 0)), shape=(N * N,)), False),
        (slice_(concat(X, X, dim=0), dim=0, start=M, stop=2 * M), X, True),
        (slice_(pad(X, low=(1, 0), high=(0, 0), value=2.0), dim=0, start=1, stop=M + 1), X, True),
        (slice_(pad(X, low=(1, 0), high=(0, 0), value=2.0), dim=0, start=0, stop=M), X, False),
        (sum_(permute(X, dims=(1, 0)), dims=(0,)), sum_(X, dims=(1,)), True),
        (sum_(SQUARE, dims=(0,)), sum_(SQUARE, dims=(1,)), False),
        (matmul(SQUARE, exp(SQUARE)), matmul(exp(SQUARE), SQUARE), False),
        (add(X, exp(X)), add(exp(X), X), True),
        (sub(X, exp(X)), sub(exp(X), X), False),
    ],
)
def test_elements_in_any_arithmetic(before: Node, after: Node, same: bool) -> None:
    assert equal(before, after, Free(whole=True)) is same


def test_an_empty_row_is_no_licence() -> None:
    # indices of a row are within it only where the row has elements: otherwise all would follow from 0 <= r < 0
    rows = reshape(tensor("y", M * N, K), shape=(M, N, K))
    one = sum_(rows, dims=(1,))
    other = sum_(tensor("z", M, N, K), dims=(1,))
    assert not equal(one, other, Free(whole=True))


def test_real_numbers_know_no_rounding_and_bits_do() -> None:
    x, y, z = (tensor(name, N, dtype=torch.float16) for name in "xyz")
    one, other = add(add(x, y), z), add(x, add(y, z))
    assert equal(one, other, Reals(whole=True))
    assert not equal(one, other, Bits())
    assert not equal(one, other, Free(whole=True))


def test_an_infinity_is_no_real_number() -> None:
    x = tensor("x", N)
    infinite = ops.scalar(float("-inf"), torch.float32)
    assert not equal(sub(add(x, infinite), infinite), x, Reals(whole=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bits_tell_zeros_apart(dtype: torch.dtype) -> None:
    x = tensor("x", N, dtype=dtype)
    assert equal(add(x, scalar_like(-0.0, x)), x, Bits())
    assert not equal(add(x, scalar_like(0.0, x)), x, Bits())


def test_bits_wrap_around() -> None:
    x = tensor("x", N, dtype=torch.int32)
    assert equal(sub(add(x, scalar_like(5, x)), scalar_like(5, x)), x, Bits())
    wide = cast(add(x, scalar_like(1, x)), dtype=torch.int64)
    assert not equal(wide, add(cast(x, dtype=torch.int64), ops.scalar(1, torch.int64)), Bits())


# --- fields -----------------------------------------------------------------------------------------------------------

Y, Z = tensor("y", 2, 3), tensor("z", 2, 3)


def test_the_fields() -> None:
    assert sympy.isprime(P)
    assert sympy.isprime(Q)
    assert (P - 1) % Q == 0
    assert G != 1
    assert pow(G, Q, P) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (mul(Y, add(Y, Z)), add(mul(Y, Y), mul(Y, Z))),
        (exp(add(Y, Z)), mul(exp(Y), exp(Z))),
        (ops.softmax(Y, dim=1), ops.softmax(sub(Y, scalar_like(3.0, Y)), dim=1)),
        (ops.rsqrt(Y), ops.reciprocal(ops.sqrt(Y))),
        (ops.maximum(Y, Z), ops.maximum(Z, Y)),
        (sum_(concat(Y, Z, dim=1), dims=(1,)), add(sum_(Y, dims=(1,)), sum_(Z, dims=(1,)))),
    ],
)
def test_equal_functions_agree(before: Node, after: Node) -> None:
    assert 0 < agree(before, after, seed=1) < 1e-9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (mul(Y, Y), Y),
        (exp(add(Y, Z)), add(exp(Y), exp(Z))),
        (ops.softmax(Y, dim=1), ops.softmax(Y, dim=0)),
        (ops.maximum(Y, Z), ops.minimum(Y, Z)),
        (ops.tanh(Y), ops.erf(Y)),
    ],
)
def test_different_functions_differ(before: Node, after: Node) -> None:
    with pytest.raises(DisagreeError):
        agree(before, after, seed=1)


def test_degrees() -> None:
    x = tensor("x", 1)
    cube = mul(mul(x, x), x)
    assert error_bound(cube, cube, 1000) == pytest.approx(6 / 1000)
    quotient = ops.div(x, x)  # of degree 1 above and below
    assert error_bound(quotient, x, 1000) == pytest.approx(3 / 1000)
    assert error_bound(sum_(reshape(Y, shape=(6,)), dims=(0,)), scalar_like(0.0, Y), 1000) == pytest.approx(1 / 1000)
