"""``smelt.compile(model, optimize="search")``: fewer operations, and the numeric contract holds."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime import dynamo_backend, graph_function
from smelt.runtime.bisect import bisect
from smelt.runtime.captures import build_entry


class LinearAttention(nn.Module):
    """Attention without a softmax, written as most papers write it: (Q K^T) V."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        parts = self.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.sigmoid()  # [B, H, S, D] each
        y = (q @ k.transpose(-1, -2)) @ v
        return self.out(y.transpose(1, 2).reshape(b, s, d))


class Adapter(nn.Module):
    """A linear layer with a low-rank adapter."""

    def __init__(self, width: int = 64, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class Pooled(nn.Module):
    """The mean over tokens of a projection."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x)).mean(1)


def compiled(model: nn.Module, x: Tensor, **options: Any) -> smelt.CompiledModule:
    fast = smelt.compile(model, cache=False, **options)
    with torch.no_grad():
        fast(x)
    return fast


@pytest.mark.parametrize(
    ("model", "shape"), [(LinearAttention, (2, 200, 32)), (Adapter, (2, 50, 64)), (Pooled, (3, 40, 32))]
)
def test_a_model_where_the_search_wins(model: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    made, x = model().eval(), torch.randn(shape)
    plain, fast = compiled(made, x), compiled(made, x, optimize="search")
    few, many = fast.report(), plain.report()
    assert few.flops is not None
    assert many.flops is not None
    assert few.flops < many.flops
    # one more where a norm was in the kernel of a product that now comes after a mean
    assert few.captures[0].calls <= many.captures[0].calls + 1
    assert few.captures[0].rules["search"] == 1
    assert "search" not in many.captures[0].rules
    smelt.verify(fast, x)
    smelt.verify(fast, x[:1])  # and at another size


def test_the_first_call_decides_the_sizes() -> None:
    torch.manual_seed(0)
    model = LinearAttention().eval()
    # of a few tokens, all scores are the cheaper way; the test above calls with many
    assert "search" not in compiled(model, torch.randn(1, 4, 32), optimize="search").report().captures[0].rules


def test_weights_that_change_reach_what_was_computed_from_them() -> None:
    torch.manual_seed(0)
    model, x = Adapter().eval(), torch.randn(2, 50, 64)
    fast = compiled(model, x, optimize="search")
    with torch.no_grad():
        model.up.weight.mul_(3.0)
        fast.refresh()
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*isinstance.*LeafSpec.*:FutureWarning")
def test_torch_compile_takes_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []

    def keep(*arguments: Any) -> Any:
        entries.append(build_entry(*arguments))
        return entries[-1]

    monkeypatch.setattr(graph_function, "build_entry", keep)
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(3, 40, 32)
    torch._dynamo.reset()
    fast = torch.compile(model, backend=dynamo_backend.backend, options={"optimize": "search", "cache": False})
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert [entry.executable.applications.counts()["search"] for entry in entries] == [1]


def test_a_bisection_goes_through_the_search() -> None:
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(3, 40, 32)
    plain, searched = bisect(model, (x,)), bisect(model, (x,), optimize="search")
    assert plain.finding is None
    assert searched.finding is None
    assert searched.applications > plain.applications


@pytest.mark.parametrize("check", ["rules", "passes"])
def test_the_search_is_checked_like_every_change(check: str) -> None:
    torch.manual_seed(0)
    fast = compiled(Pooled().eval(), torch.randn(3, 40, 32), optimize="search", check=check)
    assert fast.report().captures[0].rules["search"] == 1


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match='say "rules" or "search"'):
        smelt.compile(Adapter().eval(), optimize="fast")  # type: ignore[arg-type]
