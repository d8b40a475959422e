"""Tensors of callers: which ones kernels can read, and copies of those that they cannot."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._guards import TracingContext
from torch.autograd import forward_ad

from ..ir.errors import InputError, UnsupportedError

CPU = torch.device("cpu")
# Kernels load whole vectors from addresses that they take to be aligned.
ALIGNMENT = 64


def check_tensor(name: str, tensor: Tensor, device: torch.device = CPU) -> None:
    """Raise InputError, naming the argument, for a tensor that has no values where the model runs.

    Sparse, quantised and fake tensors are refused too, and those of subclasses that compute in their own way. A tensor
    of the CPU without dims goes with any device.
    """
    if tensor.device != device and (tensor.ndim or tensor.device.type != "cpu"):
        where = "the CPU" if device.type == "cpu" else device
        cure = "it has no values" if tensor.device.type == "meta" else f'call .to("{device}") on it'
        if device.type == "cpu" and tensor.device.type == "cuda":
            cure += ', or compile the model with target="cuda"'
        raise InputError(f"argument {name} is on the device {tensor.device}, the model runs on {where}: {cure}")
    if tensor.layout is not torch.strided:
        raise InputError(f"argument {name} has the layout {tensor.layout}: call .to_dense() on it")
    if tensor.is_quantized:
        raise InputError(f"argument {name} is quantised ({tensor.dtype}): call .dequantize() on it")
    if not is_plain(tensor):
        raise InputError(f"argument {name} is a {type(tensor).__name__}, which does not compute as a plain tensor does")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is PyTorch's own, or of a subclass that leaves operators alone and owns its memory.

    By its class: a tensor of any class passes for a Parameter that was made one.
    """
    cls = type(tensor)
    if cls in (Tensor, nn.Parameter):
        return True
    plain = nn.Parameter.__torch_function__
    return cls.__torch_dispatch__ is Tensor.__torch_dispatch__ and cls.__torch_function__ is plain


def default_is_cpu() -> bool:
    """Whether tensors that are made here and now lie in this machine's memory."""
    # what asks for the device takes longer than to see that nobody set one
    return not torch._C._len_torch_function_stack() or torch.get_default_device().type == "cpu"


def is_traced() -> bool:
    """Whether PyTorch traces what this thread calls: ``is_compiling`` is true of all threads while one exports."""
    if not torch.compiler.is_compiling():
        return False
    return torch.compiler.is_dynamo_compiling() or TracingContext.try_get() is not None


def check_surroundings(device: torch.device = CPU) -> None:
    """Raise UnsupportedError where PyTorch does not compute with plain tensors on a device: kernels do nothing else.

    So it is where another default device is set, below a transform of ``torch.func``, and while something is traced.
    """
    if is_surrounded():
        _refuse(device)


def is_surrounded() -> bool:
    """Whether something is around a call that may matter to it: autocast, or what ``check_surroundings`` refuses."""
    return bool(
        _function_modes()
        or _transforms()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _traced()
        or _autocast()
    )


def _refuse(device: torch.device) -> None:
    """Raise UnsupportedError where what surrounds a call matters to it."""
    if not default_is_cpu() and torch.get_default_device().type != device.type:
        raise UnsupportedError(
            f"the default device is {torch.get_default_device()}, and the model is compiled for {device}: call it "
            f'within torch.device("{device}")'
        )
    if _transforms() is not None:
        raise UnsupportedError(
            "torch.func transforms this call, by vmap, grad or the like, and kernels compute with plain tensors: "
            "transform the model that was compiled"
        )
    if forward_ad._current_level >= 0:
        raise UnsupportedError("forward_ad is on, and compiled models compute no gradients: leave dual_level")
    if (_dispatch_modes() and any(map(torch._C._get_dispatch_mode, _TRACING))) or _traced():
        raise UnsupportedError("PyTorch traces this call, and does not see into kernels: trace the model itself")


# by their names here, since each call asks all of them
_function_modes, _dispatch_modes = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack
_transforms, _traced = _functorch.peek_interpreter_stack, torch._C._get_tracing_state
_autocast = torch._C._is_any_autocast_enabled
_Modes = torch._C._TorchDispatchModeKey
_TRACING = (_Modes.FAKE, _Modes.PROXY, _Modes.FUNCTIONAL)


def is_dense(tensor: Tensor) -> bool:
    """Whether kernels can read a tensor as it is: row-major, aligned, no negation or conjugation put off.

    Zeros that PyTorch keeps no memory for, as forward-mode derivatives have, cannot be read: their address is 0.
    """
    if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
        return False
    address = tensor.data_ptr()
    return address % ALIGNMENT == 0 and bool(address or not tensor.numel())


def dense(tensor: Tensor, device: torch.device = CPU) -> Tensor:
    """The tensor itself where it is row-major and aligned and on the device, a copy that is otherwise."""
    if is_dense(tensor) and tensor.device == device:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return copy.copy_(tensor.detach())


def overlapping(tensors: Sequence[Tensor], written: Collection[int]) -> tuple[int, int] | None:
    """Two of some tensors that may share memory, by their places, one of which is written; None where there are none.

    The time is that of sorting them.
    """
    ranges = sorted((*_extent(tensor), place) for place, tensor in enumerate(tensors) if tensor.numel())
    read = write = (-1, -1)  # the end that lies furthest so far, and whose it is
    for start, end, place in ranges:
        if place in written and start < read[0]:
            return place, read[1]
        if start < write[0]:
            return write[1], place
        if place in written:
            write = max(write, (end, place))
        else:
            read = max(read, (end, place))
    return None


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
