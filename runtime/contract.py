"""The numeric contract: when a result is as good as PyTorch's own.

A result passes where it is close to eager's at the tolerances of its dtype, or where its error against a float64
reference is at most twice eager's own (three times for half types, and for TensorFloat-32 where it is asked for). NaN
and infinities must stand where eager's do.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# rtol, atol: those of torch.testing.assert_close.
TOLERANCES = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class OutputResult:
    """How one output compares.

    Attributes:
        path: where it is in the result: ``last_hidden_state``, ``[0]``; ``buffer …`` and ``argument …`` for tensors
            that the model writes to.
        max_abs, max_rel: the largest difference from eager, absolute and relative to eager's value.
        rmse, eager_rmse: the root mean square error against the float64 reference, ours and eager's; None without one.
        fault: what is wrong; None where it passes.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float = 0.0
    max_rel: float = 0.0
    rmse: float | None = None
    eager_rmse: float | None = None
    fault: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it keeps the contract."""
        return self.fault is None

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        errors = f"max abs {self.max_abs:.2e}, rel {self.max_rel:.2e}"
        if self.rmse is not None and self.eager_rmse is not None:
            errors += f"; rmse against float64: {self.rmse:.2e}, eager {self.eager_rmse:.2e}"
        return f"{self.path} {self.dtype}[{shape}]: {errors}" + (f": {self.fault}" if self.fault else "")


def compare(path: str, ours: Any, eager: Any, reference: Any = None, *, tf32: bool = False) -> OutputResult:
    """How a value compares with eager's, by the numeric contract; ``reference`` is the same in float64.

    With ``tf32``, products of float32 may round their operands to ten bits, as float16 has them: its tolerances hold.
    """
    if not isinstance(eager, Tensor) or not isinstance(ours, Tensor):
        equal = type(ours) is type(eager) and (ours == eager or (ours != ours and eager != eager))
        return OutputResult(path, type(eager).__name__, (), fault=None if equal else f"{ours!r}, eager gives {eager!r}")
    plain = OutputResult(path, str(eager.dtype).removeprefix("torch."), tuple(eager.shape))
    for what in ("dtype", "shape", "device"):
        if getattr(ours, what) != getattr(eager, what):
            return _with(plain, fault=f"{what} {getattr(ours, what)}, eager gives {getattr(eager, what)}")
    if not eager.dtype.is_floating_point and not eager.dtype.is_complex:
        wrong = int((ours != eager).sum())
        largest = float((ours.double() - eager.double()).abs().max()) if wrong else 0.0
        return _with(plain, max_abs=largest, fault=f"{wrong} of {eager.numel()} values differ" if wrong else None)
    return _compare_floats(plain, ours, eager, reference, tf32 and eager.dtype == torch.float32)


def _compare_floats(plain: OutputResult, ours: Tensor, eager: Tensor, reference: Any, tf32: bool) -> OutputResult:
    special = _special_fault(ours, eager)
    if special is not None:
        return _with(plain, max_abs=math.inf, max_rel=math.inf, fault=special)
    finite = eager.isfinite()
    wide = torch.complex128 if eager.dtype.is_complex else torch.float64
    mine, theirs = (x.detach()[finite].to(wide) for x in (ours, eager))
    difference, size = (mine - theirs).abs(), theirs.abs()
    result = _with(
        plain,
        max_abs=float(difference.max()) if difference.numel() else 0.0,
        max_rel=float((difference / size.clamp_min(torch.finfo(size.dtype).tiny)).max()) if size.numel() else 0.0,
    )
    if isinstance(reference, Tensor) and reference.shape == eager.shape:
        exact = reference[finite].to(wide)
        result = _with(result, rmse=_rmse(mine, exact), eager_rmse=_rmse(theirs, exact))
    rtol, atol = TOLERANCES.get(torch.float16 if tf32 else eager.dtype, TOLERANCES[torch.float32])
    if bool((difference <= atol + rtol * size).all()):
        return result
    return _with(result, fault=_error_fault(result, 3.0 if eager.dtype in _HALF or tf32 else 2.0))


def _error_fault(result: OutputResult, factor: float) -> str | None:
    """What is wrong with a result that is not close to eager's: nothing where eager is no nearer to the truth."""
    if result.rmse is None or result.eager_rmse is None:
        return "it is not close to eager's at the dtype's tolerances"
    if result.rmse <= factor * result.eager_rmse:
        return None
    return f"its error is more than {factor:g} times eager's, and it is not close to eager's"


def _special_fault(ours: Tensor, eager: Tensor) -> str | None:
    if eager.dtype.is_complex:
        ours, eager = torch.view_as_real(ours), torch.view_as_real(eager)
    for what, mine, theirs in (
        ("NaN", ours.isnan(), eager.isnan()),
        ("inf", ours.isposinf(), eager.isposinf()),
        ("-inf", ours.isneginf(), eager.isneginf()),
    ):
        if not torch.equal(mine, theirs):
            differ = int((mine != theirs).sum())
            return f"{what} at {int(mine.sum())} places, in eager's at {int(theirs.sum())}: {differ} differ"
    return None


def _rmse(values: Tensor, exact: Tensor) -> float:
    error = (values - exact).abs()
    return float(error.square().mean().sqrt()) if error.numel() else 0.0


def _with(result: OutputResult, **changes: Any) -> OutputResult:
    return OutputResult(**{**asdict(result), **changes})
