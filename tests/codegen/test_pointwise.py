"""Every pointwise operator, compiled for every dtype that it takes, against PyTorch: ordinary and extreme values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from smelt.ir import ops
from smelt.ir.errors import TypeRuleError
from smelt.ir.node import OPS, Node, OpDef, Trait
from smelt.ir.types import DTYPE_NAMES, symbol

from .harness import Case, Kernel, build, operand, random_tensor, same

from smelt.codegen.tvm.expression import supports  # isort: skip

N = symbol("n")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
ELSEWHERE = {"quantize_rows"}  # its scales are of rows: test_quantized.py
OPERATORS = sorted(op.name for op in OPS.values() if Trait.POINTWISE in op.traits and op.name not in ELSEWHERE)
ATTRIBUTES: dict[str, list[dict[str, Any]]] = {
    "cast": [{"dtype": dtype} for dtype in DTYPES],
    "clamp": [{"low": 1, "high": 3}, {"low": None, "high": 2}, {"low": 1, "high": None}, {"low": 3, "high": 1}],
    "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    "softplus": [{"beta": 2.0, "threshold": 10.0}],
    "leaky_relu": [{"slope": 0.3}],
}
GROUP = 6  # operators in one kernel: they share its loops and its loads, and building takes less time
NUMBERS = [0.0, 1.0, 0.5, 1.5, 2.5, 3.7, 7.3, 88.0, 104.0, 300.0, 1e5, 1e-30, float("inf")]
SPECIAL = torch.tensor([*NUMBERS, *(-n for n in NUMBERS), float("nan")], dtype=torch.float64)


def applications(dtype: torch.dtype) -> Iterator[tuple[OpDef, dict[str, Any]]]:
    """Every operator with attributes that a kernel can compute on operands of a dtype."""
    for name in OPERATORS:
        for attributes in ATTRIBUTES.get(name, [{}]):
            op = OPS[name]
            try:
                node = op(*operands(op, dtype), **attributes)
            except TypeRuleError:
                continue
            if node.op.decompose is not None or supports(name, dtype):
                yield op, attributes


def operands(op: OpDef, dtype: torch.dtype) -> list[Node]:
    count = op.arity[0]
    dtypes = (torch.bool, dtype, dtype) if op is ops.where else (dtype,) * count
    return [operand(i, (N,), d) for i, d in enumerate(dtypes)]


def grouped() -> dict[str, tuple[Case, list[str]]]:
    found: dict[str, tuple[Case, list[str]]] = {}
    for dtype in DTYPES:
        by_operands: dict[tuple[Node, ...], list[tuple[str, Node]]] = {}
        for op, attributes in applications(dtype):
            inputs = operands(op, dtype)
            label = " ".join([op.name, *(f"{k}={v}" for k, v in attributes.items())])
            by_operands.setdefault(tuple(inputs), []).append((label, op(*inputs, **attributes)))
        for inputs, nodes in by_operands.items():
            for start in range(0, len(nodes), GROUP):
                part = nodes[start : start + GROUP]
                name = f"{DTYPE_NAMES[dtype]} {' '.join(dict.fromkeys(label.split()[0] for label, _ in part))}"
                while name in found:
                    name += "'"
                found[name] = Case(list(inputs), [node for _, node in part]), [label for label, _ in part]
    return found


CASES = grouped()


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build({name: case for name, (case, _) in CASES.items()})


def special(dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return SPECIAL.to(dtype)
    if dtype == torch.bool:
        return torch.tensor([True, False])
    limits = torch.iinfo(dtype)
    values = {0, 1, 2, 3, 7, 100, limits.min, limits.min + 1, limits.max - 1, limits.max, -1, -2, -7}
    return torch.tensor(sorted(v for v in values if limits.min <= v <= limits.max), dtype=dtype)


def tensors(inputs: list[Node], count: int) -> list[Tensor]:
    """All pairs of special values, then random ones."""
    lines = [special(node.dtype) for node in inputs]
    grid = torch.meshgrid(*[torch.arange(len(line)) for line in lines], indexing="ij")
    extreme = [line[at.reshape(-1)] for line, at in zip(lines, grid, strict=True)]
    usual = [random_tensor([count], node.dtype, -100, 100) for node in inputs]
    return [torch.cat(parts) for parts in zip(extreme, usual, strict=True)]


def defined(label: str, inputs: list[Tensor]) -> Tensor:
    """Where PyTorch gives a result: it refuses to divide integers by 0, and traps on the least one by -1."""
    kept = torch.ones(len(inputs[0]), dtype=torch.bool)
    divides = label in ("floor_div", "trunc_div", "remainder", "fmod")
    if divides and not inputs[0].dtype.is_floating_point:
        a, b = inputs
        kept &= b != 0
        if torch.iinfo(a.dtype).min < 0:
            kept &= ~((a == torch.iinfo(a.dtype).min) & (b == -1))
    if label.startswith("gelu"):  # eager's own is NaN at infinity
        kept &= inputs[0] != float("inf")
    if label == "erf":  # eager's bfloat16 flushes what is tiny
        kept &= inputs[0].abs() > 1e-20
    return kept


def meaning(node: Node, inputs: list[Tensor]) -> Tensor:
    """PyTorch's result; for half types that of float32, rounded once."""
    wide = [x.float() if x.dtype in ops.HALF else x for x in inputs]
    result = node.op.evaluate(*wide, **node.attrs)
    return result.to(node.dtype)  # type: ignore[no-any-return]


def agree(label: str, found: Tensor, expected: Tensor) -> Tensor:
    """Elementwise: equal at the dtype's tolerance, zeros of one sign, NaN and infinities in the same places."""
    if not expected.dtype.is_floating_point:
        return found == expected
    rtol = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[expected.dtype]
    tiny = torch.finfo(expected.dtype).tiny
    # 1 + erf(x) loses all but its absolute accuracy, in eager as well
    atol = 1e-6 if label.startswith("gelu") else 4 * tiny
    close = torch.isclose(found.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)
    signed = (found.signbit() == expected.signbit()) | (expected != 0) | found.isnan()
    # which of two zeros is larger is nobody's business
    return close & (signed | torch.tensor(label.split()[0] in ("maximum", "minimum", "relu", "clamp")))


@pytest.mark.parametrize("name", CASES)
def test_operator_is_pytorchs(name: str, kernels: dict[str, Kernel]) -> None:
    case, labels = CASES[name]
    for count in (0, 1, 1000):
        given = tensors(list(case.inputs), count)
        sizes = {"n": len(given[0])}
        found = kernels[name].run(given, sizes)
        for label, node, result in zip(labels, case.outputs, found, strict=True):
            kept = defined(label, given)
            inputs = [x[kept] for x in given]
            expected = meaning(node, inputs)
            program = Case(case.inputs, [node])
            (by_program,) = program.interpret(program.program(), inputs, {"n": len(inputs[0])})
            for who, values in (("kernel", result[kept]), ("program", by_program)):
                wrong = ~agree(label, values, expected)
                if wrong.any():
                    at = int(wrong.nonzero()[0])
                    pytest.fail(
                        f"{label} by the {who} of {[x[at].item() for x in inputs]}:"
                        f" {values[at].item()}, not {expected[at].item()} ({int(wrong.sum())} such)"
                    )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("f32", "i64"))][::3])
def test_nothing_at_all(name: str, kernels: dict[str, Kernel]) -> None:
    case, _ = CASES[name]
    empty = [torch.empty(0, dtype=node.dtype) for node in case.inputs]
    assert all(len(x) == 0 for x in kernels[name].run(empty, {"n": 0}))


def test_every_operator_is_tried() -> None:
    tried = {label.split()[0] for _, labels in CASES.values() for label in labels}
    assert tried == set(OPERATORS)
    floats = {label.split()[0] for name, (_, labels) in CASES.items() if name.startswith("f32") for label in labels}
    assert set(OPERATORS) - floats == {"bit_and", "bit_not", "bit_or", "bit_xor", "float8_value"}


# --- what a compiler of real numbers would get wrong ------------------------------------------------------------------


def careful() -> dict[str, Node]:
    x, y = operand(0, (N,)), operand(1, (N,))
    zero, one = ops.scalar(0.0, torch.float32), ops.scalar(1.0, torch.float32)
    less, big = ops.lt(x, y), ops.scalar(2.0**24, torch.float32)
    return {
        "x - x": ops.sub(x, x),
        "x == x": ops.eq(x, x),
        "x != x": ops.ne(x, x),
        "x <= x": ops.le(x, x),
        "not x < y": ops.bit_not(less),
        "not x < y or x < y": ops.bit_or(ops.bit_not(less), less),
        "x < y or y <= x": ops.bit_or(less, ops.le(y, x)),
        "0 * x": ops.mul(zero, x),
        "x * 0": ops.mul(x, zero),
        "0 / x": ops.div(zero, x),
        "x / x": ops.div(x, x),
        "x + 0": ops.add(x, zero),
        "0 - x": ops.sub(zero, x),
        "x - 0": ops.sub(x, zero),
        "-x": ops.neg(x),
        "x * 1": ops.mul(x, one),
        "x + big - big": ops.sub(ops.add(x, big), big),
        "x + y - y": ops.sub(ops.add(x, y), y),
        "x / y * y": ops.mul(ops.div(x, y), y),
        "isnan": ops.isnan(x),
        "no number": ops.where(less, x, ops.where(ops.le(y, x), y, one)),
        "nan of the other branch": ops.where(less, ops.log(x), ops.sub(y, x)),
        "minimum of itself": ops.minimum(ops.maximum(x, y), ops.maximum(x, y)),
        "difference of maxima": ops.sub(ops.maximum(x, y), ops.maximum(y, x)),
    }


CAREFUL = careful()
ZEROS_OF_ANY_SIGN = ("all", "minimum of itself", "difference of maxima")  # which of two zeros is larger is not said


@pytest.fixture(scope="module")
def careful_kernels() -> dict[str, Kernel]:
    inputs = [operand(0, (N,)), operand(1, (N,))]
    cases = {name: Case(inputs, [node]) for name, node in CAREFUL.items()}
    return build({**cases, "all": Case(inputs, list(CAREFUL.values()))})


@pytest.mark.parametrize("name", [*CAREFUL, "all"])
def test_numbers_are_not_real(name: str, careful_kernels: dict[str, Kernel]) -> None:
    kernel = careful_kernels[name]
    line = SPECIAL.float()
    x, y = (m.reshape(-1).contiguous() for m in torch.meshgrid(line, line, indexing="ij"))
    sizes = {"n": len(x)}
    for found, expected in zip(kernel.run([x, y], sizes), kernel.case.meaning([x, y], sizes), strict=True):
        if not expected.dtype.is_floating_point:
            assert torch.equal(found, expected)
            continue
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)
        number = ~expected.isnan()
        assert torch.equal(found.signbit()[number], expected.signbit()[number]) or name in ZEROS_OF_ANY_SIGN


def test_integers_wrap_around(kernels: dict[str, Kernel]) -> None:
    x = torch.tensor([2**62, -(2**63), 2**63 - 1, 5])
    name = next(n for n, (_, labels) in CASES.items() if n.startswith("i64") and "mul" in labels)
    found = kernels[name].run([x, x], {"n": 4})[CASES[name][1].index("mul")]
    assert torch.equal(found, x * x)


# --- any tree ---------------------------------------------------------------------------------------------------------


def tree(seed: int) -> Case:
    """Random operators on three operands and on what was computed before, so that much is shared."""
    generator = torch.Generator().manual_seed(seed)

    def pick(choices: Sequence[Any]) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    dtype = pick([torch.float64, torch.float32, torch.float32, torch.bfloat16])
    inputs = [operand(0, (B, N, 6), dtype), operand(1, (N, 1), dtype), operand(2, (6,), dtype)]
    values = list(inputs)
    for _ in range(14):
        values.append(pick(STEPS)(*(pick(values[-6:]) for _ in range(3))))
    return Case(
        inputs,
        [values[-1], values[-3]],
        [{"b": b, "n": n} for b, n in ((2, 5), (3, 17), (0, 4))],
        rtol=_tolerance(dtype),
    )


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 6e-2}[dtype]


B = symbol("b")
STEPS: list[Callable[[Node, Node, Node], Node]] = [
    lambda a, b, c: ops.add(a, b),
    lambda a, b, c: ops.sub(a, b),
    lambda a, b, c: ops.mul(a, ops.tanh(b)),
    lambda a, b, c: ops.maximum(a, ops.minimum(b, c)),
    lambda a, b, c: ops.where(ops.lt(a, b), b, c),
    lambda a, b, c: ops.where(ops.bit_and(ops.bit_not(ops.gt(a, b)), ops.ge(c, b)), a, ops.neg(c)),
    lambda a, b, c: ops.sigmoid(ops.sub(a, b)),
    lambda a, b, c: ops.div(a, ops.add(ops.abs(b), ops.scalar(1.0, a.dtype))),
    lambda a, b, c: ops.relu(ops.mul(a, ops.sign(b))),
    lambda a, b, c: ops.gelu(a),
    lambda a, b, c: ops.sqrt(ops.abs(a)),
    lambda a, b, c: ops.cast(ops.cast(ops.tanh(a), dtype=torch.float64), dtype=a.dtype),
]
TREES = {f"tree {seed}": tree(seed) for seed in range(30)}


@pytest.fixture(scope="module")
def tree_kernels() -> dict[str, Kernel]:
    return build(TREES)


@pytest.mark.parametrize("name", TREES)
def test_any_tree(name: str, tree_kernels: dict[str, Kernel]) -> None:
    case, kernel = TREES[name], tree_kernels[name]
    for sizes in case.sizes:
        given = case.tensors(sizes)
        # against the program by its interpreter, whose numbers choose the same branches
        for found, expected in zip(kernel.run(given, sizes), case.interpret(kernel.program, given, sizes), strict=True):
            assert case.rtol is not None
            same(found, expected, case.rtol, case.rtol, "the kernel")
        case.check_program(sizes, kernel.program)
