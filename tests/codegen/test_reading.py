"""Generated kernels read fast are those that TVM's parser reads."""

from typing import Any

import pytest
import torch
import tvm

from smelt.codegen.tvm import module as tvm_module
from smelt.codegen.tvm import reading
from smelt.codegen.tvm.reading import Unread, read_kernels
from smelt.frontend.export import capture
from smelt.ir.errors import BackendError
from smelt.runtime.build import build_executable
from smelt.runtime.target import Target
from smelt.tools.zoo import ZOO

HEAD = "@T.prim_func(private=True, s_tir=True)\ndef k(x_ptr: T.handle('float32'), n: T.int64) -> T.int32:\n"


def sources(name: str, dtype: torch.dtype) -> list[str]:
    model, args, kwargs = ZOO[name].make(tiny=True)
    captured = capture(model.to(dtype), args, kwargs)
    made = build_executable(captured, Target.detect("cpu", 2), native=lambda plan, *_: [None for _ in plan.segments()])
    return [kernel.source for kernel in made.kernels]


def assert_same(texts: list[str], names: bool = True) -> None:
    fast, slow = read_kernels(texts, tvm_module._NAMES), tvm_module.parse_with_tvm(texts)
    assert sorted(fast) == sorted(str(variable.name_hint) for variable in slow.functions)
    for name, kernel in fast.items():
        tvm.ir.assert_structural_equal(kernel, slow[name])
        assert not names or kernel.script() == slow[name].script()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bert-base", torch.float32), ("llama", torch.bfloat16), ("lstm-lm", torch.float32)],
)
def test_kernels_of_models(name: str, dtype: torch.dtype) -> None:
    if ZOO[name].packages:
        pytest.importorskip("transformers")
    assert_same(sources(name, dtype), names=False)


BODIES = {
    "a loop": "for i in T.serial(n):\n        x[i] = x[i] * T.float32(2)",
    "a range": "for i in range(4):\n        x[i] = x[i] * T.float32(2)",
    "a range from": "for i in range(1, 4):\n        x[i] = x[i] * T.float32(2)",
    "branches": "if n > 2:\n        x[0] = T.float32(1)\n    else:\n        x[0] = T.float32(3)",
    "a comparison with a number": "if x[0] < 0.5:\n        x[0] = T.float32(1)",
    "a name": "m: T.let = n * n\n    x[m % n] = T.float32(1)",
    "local memory": 'a = T.alloc_buffer((4,), "float32", scope="local")\n    a[0] = x[0]\n    x[1] = a[0]',
    "vectors": "for i in T.vectorized(T.int64(8)):\n        x[i] = -x[i]",
    "a call": 'T.evaluate(T.call_extern("int32", "nothing"))',
    "one bare": 'T.call_extern("int32", "nothing")',
    "a scope": 'T.attr(T.int32(0), "pragma_x", 1)\n    x[0] = T.float32(1)',
    "a scope with its own block": 'with T.attr(T.int32(0), "x", 1):\n        x[0] = T.float32(1)\n    x[1] = x[0]',
}


def kernel(body: str) -> str:
    return f'{HEAD}    x = T.decl_buffer((n,), "float32", data=x_ptr)\n    {body}\n    return T.int32(0)\n'


@pytest.mark.parametrize("body", BODIES)
def test_statements(body: str) -> None:
    assert_same([kernel(BODIES[body])])


ONLY_TVM = {
    "a scalar": "m = n * n\n    x[m] = T.float32(1)",
    "a boolean operator": "if n > 2 and n < 4:\n        x[0] = T.float32(1)",
    "a chain": "if 2 < n < 4:\n        x[0] = T.float32(1)",
    "a condition that is known": "if True:\n        x[0] = T.float32(1)",
    "several variables": "for i, j in T.grid(2, 2):\n        x[i + j] = T.float32(1)",
    "a while": "while n < 0:\n        x[0] = T.float32(1)",
    "an augmented assignment": "x[0] += T.float32(1)",
}


@pytest.mark.parametrize("body", ONLY_TVM)
def test_what_is_left_to_tvm(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = kernel(ONLY_TVM[body])
    with pytest.raises(Unread):
        read_kernels([text], tvm_module._NAMES)
    tvm.ir.assert_structural_equal(tvm_module.parse_module([text])["k"], tvm_module.parse_with_tvm([text])["k"])


def test_faults_are_told_by_tvm() -> None:
    with pytest.raises(BackendError, match="cannot read"):
        tvm_module.parse_module([kernel("x[0] = nothing")])


def test_the_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("read by TVM")

    monkeypatch.setattr(tvm_module, "parse_with_tvm", refuse)
    assert tvm_module.parse_module([kernel(BODIES["a loop"])])["k"] is not None
    assert reading.read_kernels([], {}) == {}
