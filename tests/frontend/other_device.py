"""Captures of models that are on another device than the CPU, though none is there: a device of PyTorch's for backends.

Run as a program, it prints for each model whether its graph is the one of the CPU. The device is registered for a whole
process, so this is one of its own.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from smelt.frontend.export import capture
from smelt.ir.text import print_graph
from smelt.tools.zoo import ZOO

DEVICE = "npy:0"


def elsewhere(value: Any) -> Any:
    """A tensor of the same type on the other device, without memory."""
    if not isinstance(value, Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(value, torch.nn.Parameter) else made


def main(names: list[str]) -> None:
    """Capture each model on the CPU and elsewhere."""
    warnings.simplefilter("ignore")
    _setup_privateuseone_for_python_backend("npy")
    FakeTensor.data_ptr = lambda self: id(self)  # type: ignore[method-assign]  # tensors without memory would all be one
    found = {}
    for name in names:
        model, args, kwargs = ZOO[name].make(tiny=True)
        expected = print_graph(capture(model, args, kwargs).graph)
        mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
        with mode, torch.no_grad():
            tensors: dict[int, Any] = {}  # those that are one stay one
            for module in model.modules():
                for held in (module._parameters, module._buffers):
                    for key, value in held.items():
                        if value is not None:
                            held[key] = tensors.setdefault(id(value), elsewhere(value))  # type: ignore[assignment]
            made = capture(model, pytree.tree_map(elsewhere, args), pytree.tree_map(elsewhere, kwargs))
        devices = sorted({str(tensor.device) for tensor in made.weights.values() if tensor.ndim})
        found[name] = [print_graph(made.graph) == expected, devices, [str(f) for f in made.fallbacks]]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
