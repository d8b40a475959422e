"""What `smelt fuzz` found, each as small as it can be said: the program is compiled and run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import smelt
from smelt.codegen.interpret import interpret_program
from smelt.codegen.lower import Operand, lower
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.types import contiguous_strides


def zero_rows_of_expanded(x: Tensor) -> Tensor:
    y = x.expand(3, *x.shape)
    y[:, ::2].zero_()
    return x + 1


def fill_expanded(x: Tensor) -> Tensor:
    x[:, :1].expand(2, 4)[:, 1:].fill_(7.0)
    return x * 2


def take_around(x: Tensor, i: Tensor) -> Tensor:
    return torch.take_along_dim(x, i, 1)


def attend_to_constants(x: Tensor) -> Tensor:
    zeros = torch.zeros_like(x)[:, None]
    return torch.nn.functional.scaled_dot_product_attention(zeros, zeros[..., :1, :], zeros[..., :1, :])


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[Any, ...]]]] = {
    "a write through an expanded view": (zero_rows_of_expanded, lambda: (torch.tensor([[1.0], [2.0], [3.0]]),)),
    "a write through a slice of one": (fill_expanded, lambda: (torch.arange(6.0).reshape(2, 3),)),
    "attention of constants": (attend_to_constants, lambda: (torch.ones(2, 3, 4),)),
    "indices that go around": (take_around, lambda: (torch.arange(4.0).reshape(2, 2), torch.tensor([[2], [-3]]))),
}


@pytest.mark.parametrize("name", CASES)
def test_programs(name: str) -> None:
    function, make = CASES[name]
    given, ours = make(), make()
    expected = function(*given)
    assert torch.equal(smelt.compile(function, dynamic=False)(*ours), expected)
    for a, b in zip(ours, given, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hypot_does_not_overflow(dtype: torch.dtype) -> None:
    big = {torch.float16: 3e4, torch.float64: 1e300}.get(dtype, 1e30)
    values = [0.0, -0.0, 3.0, -4.0, big, -big, 1e-7, float("inf"), float("-inf"), float("nan")]
    x = torch.tensor(values, dtype=dtype)
    found = smelt.compile(torch.hypot, dynamic=False)(x[:, None], x)
    torch.testing.assert_close(found, torch.hypot(x[:, None], x), equal_nan=True)


def test_a_program_in_place_is_interpreted_on_what_was_there() -> None:
    x, row = (ops.input(name=n, shape=s, dtype=torch.float32) for n, s in (("x", (3, 4)), ("row", (1, 4))))
    region = Graph([x, row], [ops.slice_put(x, row, dim=0, start=1)])
    operands = [Operand(contiguous_strides(n.shape), weight=False) for n in (x, row)]
    program = lower(region, operands, [(0, 1)], ((0, 0),))
    before, new = torch.arange(12.0).reshape(3, 4), torch.full((1, 4), -1.0)
    (found,) = interpret_program(program, [before, new], {}, in_place=((0, 0),))
    assert torch.equal(found.reshape(3, 4), torch.cat([before[:1], new, before[2:]]))
    with pytest.raises(AssertionError, match="not written once"):
        interpret_program(program, [before, new], {})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_masks_of_narrow_integers_wrap_around(dtype: torch.dtype) -> None:
    """i - j >= 0 is always true of uint8, and not causal for int8 past 127."""

    def attend(q: Tensor) -> Tensor:
        i = torch.arange(q.shape[2]).to(dtype)
        mask = (i[:, None] - i[None]) >= 0
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    q = torch.randn(1, 2, 200, 8)
    torch.testing.assert_close(smelt.compile(attend)(q), attend(q))


def test_a_range_seen_through_a_view_by_pytorch() -> None:
    def put(cache: Tensor, place: Tensor, x: Tensor) -> Tensor:
        return cache.index_put((torch.arange(cache.shape[0])[:, None], place), x)

    given = torch.zeros(2, 5, 3), torch.tensor([[1], [4]]), torch.ones(2, 1, 3)
    assert torch.equal(smelt.compile(put)(*given), put(*given))
