"""Every lowering of the table against eager: at the captured sizes, at others, and at size 1."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from smelt.frontend.aten import LOWERINGS
from smelt.frontend.capture import Capture
from smelt.frontend.export import capture

Inputs = Callable[[int, int], tuple[Any, ...]]
CASES: dict[str, list[tuple[Callable[..., Any] | None, Inputs]]] = {}


def case(names: str, inputs: Inputs, call: Callable[..., Any] | None = None) -> None:
    """Enter operators, ``add.Tensor sub.Tensor``, with their arguments for two sizes.

    ``call`` is given the operator and the arguments; without it, the operator is called with them.
    """
    for name in names.split():
        CASES.setdefault(name, []).append((call, inputs))


def overload(name: str) -> Any:
    """The operator of a name, of ATen's where no library is named."""
    if name.startswith("transformers."):
        pytest.importorskip("transformers.integrations.moe")  # which registers it
    found: Any = torch.ops if name.count(".") > 1 else torch.ops.aten
    for part in name.split("."):
        found = getattr(found, part)
    return found


def f(*shape: int) -> Tensor:
    return torch.randn(shape)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.8 + 0.1


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def mask(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.4


# --- elements ---------------------------------------------------------------------------------------------------------

case(
    "exp.default exp2.default expm1.default sin.default cos.default tan.default tanh.default sigmoid.default "
    "erf.default erfc.default special_expit.default special_exp2.default special_expm1.default special_erf.default "
    "silu.default mish.default hardswish.default hardsigmoid.default log_sigmoid.default sinh.default cosh.default "
    "atan.default asinh.default deg2rad.default rad2deg.default neg.default abs.default sign.default sgn.default "
    "floor.default ceil.default round.default trunc.default fix.default frac.default relu.default square.default "
    "positive.default real.default conj.default resolve_conj.default resolve_neg.default gelu.default "
    "softplus.default leaky_relu.default elu.default selu.default celu.default hardtanh.default relu6.default "
    "hardshrink.default softshrink.default isnan.default isinf.default isfinite.default isposinf.default "
    "isneginf.default nan_to_num.default logical_not.default detach.default alias.default clone.default "
    "contiguous.default lift_fresh.default lift.default lift_fresh_copy.default alias_copy.default "
    "detach_copy.default",
    lambda b, s: (f(b, s) * 3,),
)
case(
    "log.default log1p.default log2.default log10.default sqrt.default rsqrt.default reciprocal.default asin.default "
    "acos.default atanh.default logit.default special_logit.default special_log1p.default",
    lambda b, s: (positive(b, s),),
)
case("acosh.default", lambda b, s: (positive(b, s) + 1.2,))
case("bitwise_not.default", lambda b, s: (ints(9, b, s),))
case("bitwise_not.default", lambda b, s: (mask(b, s),))
for unary in ("exp.default", "sigmoid.default", "sqrt.default", "floor.default", "relu.default", "logical_not.default"):
    case(unary, lambda b, s: (ints(9, b, s),))
case("exp.default isnan.default abs.default", lambda b, s: (torch.tensor([0.0, torch.inf, -torch.inf, torch.nan]),))
case("gelu.default", lambda b, s: (f(b, s),), lambda op, x: op(x, approximate="tanh"))
case("round.decimals", lambda b, s: (f(b, s) * 10,), lambda op, x: (op(x, decimals=2), op(x, decimals=-1)))
case("elu.default softplus.default", lambda b, s: (f(b, s) * 9, 2.0))
case("threshold.default", lambda b, s: (f(b, s), 0.1, 7.0))
case("prelu.default", lambda b, s: (f(b, s, 3), f(s)))
case("_prelu_kernel.default", lambda b, s: (f(b, s), f(1, 1)))
case("glu.default", lambda b, s: (f(b, 6, s), 1))
case("clamp.default clip.default hardtanh.default", lambda b, s: (f(b, s), -0.5, 0.5))
case("clamp.default clamp_min.default clamp_max.default", lambda b, s: (ints(9, b, s), 3))
case("clamp.default", lambda b, s: (ints(9, b, s), 2.5))
case("clamp.Tensor clip.Tensor", lambda b, s: (f(b, s), f(s) - 1, f(b, 1) + 1))
case("clamp_min.Tensor clamp_max.Tensor", lambda b, s: (f(b, s), f(s)))

case(
    "add.Tensor sub.Tensor subtract.Tensor mul.Tensor multiply.Tensor div.Tensor divide.Tensor true_divide.Tensor "
    "rsub.Tensor maximum.default minimum.default max.other min.other fmax.default fmin.default atan2.default "
    "arctan2.default eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor not_equal.Tensor less.Tensor "
    "less_equal.Tensor greater.Tensor greater_equal.Tensor logical_and.default logical_or.default "
    "logical_xor.default hypot.default",
    lambda b, s: (f(b, s), f(s)),
)
case(
    "add.Tensor mul.Tensor div.Tensor eq.Tensor lt.Tensor maximum.default logical_and.default atan2.default",
    lambda b, s: (ints(5, b, s), ints(5, s) + 1),
)
case(
    "add.Tensor mul.Tensor ge.Tensor where.self",
    lambda b, s: (mask(b, s), mask(s)),
    lambda op, x, y: op(x, y) if "where" not in str(op) else op(x, x, y),
)
case("add.Tensor mul.Tensor sub.Tensor", lambda b, s: (ints(5, b, s), f(s)))
case("add.Tensor mul.Tensor div.Tensor", lambda b, s: (f(b, s).half(), torch.tensor(0.3)))
case("add.Tensor mul.Tensor", lambda b, s: (f(b, s).bfloat16(), f(s)))
case("add.Tensor sub.Tensor rsub.Tensor", lambda b, s: (f(b, s), f(s)), lambda op, x, y: op(x, y, alpha=0.3))
case("add.Scalar sub.Scalar subtract.Scalar rsub.Scalar", lambda b, s: (f(b, s), 2, 3))
case(
    "mul.Scalar multiply.Scalar div.Scalar divide.Scalar true_divide.Scalar eq.Scalar ne.Scalar lt.Scalar le.Scalar "
    "gt.Scalar ge.Scalar not_equal.Scalar less.Scalar less_equal.Scalar greater.Scalar greater_equal.Scalar",
    lambda b, s: (ints(5, b, s), 2.5),
)
case("add.Scalar mul.Scalar div.Scalar", lambda b, s: (ints(5, b, s), 2))
case("add.Tensor mul.Tensor div.Tensor sub.Tensor", lambda b, s: (f(b, s).bfloat16(), 0.1))
case(
    "remainder.Tensor fmod.Tensor floor_divide.default div.Tensor_mode divide.Tensor_mode",
    lambda b, s: (f(b, s) * 9, positive(s) * 3),
    lambda op, x, y: [op(x, y, rounding_mode=m) for m in ("floor", "trunc", None)] if "mode" in str(op) else op(x, y),
)
case(
    "remainder.Tensor fmod.Tensor floor_divide.default div.Tensor_mode",
    lambda b, s: (ints(19, b, s) - 9, ints(4, s) + 1),
    lambda op, x, y: [op(x, -y, rounding_mode=m) for m in ("floor", "trunc")] if "mode" in str(op) else op(x, -y),
)
case("remainder.Scalar fmod.Scalar floor_divide.Scalar", lambda b, s: (ints(19, b, s) - 9, 4))
case("remainder.Scalar_Tensor", lambda b, s: (7, ints(4, b, s) + 1))
case(
    "div.Scalar_mode divide.Scalar_mode",
    lambda b, s: (ints(19, b, s) - 9, 4),
    lambda op, x, y: op(x, y, rounding_mode="floor"),
)
BITS = ["bitwise_and", "bitwise_or", "bitwise_xor"]
case(" ".join(f"{n}.Tensor" for n in (*BITS, "__and__", "__or__", "__xor__")), lambda b, s: (ints(9, b, s), ints(9, s)))
case(" ".join(f"{n}.Tensor" for n in (*BITS, "__and__", "__or__", "__xor__")), lambda b, s: (mask(b, s), mask(s)))
case(" ".join(f"{n}.Scalar" for n in (*BITS, "__and__", "__or__", "__xor__")), lambda b, s: (ints(9, b, s), 5))
case(" ".join(f"{n}.Scalar_Tensor" for n in BITS), lambda b, s: (5, ints(9, b, s)))
for exponent in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 1.7):
    case("pow.Tensor_Scalar", lambda b, s, exponent=exponent: (positive(b, s), exponent))
case("pow.Tensor_Scalar", lambda b, s: (ints(5, b, s), 2))
case("pow.Tensor_Scalar", lambda b, s: (ints(5, b, s), 1.5))
case("pow.Tensor_Tensor", lambda b, s: (positive(b, s), f(s)))
case("pow.Scalar", lambda b, s: (2.0, f(b, s)))
case("heaviside.default", lambda b, s: (f(b, s).round(), f(s)))
case("xlogy.Tensor special_xlogy.default", lambda b, s: (f(b, s).round(), positive(s)))
case("xlogy.Scalar_Other", lambda b, s: (f(b, s), 2.0))
case("xlogy.Scalar_Self", lambda b, s: (2.0, positive(b, s)))

case("where.self", lambda b, s: (mask(b, s), f(s), f(b, 1)))
case("where.self", lambda b, s: (mask(b, s), ints(5, s), f(b, 1)))
case("where.ScalarOther", lambda b, s: (mask(b, s), f(s), 1.5))
case("where.ScalarSelf", lambda b, s: (mask(b, s), 1.5, f(s)))
case("where.Scalar", lambda b, s: (mask(b, s), 1.5, -1.0))
case("masked_fill.Scalar", lambda b, s: (f(b, s), mask(s), -torch.inf))
case("masked_fill.Tensor", lambda b, s: (f(s).half(), mask(b, s), torch.tensor(2.0)))
case("addcmul.default addcdiv.default", lambda b, s: (f(b, s), f(s), positive(b, 1)), lambda op, *x: op(*x, value=0.3))
case("lerp.Scalar", lambda b, s: (f(b, s), f(b, s), 0.3))
case("lerp.Tensor", lambda b, s: (f(b, s), f(b, s), positive(b, s)))
case("to.dtype", lambda b, s: (f(b, s) * 5, torch.int32))
case("to.dtype", lambda b, s: (f(b, s) * 5, torch.bfloat16))
case("to.device", lambda b, s: (f(b, s), torch.device("cpu"), torch.float64))
case("to.other type_as.default", lambda b, s: (f(b, s), ints(3, s)))
case("to.dtype_layout _to_copy.default", lambda b, s: (f(b, s),), lambda op, x: op(x, dtype=torch.float64))
case("dropout.default feature_dropout.default alpha_dropout.default", lambda b, s: (f(b, s), 0.5, False))

# --- views ------------------------------------------------------------------------------------------------------------

for reshaping in ("view.default", "reshape.default", "_unsafe_view.default", "view_copy.default"):
    case(reshaping, lambda b, s: (f(b, s, 6),), lambda op, x: op(x, [x.shape[0] * x.shape[1], 2, -1]))
    case(reshaping, lambda b, s: (f(b, s),), lambda op, x: op(x, [1, -1]))
case("flatten.using_ints", lambda b, s: (f(b, s, 3), 1, 2))
case("unflatten.int", lambda b, s: (f(b, 6, s), 1, [2, -1]))
case("squeeze.default", lambda b, s: (f(b + 1, 1, s + 1, 1),))
case("squeeze.dim", lambda b, s: (f(b, 1, s), 1))
case("squeeze.dim", lambda b, s: (f(b, 3, s), 1))
case("squeeze.dims squeeze_copy.dims", lambda b, s: (f(1, b, 1), [0, 2]))
case("unsqueeze.default unsqueeze_copy.default", lambda b, s: (f(b, s), -2))
case("atleast_1d.default atleast_2d.default atleast_3d.default", lambda b, s: (f(b),))
case("view_as.default reshape_as.default", lambda b, s: (f(b, s, 2), f(b, 2 * s)))
case("ravel.default", lambda b, s: (f(b, s),))
case("view.dtype", lambda b, s: (f(b, s), torch.float32))
case(
    "expand.default broadcast_to.default expand_copy.default",
    lambda b, s: (f(b, 1),),
    lambda op, x: op(x, [2, x.shape[0], 4]),
)
case("expand_as.default", lambda b, s: (f(s), f(b, s)))
case("broadcast_tensors.default", lambda b, s: ([f(s), f(b, s)],))
case("meshgrid.default", lambda b, s: ([f(b), f(s)],))
case("meshgrid.indexing", lambda b, s: ([f(b), f(s)],), lambda op, x: op(x, indexing="xy"))
case("permute.default permute_copy.default", lambda b, s: (f(b, s, 3), [2, 0, -2]))
case("transpose.int swapaxes.default swapdims.default transpose_copy.int", lambda b, s: (f(b, s, 3), 0, -1))
case(
    "t.default t_copy.default numpy_T.default mT.default mH.default matrix_H.default adjoint.default",
    lambda b, s: (f(b, s),),
)
case("movedim.int moveaxis.int", lambda b, s: (f(b, s, 3), 0, -1))
case("movedim.intlist moveaxis.intlist", lambda b, s: (f(b, s, 3), [0, 1], [2, 0]))
case("slice.Tensor slice_copy.Tensor", lambda b, s: (f(b, s + 3), 1, 1, 3))
case("slice.Tensor", lambda b, s: (f(b, s + 3), 1, -2))
case("slice.Tensor", lambda b, s: (f(b, s + 3), 1, 0, -1))
case("slice.Tensor", lambda b, s: (f(b, s + 3), 1, 1, None, 2))
case("slice.Tensor", lambda b, s: (f(b, 9), 1, 7, 100))
case("slice.Tensor", lambda b, s: (f(b, 9), 1, -100, 2))
case("slice.Tensor", lambda b, s: (f(20), f(s)), lambda op, x, y: op(x, 0, y.shape[0], y.shape[0] + 2))
case("narrow.default narrow_copy.default", lambda b, s: (f(b, s + 3), 1, -2, 2))
case("select.int select_copy.int", lambda b, s: (f(b, s, 3), 1, -1))
case("unbind.int unbind_copy.int", lambda b, s: (f(b, 3, s), 1))
case("split.Tensor unsafe_split.Tensor split_copy.Tensor", lambda b, s: (f(b, 7), 3, 1))
case(
    "split.sizes split_with_sizes.default split_with_sizes_copy.default unsafe_split_with_sizes.default",
    lambda b, s: (f(b, 7), [2, 5], 1),
)
case("chunk.default unsafe_chunk.default tensor_split.sections", lambda b, s: (f(b, 7), 3, -1))
case("tensor_split.indices", lambda b, s: (f(b, 7), [2, 5], 1))
case("as_strided.default as_strided_copy.default", lambda b, s: (f(9), [2, 3], [3, 1], 1))
case("diagonal.default", lambda b, s: (f(b, 4, 6), 1, 1, 2))
case("diagonal.default", lambda b, s: (f(4, b, 6), -2, 0, 2))
case("diag_embed.default", lambda b, s: (f(b, s),), lambda op, x: (op(x), op(x, 1), op(x, -2, 0, 2)))
case("cat.default concat.default concatenate.default", lambda b, s: ([f(b, s), f(b, 3), ints(4, b, s)], 1))
case("stack.default", lambda b, s: ([f(b, s), f(b, s)], -1))
case("hstack.default vstack.default dstack.default column_stack.default", lambda b, s: ([f(b, s), f(b, s)],))
case("hstack.default vstack.default dstack.default column_stack.default", lambda b, s: ([f(s), f(s)],))
case("repeat.default tile.default", lambda b, s: (f(b, s), [2, 1, 3]))
case("tile.default", lambda b, s: (f(b, 2, s), [3]))
case("repeat_interleave.self_int", lambda b, s: (f(b, s), 3, 0))
case("repeat_interleave.self_int", lambda b, s: (f(b, s), 3))
case("roll.default", lambda b, s: (f(b, s), [2, -1], [0, 1]))
case("roll.default", lambda b, s: (f(b, s), [1]))
case("flip.default", lambda b, s: (f(b, s), [0, -1]))
case("fliplr.default flipud.default", lambda b, s: (f(b, s),))
case(
    "constant_pad_nd.default",
    lambda b, s: (f(b, s + 2), [1, 2, -1, 3], 0.5),
    lambda op, x, w, v: op(x, [1, 2, 0, 3], v),
)
case("constant_pad_nd.default", lambda b, s: (mask(b, s), [1, 2]))
case("pad.default", lambda b, s: (f(b, s), [1, 2]), lambda op, x, w: (op(x, w), op(x, w, "constant", 3.0)))
case("tril.default triu.default", lambda b, s: (f(b, s, s + 2),), lambda op, x: (op(x), op(x, 1), op(x, -2)))

# --- creation ---------------------------------------------------------------------------------------------------------

case(
    "full.default",
    lambda b, s: (f(b, s),),
    lambda op, x: (op([2, x.shape[0]], 3.5), op([x.shape[1]], 3, dtype=torch.int32), op([], True)),
)
case("full_like.default", lambda b, s: (f(b, s), 3))
case("new_full.default", lambda b, s: (f(b, s),), lambda op, x: op(x, [x.shape[1]], 3))
case("zeros.default ones.default", lambda b, s: (f(b, s),), lambda op, x: (op([x.shape[0]]), op([2], dtype=torch.bool)))
case(
    "zeros_like.default ones_like.default",
    lambda b, s: (ints(4, b, s),),
    lambda op, x: (op(x), op(x, dtype=torch.half)),
)
case("new_zeros.default new_ones.default", lambda b, s: (ints(4, b, s),), lambda op, x: op(x, [x.shape[1], 2]))
case("empty.memory_format", lambda b, s: (f(b, s),), lambda op, x: op([x.shape[0]]) * 0)
case("empty_like.default", lambda b, s: (ints(4, b, s),), lambda op, x: op(x) * 0)
case("new_empty.default", lambda b, s: (ints(4, b, s),), lambda op, x: op(x, [x.shape[0]]) * 0)
case("empty_strided.default", lambda b, s: (ints(4, b, s),), lambda op, x: op([2, 3], [3, 1], dtype=torch.int64) * 0)
case("new_empty_strided.default", lambda b, s: (ints(4, b, s),), lambda op, x: op(x, [2, 3], [3, 1]) * 0)
case("empty_permuted.default", lambda b, s: (ints(4, b, s),), lambda op, x: op([2, 3], [1, 0], dtype=torch.int64) * 0)
case("scalar_tensor.default", lambda b, s: (f(b, s),), lambda op, x: (op(3), op(2.5, dtype=torch.half), op(x.shape[0])))
case("fill.Scalar", lambda b, s: (f(b, s), 3))
case("fill.Tensor", lambda b, s: (f(b, s), torch.tensor(2)))
case("copy.default", lambda b, s: (f(b, s), ints(5, s)))
case("zero.default", lambda b, s: (f(b, s),))
case(
    "arange.default", lambda b, s: (f(b, s),), lambda op, x: (op(x.shape[0]), op(4.5), op(x.shape[1], dtype=torch.half))
)
case("arange.start", lambda b, s: (f(b, s),), lambda op, x: (op(2, x.shape[0] + 2), op(0.5, 4)))
case(
    "arange.start_step",
    lambda b, s: (f(b, s),),
    lambda op, x: (op(1, 2 * x.shape[0] + 1, 2), op(9, 0, -2), op(0, 1, 0.25)),
)
case("linspace.default", lambda b, s: (f(b, s),), lambda op, x: x[0, 0] + op(0.1, 1, 7))
case("eye.default", lambda b, s: (f(b, s),), lambda op, x: op(x.shape[0]))
case("eye.m", lambda b, s: (f(b, s),), lambda op, x: op(x.shape[0], x.shape[1], dtype=torch.bool))
case("one_hot.default", lambda b, s: (ints(4, b, s), 5))

# --- reductions -------------------------------------------------------------------------------------------------------

REDUCED = (
    "sum.default mean.default amax.default amin.default max.default min.default prod.default var.default std.default"
)
case(
    REDUCED + " argmax.default argmin.default any.default all.default nansum.default count_nonzero.default",
    lambda b, s: (f(b + 1, s),),
)
case("sum.default prod.default max.default any.default all.default argmax.default", lambda b, s: (ints(3, b, s),))
case("sum.default any.default all.default", lambda b, s: (mask(b, s),))
case("sum.dim_IntList mean.dim amax.default amin.default any.dims all.dims", lambda b, s: (f(b, 3, s), [0, -1], True))
case("sum.dim_IntList mean.dim any.dims", lambda b, s: (f(b, 3, s), [1]))
case("sum.dim_IntList mean.dim", lambda b, s: (f(b, s), [1]), lambda op, x, d: op(x, d, dtype=torch.float64))
case("sum.default mean.default", lambda b, s: (f(b, s).bfloat16(),))
case("mean.default", lambda b, s: (torch.tensor(2.5),))
case("any.dim all.dim prod.dim_int max.dim min.dim argmax.default argmin.default", lambda b, s: (f(b, s, 3), 1))
case("max.dim argmin.default all.dim", lambda b, s: (f(b, s, 3), -1, True))
case("aminmax.default", lambda b, s: (f(b, s),), lambda op, x: (op(x), op(x, dim=1, keepdim=True)))
case("count_nonzero.dim_IntList", lambda b, s: (f(b, s).round(), [1]))
case(
    "var.dim std.dim var_mean.dim std_mean.dim",
    lambda b, s: (f(b, s + 1), [1]),
    lambda op, x, d: (op(x, d), op(x, d, False, True)),
)
case(
    "var.correction std.correction var_mean.correction std_mean.correction",
    lambda b, s: (f(b, 5), [1]),
    lambda op, x, d: op(x, d, correction=2, keepdim=True),
)
case("var_mean.default std_mean.default", lambda b, s: (f(b + 1, s), False))
case("norm.Scalar", lambda b, s: (f(b, s), 2))
case("norm.ScalarOpt_dim", lambda b, s: (f(b, s), 2, [1]))
case("norm.ScalarOpt_dtype", lambda b, s: (f(b, s), 2), lambda op, x, p: op(x, p, dtype=torch.float64))
case(
    "norm.ScalarOpt_dim_dtype",
    lambda b, s: (f(b, s), 1, [0]),
    lambda op, x, p, d: op(x, p, d, True, dtype=torch.float64),
)
for order in (0, 1, 2, 3.5, torch.inf, -torch.inf):
    case("linalg_vector_norm.default", lambda b, s, order=order: (f(b, s), order, [1]))
case("logsumexp.default special_logsumexp.default", lambda b, s: (f(b, s, 3), [1]))
case("cumsum.default", lambda b, s: (f(b, s), 1))
case("cumsum.default", lambda b, s: (mask(b, s), 0))
case("softmax.int log_softmax.int", lambda b, s: (f(b, s), -1), lambda op, x, d: (op(x, d), op(x, 0, torch.float64)))
case("special_softmax.default special_log_softmax.default", lambda b, s: (f(b, s), -1))
case("_softmax.default _log_softmax.default", lambda b, s: (f(b, s), -1, False))
case("_safe_softmax.default", lambda b, s: (f(b, s).masked_fill(mask(b, s), -torch.inf), -1))

# --- indices ----------------------------------------------------------------------------------------------------------

case("embedding.default", lambda b, s: (f(7, 4), ints(7, b, s)))
case(
    "index.Tensor _unsafe_index.Tensor",
    lambda b, s: (f(5, 6, 7), ints(5, b, s) - 2),
    lambda op, x, i: (op(x, [i]), op(x, [None, i]), op(x, [i, i[:, :1]]), op(x, [None, i, i])),
)
case("index.Tensor", lambda b, s: (f(5, 6, 7), ints(5, b, s)), lambda op, x, i: op(x, [i, None, i]))
case(
    "index_put.default _unsafe_index_put.default",
    lambda b, s: (f(9, 6), torch.randperm(9)[:b], f(6)),
    lambda op, x, i, v: (op(x, [i], v), op(x, [i], v, True)),
)
case(
    "index_put.default",
    lambda b, s: (f(6, 9), torch.randperm(9)[:b], torch.tensor(3.0)),
    lambda op, x, i, v: op(x, [None, i], v),
)
case("index_put.default", lambda b, s: (f(b, s, 2), mask(b, s), torch.tensor(3.0)), lambda op, x, i, v: op(x, [i], v))
case(
    "index_put.default",
    lambda b, s: (f(6, 5, 9), torch.randperm(5)[:b], f(b, 5)),
    lambda op, x, i, v: op(x, [i, None, i], v),
)
case("index_select.default", lambda b, s: (f(5, 6), 1, ints(6, s)))
case("gather.default", lambda b, s: (f(b, s + 2), 1, ints(s, b, s)))
case(
    "take_along_dim.default",
    lambda b, s: (f(3, 5), torch.tensor([[-1, 7, 5], [-6, 0, 4], [9, -11, 2]])),
    lambda op, x, i: op(x, i, 1),
)
case("take_along_dim.default", lambda b, s: (f(3, 5), ints(3, 3, 2)), lambda op, x, i: (op(x, i, 1), op(x, i)))
case("take.default", lambda b, s: (f(3, 4), ints(12, b, s)))
case("scatter.src scatter_add.default", lambda b, s: (f(b, 9), 1, torch.arange(s).expand(b, s), f(b, s)))
case("scatter.value", lambda b, s: (f(b, 9), 1, ints(9, b, s), 2.5))
case("index_copy.default index_add.default", lambda b, s: (f(9, s), 0, torch.randperm(9)[:b], f(b, s)))
case("index_add.default", lambda b, s: (f(9, s), 0, torch.randperm(9)[:b], f(b, s)), lambda op, *x: op(*x, alpha=2))
case("index_fill.int_Scalar", lambda b, s: (f(b, 5), 1, ints(5, s), 2.0))
case("index_fill.int_Tensor", lambda b, s: (f(b, 5), 1, ints(5, s), torch.tensor(2.0)))
case("slice_scatter.default", lambda b, s: (f(b, s + 3), f(b, 2), 1, 1, 3))
case("slice_scatter.default", lambda b, s: (f(b, 9), f(b, 4), 1, 1, 9, 2))
case("select_scatter.default", lambda b, s: (f(b, s, 3), f(b, 3), 1, -1))
case("isin.Tensor_Tensor", lambda b, s: (ints(9, b, s), ints(9, 3)), lambda op, x, t: (op(x, t), op(x, t, invert=True)))

# --- products ---------------------------------------------------------------------------------------------------------

case("mm.default matmul.default", lambda b, s: (f(b, s), f(s, 4)))
case("bmm.default matmul.default", lambda b, s: (f(b, s, 3), f(b, 3, 4)))
case("matmul.default", lambda b, s: (f(b, 2, s, 3), f(3, 4)))
case("matmul.default", lambda b, s: (f(b, 2, s, 3), f(3)))
case("matmul.default", lambda b, s: (f(3), f(b, 3, s)))
case("matmul.default dot.default vdot.default inner.default", lambda b, s: (f(s), f(s)))
case("linalg_matmul.default", lambda b, s: (f(b, s), f(s, b)))
case("inner.default", lambda b, s: (f(b, s), f(3, s)))
case("mv.default", lambda b, s: (f(b, s), f(s)))
case("outer.default ger.default", lambda b, s: (f(b), f(s)))
case("linear.default", lambda b, s: (f(b, s, 3), f(4, 3), f(4)))
case("linear.default", lambda b, s: (f(b, 3), f(4, 3)))
case("linear.default", lambda b, s: (f(b, 3), f(3)))
case("addmm.default", lambda b, s: (f(4), f(b, s), f(s, 4)), lambda op, *x: (op(*x), op(*x, beta=0.5, alpha=2)))
case("addmv.default", lambda b, s: (f(b), f(b, s), f(s)))
case("baddbmm.default", lambda b, s: (f(b, 2, 4), f(b, 2, s), f(b, s, 4)), lambda op, *x: (op(*x, beta=0), op(*x)))
SDPA = "scaled_dot_product_attention.default"
case(SDPA, lambda b, s: (f(b, 2, s, 4), f(b, 2, s + 1, 4), f(b, 2, s + 1, 3)))
case(SDPA, lambda b, s: (f(b, 2, s, 4), f(b, 2, s, 4), f(b, 2, s, 4)), lambda op, *x: op(*x, is_causal=True, scale=0.3))
case(SDPA, lambda b, s: (f(b, 2, s, 4), f(b, 2, s, 4), f(b, 2, s, 4), mask(b, 1, s, s)))
case(SDPA, lambda b, s: (f(b, 2, s, 4), f(b, 2, s, 4), f(b, 2, s, 4), f(s, s)))
case(SDPA, lambda b, s: (f(b, 4, s, 4), f(b, 2, s, 4), f(b, 2, s, 4)), lambda op, *x: op(*x, enable_gqa=True))
case(SDPA, lambda b, s: (f(b, s, 4), f(b, s, 4), f(b, s, 4), mask(b, s, s)))
case(SDPA, lambda b, s: (f(s, 4), f(s, 4), f(s, 4)))
case(SDPA, lambda b, s: (f(b, 3, 2, s, 4), f(b, 3, 2, s, 4), f(b, 3, 2, s, 4)))
case("conv1d.default", lambda b, s: (f(b, 3, 9), f(5, 3, 2), f(5), [2]))
case("conv2d.default", lambda b, s: (f(b, 3, 9, 8), f(5, 3, 2, 4), f(5), [2, 4]))
case("conv2d.default", lambda b, s: (f(3, 9, 8), f(5, 3, 1, 1)))
case("conv3d.default", lambda b, s: (f(b, 2, 4, 4, 4), f(5, 2, 2, 2, 2), None, [2, 2, 2]))
case("convolution.default", lambda b, s: (f(b, 3, 9), f(5, 3, 2), None, [2], [0], [1], False, [0], 1))
# patches that overlap
case("conv1d.default", lambda b, s: (f(b, 3, s + 4), f(5, 3, 3), f(5), [1], [1]))
case("conv1d.default", lambda b, s: (f(b, 3, 12), f(5, 3, 3), None, [2], [1]))
case("conv2d.default", lambda b, s: (f(b, 3, 9, 8), f(5, 3, 3, 2), f(5), [2, 1], [1, 0], [2, 3]))
case("conv2d.default", lambda b, s: (f(b, 4, 9, 8), f(4, 1, 3, 3), f(4), [1, 2], [1, 1], [1, 1], 4))
case("conv2d.default", lambda b, s: (f(b, 4, 7, 8).bfloat16(), f(4, 1, 3, 3).bfloat16(), None, [1], [1], [1], 4))
case("convolution.default", lambda b, s: (f(b, 3, 9), f(5, 3, 3), None, [2], [1], [1], False, [0], 1))
case("conv1d.default", lambda b, s: (f(b, 2, s + 70), f(3, 2, 66), None))  # more taps than a sum would have terms
# padding by name
case("conv1d.padding", lambda b, s: (f(b, 3, s + 4), f(5, 3, 4), f(5), [1], "same", [2]))
case("conv2d.padding", lambda b, s: (f(b, 4, s + 4, 5), f(4, 1, 3, 2), f(4), [1, 1], "same", [2, 1], 4))
case("conv3d.padding", lambda b, s: (f(b, 2, 4, 5, 6), f(3, 2, 2, 3, 2), None, [1, 2, 1], "valid"))
# windows of one channel
case("max_pool1d.default", lambda b, s: (f(b, 3, 9), [2]))
case("max_pool2d.default", lambda b, s: (f(b, 3, 9, 8), [3, 2], [2, 1], [1, 0]))
case("max_pool3d.default", lambda b, s: (f(b, 2, 4, 5, 6), [2, 2, 2]))
case("avg_pool1d.default", lambda b, s: (f(b, 3, 9), [3], [2], [1]))
case("avg_pool2d.default", lambda b, s: (f(b, 3, 9, 8), [3, 2], [2, 1], [1, 0], False, False))
case("avg_pool3d.default", lambda b, s: (f(b, 2, 4, 5, 6), [2, 2, 2]))
case("adaptive_avg_pool1d.default", lambda b, s: (f(b, 3, 9), [3]))
case("adaptive_avg_pool2d.default", lambda b, s: (f(b, 3, 8, 6), [4, 3]))
case("adaptive_avg_pool3d.default", lambda b, s: (f(b, 2, 4, 6, 6), [2, 3, 1]))
case("_adaptive_avg_pool2d.default", lambda b, s: (f(b, 3, 8, 6), [2, 3]))
case("_adaptive_avg_pool3d.default", lambda b, s: (f(b, 2, 4, 6, 6), [2, 2, 3]))
# groups of several channels
case("conv1d.default", lambda b, s: (f(b, 6, s + 4), f(4, 3, 3), f(4), [1], [1], [1], 2))
case("conv2d.default", lambda b, s: (f(b, 6, 9, s + 4), f(9, 2, 3, 2), f(9), [2, 1], [0, 1], [1, 2], 3))
case("conv2d.default", lambda b, s: (f(b, 2, 9, 8), f(6, 1, 3, 3), None, [1], [1], [1], 2))
case("conv1d.default", lambda b, s: (f(b, 4, 9).half(), f(6, 2, 3).half(), None, [1], [2], [1], 2))
case("conv1d.default", lambda b, s: (f(4, 9), f(6, 2, 3), f(6), [1], [2], [1], 2))

# --- order ------------------------------------------------------------------------------------------------------------


def special(x: Tensor) -> Tensor:
    """With NaN and infinities, and equals of them."""
    flat = x.reshape(-1)
    flat[: min(4, len(flat))] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])[: len(flat)]
    return x


# of equals PyTorch promises no order where it is not asked for a stable one: there the values alone are compared
case("topk.default", lambda b, s: (f(b, s, 7), 3))
case("topk.default", lambda b, s: (f(b, 6, s), 2, 1, False))
case("topk.default", lambda b, s: (special(f(b, s, 7)), 4), lambda op, x, k: op(x, k)[0])
case("topk.default", lambda b, s: (f(b, s, 3), 0))
case("sort.default argsort.default", lambda b, s: (f(b, s, 7), -1, True))
case("sort.default", lambda b, s: (mask(b, s, 5),), lambda op, x: op(x)[0])
case("sort.default argsort.default", lambda b, s: (f(b, 6, s), 1))
STABLE = "sort.stable argsort.stable"
case(STABLE, lambda b, s: (special(f(b, s, 7)),), lambda op, x: [op(x, stable=True, descending=d) for d in (0, 1)])
case(STABLE, lambda b, s: (ints(3, b, s, 7),), lambda op, x: op(x, stable=True, dim=-1))
case(STABLE, lambda b, s: (f(b * s, 5),), lambda op, x: op(x.argmax(1), stable=True, dim=0))
case(STABLE, lambda b, s: (f(b, s, 0),), lambda op, x: op(x, stable=True))
case("histc.default", lambda b, s: (ints(8, b, s).float(), 8, 0, 7))
case("histc.default", lambda b, s: (f(b, s) * 2, 10, -1.0, 1.5))

# --- experts ----------------------------------------------------------------------------------------------------------


def grouped(b: int, s: int) -> tuple[Tensor, ...]:
    """Rows, matrices of four experts, and where their rows end: one expert has none, and the last rows no expert."""
    rows = b * s
    ends = torch.tensor([rows // 3, rows // 3, rows // 2, rows - (rows > 3)], dtype=torch.int32)
    return f(rows, 8), f(4, 8, 16), ends


case(
    "_grouped_mm.default",
    lambda b, s: tuple(x.bfloat16() if x.is_floating_point() else x for x in grouped(b, s)),
    # PyTorch leaves rows of no expert as they are in memory
    lambda op, x, w, ends: op(x, w, ends).where((torch.arange(x.shape[0]) < ends[-1])[:, None], x.new_zeros(())),
)
case("transformers.grouped_mm_fallback.default", grouped)
# the matrices of linear layers, whose terms lie side by side
case("transformers.grouped_mm_fallback.default", grouped, lambda op, x, w, e: op(x, w.mT.contiguous().mT, e))

# --- norms and recurrent layers ---------------------------------------------------------------------------------------

case("layer_norm.default", lambda b, s: (f(b, s, 6), [6], f(6), f(6), 1e-3))
case("layer_norm.default", lambda b, s: (f(b, s, 2, 6), [2, 6]))
case("layer_norm.default", lambda b, s: (f(b, s, 6), [6], None, f(6)))
case("layer_norm.default", lambda b, s: (f(b, s, 6).bfloat16(), [6], f(6).bfloat16()))
case("native_layer_norm.default", lambda b, s: (f(b, s, 6), [6], f(6), f(6), 1e-3))
case("rms_norm.default", lambda b, s: (f(b, s, 6), [6], f(6), 1e-3))
case("rms_norm.default", lambda b, s: (f(b, s, 2, 6), [2, 6], f(2, 6)))
case("group_norm.default", lambda b, s: (f(b, 6, s, 2), 3, f(6), f(6)))
case("batch_norm.default", lambda b, s: (f(b, 3, s), f(3), f(3), f(3), positive(3), False, 0.1, 1e-5, False))
case(
    "_native_batch_norm_legit_no_training.default", lambda b, s: (f(b, 3, s), f(3), f(3), f(3), positive(3), 0.1, 1e-5)
)


def recurrent(gates: int, layers: int, directions: int, biases: bool) -> Inputs:
    def inputs(b: int, s: int) -> tuple[Any, ...]:
        params = []
        for layer in range(layers):
            for _ in range(directions):
                params += [f(gates * 4, 3 if layer == 0 else 4 * directions), f(gates * 4, 4)]
                params += [f(gates * 4), f(gates * 4)] if biases else []
        state = f(layers * directions, b, 4)
        hx = [state, state + 1] if gates == 4 else state
        return f(b, s, 3), hx, params, biases, layers, 0.0, False, directions == 2, True

    return inputs


case("rnn_tanh.input rnn_relu.input", recurrent(1, 2, 1, True))
case("rnn_tanh.input", recurrent(1, 1, 2, False))
case("lstm.input", recurrent(4, 2, 2, True))
case("lstm.input", recurrent(4, 1, 1, False))
case("gru.input", recurrent(3, 2, 2, True))
case("gru.input", recurrent(3, 1, 1, False))

# Only of use after PyTorch's functionalisation, or without an effect that can be seen in a result.
UNSEEN = {
    "_reshape_alias.default", "_reshape_copy.default", "to.prim_Device", "to.prim_dtype", "detach_.default",
    "_autocast_to_reduced_precision.default", "_autocast_to_full_precision.default", "requires_grad_.default",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in CASES])
def test_operator(name: str, check: Callable[..., Capture]) -> None:
    operator = overload(name)
    for call, inputs in CASES[name]:
        function = Called(operator, call)
        captured = check(function, *(inputs(b, s) for b, s in SIZES), dynamic=same_sizes(inputs))
        assert captured.fallbacks == ()
        assert not any("all sizes fixed" in note for note in captured.notes), captured.notes


SIZES = [(3, 5), (2, 7), (1, 1)]


def same_sizes(inputs: Inputs) -> dict[str, dict[int, str]]:
    """Which axes of the arguments depend on the two sizes; the others are fixed, as a model's are."""
    first, second = (pytree.tree_leaves_with_path(inputs(*size)) for size in ((2, 4), (3, 5)))
    return {
        argument(path): {axis: "" for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n}
        for (path, a), (_, b) in zip(first, second, strict=True)
        if isinstance(a, Tensor)
    }


def argument(path: tuple[Any, ...]) -> str:
    """The name of an argument of a :class:`Called`."""
    return "args" + "".join(str(key) for key in path)


class Called:
    """An operator with a fixed way to call it."""

    def __init__(self, operator: Any, call: Callable[..., Any] | None) -> None:
        self.operator = operator
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.operator(*args) if self.call is None else self.call(self.operator, *args)


def test_every_lowering_has_a_case() -> None:
    assert {name.removeprefix("aten.") for name in LOWERINGS} - CASES.keys() - UNSEEN == set()
    assert {name if name.count(".") > 1 else f"aten.{name}" for name in CASES} <= LOWERINGS.keys()


@pytest.mark.parametrize("name", LOWERINGS)
def test_every_lowering_is_of_an_operator(name: str) -> None:
    overload(name.removeprefix("aten."))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_the_largest_of_values_that_are_often_equal_are_pytorchs_choice(dtype: torch.dtype) -> None:
    class Top(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.topk(x, 2).indices

    found = capture(Top().eval(), (torch.ones(3, 5, dtype=dtype),))
    assert [fallback.op for fallback in found.fallbacks] == ["aten.topk.default"]
