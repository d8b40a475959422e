"""Numbers of four bits, in the registers of every width that kernels are written for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tvm")

from smelt.codegen.tvm import module as tvm_module
from smelt.codegen.tvm import nibbles

COUNT = 64


def _kernel(number: int, lanes: int) -> str:
    return f"""@T.prim_func(private=True, s_tir=True)
def k{number}(w_ptr: T.handle("int32"), y_ptr: T.handle("float32")) -> T.int32:
    T.attr(T.int32(0), "device_id", 0)
    T.attr(T.int32(0), "device_type", 1)
    w = T.decl_buffer(({COUNT},), "int32", data=w_ptr)
    y = T.decl_buffer(({8 * COUNT},), "float32", data=y_ptr)
    for place in T.unroll(T.int64(8)):
        for i in range(T.int64({COUNT // lanes})):
            for v in {"T.vectorized" if lanes > 1 else "range"}(T.int64({lanes})):
                y[place * {COUNT} + i * {lanes} + v] = nibbles.from_four_bits(w[i * {lanes} + v], place)
    return T.int32(0)
"""


@pytest.mark.parametrize("known", [True, False], ids=["looked up", "by bits"])
def test_every_number_at_every_place(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr(nibbles, "target_has", lambda feature: False)
    widths = (1, 4, 8, 16, 32)
    texts = [_kernel(i, lanes) for i, lanes in enumerate(widths)]
    hosts = [tvm_module.Host(f"main{i}", (tvm_module.Call(f"k{i}", (0, 1)),), 2, ()) for i in range(len(widths))]
    built = tvm_module.build(texts, hosts, tvm_module.host_cpu())
    torch.manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (COUNT,), dtype=torch.int32)
    words[:16] = (torch.arange(16) * 0x11111111).to(torch.int32)
    expected = torch.stack([(words >> 4 * place & 15) - 8 for place in range(8)]).float()
    for i in range(len(widths)):
        y = torch.full((8, COUNT), float("nan"))
        built[f"main{i}"](torch.tensor([words.data_ptr(), y.data_ptr()]), torch.tensor([0]))
        assert torch.equal(y, expected), widths[i]
