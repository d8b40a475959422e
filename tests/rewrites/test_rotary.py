"""Rotary embeddings are found in every form that models write them in, and mean the same in a kernel."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import smelt
from smelt.frontend.export import capture
from smelt.rewrites.context import Context
from smelt.rewrites.pipeline import run_pipeline

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


def halves(x: Tensor) -> Tensor:
    """As in Llama."""
    low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-high, low), dim=-1)


def pairs(x: Tensor) -> Tensor:
    """As in GPT-J."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def reshaped_pairs(x: Tensor) -> Tensor:
    """As in RoFormer."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape_as(x)


def whole(turn: Callable[[Tensor], Tensor]) -> Rotate:
    return lambda x, cos, sin: x * cos + turn(x) * sin


def part(turn: Callable[[Tensor], Tensor]) -> Rotate:
    """Of the first dims of each head, as in GPT-NeoX and Phi."""

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, passed = x[..., :4], x[..., 4:]
        return torch.cat((turned * cos + turn(turned) * sin, passed), dim=-1)

    return rotate


FORMS: dict[str, tuple[Rotate, int]] = {
    "halves": (whole(halves), 8),
    "pairs": (whole(pairs), 8),
    "pairs, reshaped": (whole(reshaped_pairs), 8),
    "halves of a part": (part(halves), 4),
    "pairs of a part": (part(pairs), 4),
}


def attend(rotate: Rotate) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def queries(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = x.view(*x.shape[:2], 3, 8).transpose(1, 2)  # [B, H, S, D]
        return rotate(heads, cos, sin)

    return queries


def arguments(size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    shapes = ((2, 5, 24), (5, size), (5, size))
    x, cos, sin = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, cos, sin


@pytest.mark.parametrize("name", FORMS)
def test_a_rotation_is_one_operator(name: str) -> None:
    rotate, size = FORMS[name]
    graph = run_pipeline(capture(attend(rotate), arguments(size), {}).graph, Context(verify=True))
    left = Counter(node.op.name for node in graph.nodes)
    assert left["rope"] == 1
    assert not left["mul"] + left["neg"] + left["add"]
    assert left["concat"] == ("part" in name)
    (found,) = (node for node in graph.nodes if node.op.name == "rope")
    assert found.attrs["interleaved"] == ("pairs" in name)


@pytest.mark.parametrize("name", ["pairs", "pairs of a part", "halves of a part"])
def test_a_rotation_in_a_kernel(name: str) -> None:
    rotate, size = FORMS[name]
    model, given = attend(rotate), arguments(size)
    fast = smelt.compile(model, cache=False)
    torch.testing.assert_close(fast(*given), model(*given))


def test_the_other_direction_is_no_rotation() -> None:
    def back(x: Tensor) -> Tensor:
        return torch.stack((x[..., 1::2], -x[..., ::2]), dim=-1).flatten(-2)

    graph = run_pipeline(capture(attend(whole(back)), arguments(8), {}).graph, Context())
    assert "rope" not in {node.op.name for node in graph.nodes}
