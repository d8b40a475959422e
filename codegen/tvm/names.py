"""The names of the pointwise operators that kernels may call, known without TVM's package."""

from __future__ import annotations


def _named(words: str) -> frozenset[str]:
    return frozenset(words.split())


# elementary functions of ``vmath``
ELEMENTARY = _named("exp exp2 expm1 log log2 log1p tanh erf sigmoid sin cos sqrt rsqrt")
ACTIVATIONS = _named("gelu gelu_tanh")  # of ``activations``; what programs say of them are formulas, see ``idioms``
_COMPARISONS = _named("eq ne lt le gt ge")
FLOATS = (
    ELEMENTARY
    | ACTIVATIONS
    | _COMPARISONS
    | _named("add sub mul div neg reciprocal abs sign maximum minimum isnan fmod remainder floor_div")
    | _named("trunc_div floor ceil round trunc tan atan2 pow float8_of")
)  # of ``floats``
_BITS = _named("bit_and bit_or bit_xor bit_not")
INTEGERS = (
    _COMPARISONS
    | _BITS
    | _named("add sub mul neg abs sign maximum minimum floor_div trunc_div remainder fmod float8_value")
)  # of ``integers``
BOOLS = _COMPARISONS | _BITS | _named("sign add mul maximum minimum")
# those that take more time than storing their value and loading it again
COSTLY = ELEMENTARY - {"sqrt", "rsqrt"} | ACTIVATIONS | _named("pow fmod remainder floor_div tan atan2")
# those that are calls of libm, which TVM cannot make vectors of
CALLS = _named("fmod remainder floor_div tan atan2")


def is_call(op: str, dtype: str) -> bool:
    """Whether an operator on values of a compute type is a call, one element at a time."""
    return op in CALLS or (dtype == "float64" and (op == "pow" or op in ELEMENTARY - {"sqrt", "rsqrt"}))
