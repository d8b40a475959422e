"""Plans whose products and attention a library computes, on a played GPU and under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton")

import smelt
from smelt.codegen.program import Program, Skeleton
from smelt.codegen.schedule_data import LibrarySchedule
from smelt.runtime import gpu_tuner
from smelt.runtime.cuda.executable import CudaExecutable
from smelt.runtime.gpu import GpuLibraryKernel
from smelt.runtime.plan import KernelStep

from ..codegen.interpreter import workers
from .fake_gpu import TARGET, executable_of, playing


def chosen(program: Program) -> LibrarySchedule:
    """A library for every program: where there is none, the default schedule stays."""
    return LibrarySchedule("attention" if program.skeleton is Skeleton.ATTENTION else "linear")


@contextmanager
def by_libraries() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_tuner, "gpu_tuned", lambda machine, cache: chosen)
        yield


def libraries_of(executable: CudaExecutable) -> list[GpuLibraryKernel]:
    steps = [step.kernel for step in executable.plan.steps if isinstance(step, KernelStep)]
    return [kernel for kernel in steps if isinstance(kernel, GpuLibraryKernel)]


class Block(nn.Module):
    """A norm before a product, a residual after one, an activation, and attention with fewer heads of keys."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.q, self.kv = nn.LayerNorm(32), nn.Linear(32, 32, bias=bias), nn.Linear(32, 16, bias=bias)
        self.out, self.up, self.down = (nn.Linear(n, m, bias=bias) for n, m in ((32, 32), (32, 48), (48, 32)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        q = self.q(h).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = self.kv(h).unflatten(-1, (2, 8)).transpose(1, 2).chunk(2, 1)
        k, v = (t.expand(-1, 4, -1, -1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """An embedding, so that an index may be out of range, and a product of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(11, 16), nn.Linear(16, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.relu(self.last(self.embedding(tokens)))


MASK = torch.ones(5, 5).tril().bool()
Case = tuple[Callable[[], nn.Module], Callable[[int], Sequence[Any]], int]
CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(24, 40), lambda n: [torch.randn(n, 24)], 1),
    "no bias": (lambda: nn.Linear(24, 40, bias=False), lambda n: [torch.randn(n, 3, 24)], 1),
    "no terms": (lambda: nn.Linear(0, 5), lambda n: [torch.randn(n, 0)], 0),
    "activation": (lambda: nn.Sequential(nn.Linear(24, 40), nn.GELU()), lambda n: [torch.randn(n, 24)], 1),
    "turned": (lambda: nn.Sequential(nn.Linear(24, 6), nn.Unflatten(-1, (2, 3))), lambda n: [torch.randn(n, 24)], 1),
    "block": (Block, lambda n: [torch.randn(n, 5, 32)], 5),
    "block and a mask": (lambda: Block(bias=False), lambda n: [torch.randn(n, 5, 32), MASK], 5),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_plans_equal_eager(name: str, dtype: torch.dtype) -> None:
    make, arguments, least = CASES[name]
    torch.manual_seed(0)
    model = make().eval().to(dtype)

    def args(rows: int) -> list[Any]:
        return [x.to(dtype) if x.is_floating_point() else x for x in arguments(rows)]

    with playing() as gpu, by_libraries():
        fast = smelt.compile(model, target=TARGET)
        for rows in (3, 3, 3, 3, 1, 0, 7):  # launched, then replayed; other sizes launched
            given = args(rows)
            if rows:
                smelt.verify(fast, *given)
            else:
                assert fast(*given).shape == model(*given).shape
        found = libraries_of(executable_of(fast))
        assert len(found) >= least
        assert ("replay" in gpu.log) == (name not in ("linear", "no bias", "no terms", "turned"))  # of several launches
        if found:
            assert "by PyTorch: " in found[0].source


def test_where_no_library_can_be_the_default_stays() -> None:
    with playing(), by_libraries():
        fast = smelt.compile(nn.LayerNorm(16).eval(), target=TARGET)
        fast(torch.randn(3, 16))
        assert not libraries_of(executable_of(fast))


@pytest.mark.filterwarnings("ignore")
def test_a_backend_that_does_not_take_these_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def cudnn(program: Program) -> LibrarySchedule | None:  # it takes nothing of a CPU
        return LibrarySchedule("attention-cudnn") if program.skeleton is Skeleton.ATTENTION else None

    monkeypatch.setattr(gpu_tuner, "gpu_tuned", lambda machine, cache: cudnn)
    with playing():
        fast = smelt.compile(Block().eval(), target=TARGET)
        smelt.verify(fast, torch.randn(3, 5, 32))
        (kernel,) = libraries_of(executable_of(fast))
        q = torch.randn(1, 4, 5, 8)
        kernel.library.must = True
        with pytest.raises(RuntimeError, match="No viable backend"):
            kernel.library.call((q, q, q), torch.empty(1, 4, 5, 8))


def test_weights_that_change_are_read_anew() -> None:
    model, x = nn.Sequential(nn.Linear(24, 40), nn.ReLU()).eval(), torch.randn(3, 24)
    with playing(), by_libraries():
        fast = smelt.compile(model, target=TARGET)
        for _ in range(4):
            fast(x)
        with torch.no_grad():
            model[0].weight.mul_(2)  # type: ignore[operator, union-attr]
        smelt.verify(fast, x)


def test_indices_out_of_range_are_reported() -> None:
    with playing(), by_libraries():
        fast = smelt.compile(Tokens().eval(), target=TARGET)
        tokens = torch.randint(0, 11, (2, 5))
        smelt.verify(fast, tokens)
        assert libraries_of(executable_of(fast))
        with pytest.raises(IndexError):
            fast(torch.full((2, 5), 99))
        smelt.verify(fast, tokens)


def interpreted() -> tuple[float, int, str]:
    """How far results are from eager's in some calls, how many libraries ran, and the report."""
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 5, 32)
    with by_libraries():
        fast = smelt.compile(model, target="cuda")
        with torch.no_grad():
            worst = max(float((fast(x) - model(x)).abs().max()) for _ in range(4))
        executable = fast.entries[0].executable
        assert isinstance(executable, CudaExecutable)
        return worst, len(libraries_of(executable)), str(fast.report())


def test_interpreted() -> None:
    worst, libraries, report = workers().submit(interpreted).result()
    assert worst < 1e-5
    assert libraries >= 5
    assert "2 calls replayed, 2 launched" in " ".join(report.split())
