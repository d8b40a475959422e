"""Pointwise operators by the names of the IR's primitives, as Triton text."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# {0} and {1} are operands that are atoms or calls, of one type
INFIX = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
}


def _library(*names: str) -> dict[str, str]:
    return {name: f"lib.{name}({{0}})" for name in names}


FLOAT: Mapping[str, str] = {
    **INFIX,
    **_library("exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sigmoid"),
    **_library("erf", "sign", "reciprocal", "round", "trunc", "isnan"),
    **{name: f"lib.{name}({{0}}, {{1}})" for name in ("div", "maximum", "minimum", "remainder", "floor_div")},
    **{name: f"lib.{name}({{0}}, {{1}})" for name in ("trunc_div", "fmod", "pow", "atan2")},
    "neg": "(-{0})",
    "abs": "tl.abs({0})",
    "float8_of": "lib.float8_of({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
}
INTEGER: Mapping[str, str] = {
    **INFIX,
    "neg": "(-{0})",
    "abs": "tl.abs({0})",
    "sign": "lib.sign({0})",
    "maximum": "tl.maximum({0}, {1})",
    "minimum": "tl.minimum({0}, {1})",
    "floor_div": "lib.int_floor_div({0}, {1})",
    "trunc_div": "({0} // {1})",
    "remainder": "lib.int_remainder({0}, {1})",
    "fmod": "({0} % {1})",
    "bit_and": "({0} & {1})",
    "bit_or": "({0} | {1})",
    "bit_xor": "({0} ^ {1})",
    "float8_value": "lib.float8_value({0})",
    "bit_not": "(-{0} - 1)",  # of uint8, ~ does not run under the interpreter of Triton 3.7
}
BOOL: Mapping[str, str] = {
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({1} & ({0} == 0))",
    "le": "({1} | ({0} == 0))",
    "gt": "({0} & ({1} == 0))",
    "ge": "({0} | ({1} == 0))",
    "sign": "{0}",
    "add": "({0} | {1})",
    "mul": "({0} & {1})",
    "maximum": "({0} | {1})",
    "minimum": "({0} & {1})",
    "bit_and": "({0} & {1})",
    "bit_or": "({0} | {1})",
    "bit_xor": "({0} ^ {1})",
    "bit_not": "({0} == 0)",
}


def functions_for(dtype: torch.dtype) -> Mapping[str, str]:
    """The pointwise operators on operands of a dtype."""
    if dtype == torch.bool:
        return BOOL
    return FLOAT if dtype.is_floating_point else INTEGER


def takes_literals(text: str) -> bool:
    """Whether an operator's text may have a literal beside a value."""
    return "lib." not in text and "tl." not in text
