"""Elementary functions under Triton's interpreter, by PyTorch, on the numbers that stand for a block."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import TensorHandle


def _function(function):
    def call(*args):
        numbers = torch.broadcast_tensors(*(torch.from_numpy(a.handle.data) for a in args))
        return _block(function(*numbers).numpy(), args)

    return call


def _block(data, like):
    """What the interpreter takes for a block, or for a scalar where nothing in ``like`` is a block."""
    scalar = like[0].type.scalar
    kind = tl.block_type(scalar, list(data.shape)) if any(a.type.is_block() for a in like) else scalar
    return tl.tensor(TensorHandle(data, like[0].handle.dtype), kind)


cos = _function(torch.cos)
erf = _function(torch.erf)
exp = _function(torch.exp)
exp2 = _function(torch.exp2)
expm1 = _function(torch.expm1)
log = _function(torch.log)
log1p = _function(torch.log1p)
log2 = _function(torch.log2)
round = _function(torch.round)
rsqrt = _function(torch.rsqrt)
sin = _function(torch.sin)
sqrt = _function(torch.sqrt)
tan = _function(torch.tan)
tanh = _function(torch.tanh)
trunc = _function(torch.trunc)
atan2 = _function(torch.atan2)
fmod = _function(torch.fmod)
pow = _function(torch.pow)


def float8_half(bits):
    """The number whose bits in float8_e4m3fn these are, as a half."""
    data = torch.from_numpy(np.array(bits.handle.data)).view(torch.float8_e4m3fn).to(torch.float16).numpy()
    kind = tl.block_type(tl.float16, list(data.shape)) if bits.type.is_block() else tl.float16
    return tl.tensor(TensorHandle(data, tl.float16), kind)


def product_of(x, axis):
    """The product along an axis, which stays; the interpreter's own takes one element at a time."""
    axis = getattr(axis, "value", axis)
    data = np.prod(x.handle.data, axis=axis, keepdims=True, dtype=x.handle.data.dtype)
    return _block(data, [x])


def dot(a, b, acc):
    """a @ b + acc of half types; the interpreter's own takes bfloat16 for its bits."""
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")


def float8_dot(a, b, acc, most):
    """a @ b + acc of the bits of float8, in float32."""
    return dot(float8_half(a), float8_half(b), acc)
