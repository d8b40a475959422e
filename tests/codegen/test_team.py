"""Parallel loops shared out within one host call: results, several callers, pool settings, failures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sympy
import torch

pytest.importorskip("tvm")

from smelt.codegen.tvm import host as tvm_host
from smelt.codegen.tvm import module as tvm_module
from smelt.codegen.tvm import team

KERNELS = 12
N = sympy.Symbol("n", integer=True)


def _kernel(number: int, loop: str = "T.parallel", check: str = "pass") -> str:
    """``x[i] = 3 x[i] + number``: a chain of them is right only if each runs once for each element, in order."""
    return f"""@T.prim_func(private=True, s_tir=True)
def k{number}(x_ptr: T.handle("float32"), n: T.int64) -> T.int32:
    T.attr(T.int32(0), "device_id", 0)
    T.attr(T.int32(0), "device_type", 1)
    x = T.decl_buffer((n,), "float32", data=x_ptr)
    for i in {loop}(n):
        {check}
        x[i] = x[i] * T.float32(3) + T.float32({number})
    return T.int32(0)
"""


def _build(texts: list[str], monkeypatch: pytest.MonkeyPatch | None = None) -> Any:
    if monkeypatch is not None:
        monkeypatch.setattr(tvm_host, "size_name", str)
    calls = tuple(tvm_module.Call(f"k{i}", (0,)) for i in range(len(texts)))
    return tvm_module.build(texts, [tvm_module.Host("main", calls, 1, (N,))], tvm_module.host_cpu())["main"]


@pytest.fixture(scope="module")
def chain() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield _build([_kernel(i) for i in range(KERNELS)], patch)


def _run(chain: Callable[..., Any], count: int, seed: int = 0) -> None:
    x = torch.randint(0, 8, (count + 2,), generator=torch.Generator().manual_seed(seed)).float()  # exact
    expected = x.clone()
    for number in range(KERNELS):
        expected[:count] = expected[:count] * 3 + number
    chain(torch.tensor([x.data_ptr()]), torch.tensor([count]))
    assert torch.equal(x, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 100, 4099])
def test_every_element_once_and_in_order(chain: Any, count: int) -> None:
    tvm_module.set_threads(2)
    for seed in range(4):  # the first call leaves the loops to the pool, later ones share them out
        _run(chain, count, seed)


def test_no_elements(chain: Any) -> None:
    _run(chain, 0)
    _run(chain, 0)


def test_one_thread(chain: Any) -> None:
    def run() -> None:
        tvm_module.set_threads(1)
        for seed in range(3):
            _run(chain, 50, seed)

    with ThreadPoolExecutor(1) as pool:  # a thread pool of its own
        pool.submit(run).result()


def test_several_callers_at_once(chain: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_run, chain, 10 + 37 * i, i) for i in range(60)]
        for job in jobs:
            job.result()


def test_few_loops_are_left_to_the_pool() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tvm_host, "size_name", str)
        single = [_kernel(0), _kernel(1, "T.serial")]
        calls = tuple(tvm_module.Call(f"k{i}", (0,)) for i in range(2))
        assert not tvm_module.wants_team(single, [tvm_module.Host("main", calls, 1, (N,))])
        assert tvm_module.wants_team([_kernel(0), _kernel(1)], [tvm_module.Host("main", calls, 1, (N,))])


def test_a_loop_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [_kernel(0), _kernel(1, check='assert x[i] < T.float32(1000), "too large"'), _kernel(2)]
    run = _build(texts, monkeypatch)
    for _ in range(3):
        good, bad = torch.zeros(64), torch.full((64,), 1e6)
        run(torch.tensor([good.data_ptr()]), torch.tensor([64]))
        assert torch.equal(good, torch.full((64,), 5.0))
        with pytest.raises(RuntimeError, match="a parallel loop failed"):
            run(torch.tensor([bad.data_ptr()]), torch.tensor([64]))


@pytest.mark.parametrize(
    "settings",
    [{"TVM_NUM_THREADS": "5"}, {"TVM_NUM_THREADS": "2", "TVM_EXCLUDE_WORKER0": "0"}],
    ids=["more-than-cores", "caller-is-no-worker"],
)
def test_settings_of_the_pool(settings: dict[str, str]) -> None:
    program = (
        "import runpy, sys, torch, pytest\n"
        f"names = runpy.run_path({__file__!r})\n"
        "chain = names['_build']([names['_kernel'](i) for i in range(names['KERNELS'])], pytest.MonkeyPatch())\n"
        "for seed in range(20):\n    names['_run'](chain, 5 + 211 * seed, seed)\n"
    )
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **settings}, check=True, timeout=60)


def test_text_names_every_part() -> None:
    text = team.team_text("main7")
    assert "smelt_open_main7" in text
    assert "<" not in text.replace("<128", "").replace("<64", "")
