"""Tensors of callers: which ones kernels can read, and copies of those that they cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ir.errors import InputError

# Kernels load whole vectors from addresses that they take to be aligned.
ALIGNMENT = 64


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise InputError, naming the argument, for a tensor that has no values in this machine's memory.

    Sparse, quantised and fake tensors are refused too, and those of subclasses that compute in their own way.
    """
    if tensor.device.type != "cpu":
        cure = "it has no values" if tensor.device.type == "meta" else 'call .to("cpu") on it'
        raise InputError(f"argument {name} is on the device {tensor.device}, the model runs on the CPU: {cure}")
    if tensor.layout is not torch.strided:
        raise InputError(f"argument {name} has the layout {tensor.layout}: call .to_dense() on it")
    if tensor.is_quantized:
        raise InputError(f"argument {name} is quantised ({tensor.dtype}): call .dequantize() on it")
    if type(tensor) not in (Tensor, nn.Parameter) and not _is_plain(tensor):
        raise InputError(f"argument {name} is a {type(tensor).__name__}, which does not compute as a plain tensor does")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a subclass only adds attributes: it leaves operators alone and owns its memory."""
    cls = type(tensor)
    return (
        cls.__torch_dispatch__ is Tensor.__torch_dispatch__ and cls.__torch_function__ is Tensor.__torch_function__
    ) or isinstance(tensor, nn.Parameter | nn.Buffer)


def is_dense(tensor: Tensor) -> bool:
    """Whether kernels can read a tensor as it is: row-major, aligned, no negation or conjugation put off."""
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0 and not (tensor.is_neg() or tensor.is_conj())


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself where it is row-major and aligned, a copy that is otherwise."""
    if is_dense(tensor):
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    return copy.copy_(tensor.detach())


def overlap(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors may share memory: whether the ranges of addresses that they lie in meet."""
    if not left.numel() or not right.numel():
        return False
    (start, end), (other_start, other_end) = _extent(left), _extent(right)
    return start < other_end and other_start < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
