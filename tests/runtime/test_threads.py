"""Kernels on several threads: right, and the same in every run. The other tests run on one thread each."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import smelt
from smelt.runtime.target import Target
from smelt.tools.zoo import ZOO

ZOO_NAMES = ("bert-base", "gpt2", "llama", "llama-decode", "t5-small", "rnn-lm", "vit-base")
RUNS = 10


class Reductions(nn.Module):
    """Rows, columns, running sums, gathers and writes by index, each with work for several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(500, 96))
        self.norm = nn.LayerNorm(96)

    def forward(self, at: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """``at`` [B, S] of integers below 500, ``x`` [B, S, 96]."""
        rows = self.norm(self.table[at] + x)
        counted = torch.zeros(500, 96).index_add(0, at.flatten(), x.flatten(0, 1))
        return rows, rows.softmax(1), x.cumsum(1), x.amax((0, 1)), rows.argmax(-1), counted


class Products(nn.Module):
    """Products of many shapes: one row, one column, long sums, batches."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep, self.one = nn.Linear(96, 1000), nn.Linear(4096, 70), nn.Linear(96, 1)

    def forward(self, x: Tensor, long: Tensor) -> tuple[Tensor, ...]:
        """``x`` [B, S, 96], ``long`` [R, 4096]."""
        return self.wide(x[:1, :1]), self.wide(x), self.deep(long), self.one(x), x @ x.transpose(1, 2)


def models(names: tuple[str, ...]) -> Iterator[tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]]:
    """Modules with the arguments of one call: the two above, then tiny ones of the zoo."""
    yield Reductions().eval(), (torch.randint(500, (4, 130)), torch.randn(4, 130, 96)), {}
    yield Products().eval(), (torch.randn(4, 130, 96), torch.randn(3, 4096)), {}
    for name in names:
        model, args, kwargs = ZOO[name].make(tiny=True)
        if name != "llama-decode":
            args, kwargs = ZOO[name].inputs(model, 5, 120)
        yield model, args, kwargs


def main(threads: int) -> None:
    """Hold every model to the contract, and to its own first result.

    Raises:
        AssertionError: a result changes between runs, or the pool has another size than asked for.
    """
    import tvm

    torch.manual_seed(0)
    for model, args, kwargs in models(ZOO_NAMES if threads == 2 else ()):
        fast = smelt.compile(model, target=Target.detect(threads=threads), cache=False)
        smelt.verify(fast, *args, **kwargs)
        assert tvm.get_global_func("runtime.NumThreads")() == threads
        first = tree_leaves(fast(*args, **kwargs))
        for _ in range(RUNS):
            again = tree_leaves(fast(*args, **kwargs))
            same = [torch.equal(x, y) for x, y in zip(first, again, strict=True) if isinstance(x, Tensor)]
            assert all(same), f"{type(model).__name__}: results change from run to run on {threads} threads"


@pytest.mark.parametrize("threads", [2, 3])
def test_results_are_right_and_repeat_on_several_threads(threads: int) -> None:
    environment = os.environ | {
        "TVM_NUM_THREADS": str(threads),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2] / ".typecheck"),
    }
    done = subprocess.run([sys.executable, __file__, str(threads)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    main(int(sys.argv[1]))
