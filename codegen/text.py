"""The text of a kernel program, as ``dump-ir --stage kernels`` shows it.

::

    rows(s0) {
      in0 : in f32[s0, 768] strides [768, 1]
      out0 : out f32[s0, 768] strides [768, 1]
      t0[i0:s0] = max[i1:768] in0[i0, i1]
      %0 = exp(sub(in0[i0, i1], t0[i0]))
      t1[i0:s0] = sum[i1:768] %0
      out0[i0, i1] over [i0:s0, i1:768] = div(%0, t1[i0])
    }

An expression that is used twice gets a name, so the text grows with the program and not with the number of paths
through it. Equal programs have equal text. There is no parser: programs are made by ``codegen.lower`` only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..ir.dims import print_dim
from ..ir.types import DTYPE_NAMES, Dim
from .program import (
    Apply,
    Axis,
    Checked,
    Combine,
    Const,
    Expr,
    Format,
    Guard,
    Index,
    IndexValue,
    Load,
    Param,
    Program,
    Recurrence,
    Ref,
    Stage,
    Store,
    operands,
    postorder,
    program_axes,
    program_roots,
    stage_roots,
    store_roots,
)


def print_program(program: Program) -> str:
    """The text of a program: parameters, then stages and stores, one a line."""
    printer = _Printer(program)
    symbols = ", ".join(map(str, program.symbols))
    body = "".join(f"  {line}\n" for line in printer.lines())
    return f"{program.skeleton.value}({symbols}) {{\n{body}}}\n"


@dataclass
class _Printer:
    program: Program
    names: dict[Expr, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = {str(s) for s in self.program.symbols}
        # axes lose their underscore where no size has that name
        plain = {str(a.symbol) for a in program_axes(self.program) if a.name not in taken}
        self._axis = re.compile(rf"\b({'|'.join(sorted(plain))})\b") if plain else None
        roots = program_roots(self.program)
        uses = Counter(x for e in postorder(roots) for x in operands(e))
        uses.update(roots)
        self._shared = {e for e, count in uses.items() if count > 1 and _worth_a_name(e)}

    def lines(self) -> Iterator[str]:
        """Every line of the program."""
        yield from map(self.param, self.program.params)
        if self.program.recurrence is not None:
            yield self.recurrence(self.program.recurrence)
        for stage in self.program.stages:
            yield from self.bindings(stage_roots(stage))
            yield self.stage(stage)
        for store in self.program.stores:
            yield from self.bindings(store_roots(store))
            yield self.store(store)

    # --- lines --------------------------------------------------------------------------------------------------------

    def param(self, param: Param) -> str:
        type_ = f"{DTYPE_NAMES[param.type.dtype]}[{self.dims(param.type.shape)}]"
        if param.format is Format.PANELS:
            place = "panels of the transpose" if param.transposed else "panels"
        else:
            place = f"strides [{self.dims(param.strides)}]"
        return f"{param.name} : {param.role.value} {type_} {place}"

    def bindings(self, exprs: Sequence[Expr]) -> Iterator[str]:
        """Lines that name what the expressions share with one another or with what came before."""
        for expr in postorder(exprs, self.names.__contains__):
            if expr in self._shared and expr not in self.names:
                text = self.expression(expr)
                self.names[expr] = f"%{len(self.names)}"
                yield f"{self.names[expr]} = {text}"

    def stage(self, stage: Stage) -> str:
        how = f"{self.combine(stage.combine)} " if stage.combine else ""
        value = self.expression(stage.value)
        if stage.combine and stage.combine.score is not None:
            value = f"({self.expression(stage.combine.score)}, {value})"
        return f"{stage.name}{self.axes(stage.axes)} = {how}{value}"

    def combine(self, combine: Combine) -> str:
        bound = "" if combine.bound is None else f" below {self.index(combine.bound)}"
        bound += "" if combine.offset is None else f" + {self.expression(combine.offset)}"
        return f"{combine.kind.value}{self.axes(combine.axes)}{bound}"

    def store(self, store: Store) -> str:
        sign = "+=" if store.accumulate else "="
        target = f"{store.param}[{', '.join(map(self.index, store.index))}]"
        return f"{target} over {self.axes(store.axes)} {sign} {self.expression(store.value)}"

    def recurrence(self, r: Recurrence) -> str:
        outputs = ", ".join(r.outputs)
        order = " reversed" if r.reverse else ""
        loops = self.axes((r.time, r.batch, r.hidden))
        operands = ", ".join((r.gates, r.weight, r.bias, *r.states))
        return f"{outputs} = {r.kind}{loops}{order}({operands})"

    # --- parts --------------------------------------------------------------------------------------------------------

    def dims(self, dims: Sequence[Dim]) -> str:
        return ", ".join(map(print_dim, dims))

    def axes(self, axes: Sequence[Axis]) -> str:
        return f"[{', '.join(f'{self.index(a.symbol)}:{print_dim(a.size)}' for a in axes)}]"

    def index(self, index: Index) -> str:
        """An index: an affine one by its arithmetic, one from data by its expression."""
        if isinstance(index, Expr):
            return self.expression(index)
        text = print_dim(index)
        return self._axis.sub(lambda match: match[0][1:], text) if self._axis else text

    def expression(self, root: Expr) -> str:
        """One expression, what has a name by its name."""
        texts: dict[Expr, str] = {}
        for expr in postorder([root], self.names.__contains__):
            texts[expr] = self.names.get(expr) or self._text(expr, texts)
        return texts[root]

    def _text(self, expr: Expr, texts: dict[Expr, str]) -> str:
        dtype = DTYPE_NAMES[expr.dtype]
        match expr:
            case Const():
                return f"{dtype}({expr.value})".lower()
            case IndexValue():
                return f"{dtype}({self.index(expr.index)})"
            case Load():
                return (
                    f"{expr.param}[{', '.join(texts[i] if isinstance(i, Expr) else self.index(i) for i in expr.index)}]"
                )
            case Ref():
                return f"{expr.stage}[{', '.join(map(self.index, expr.index))}]"
            case Guard():
                inside = f"{self.index(expr.index)} in [0, {self.index(expr.size)})"
                return f"if({inside}, {texts[expr.then]}, {texts[expr.otherwise]})"
            case Checked():
                wrap = ", wrapped" if expr.wrap else ""
                return f"checked({texts[expr.value]}, {print_dim(expr.size)}{wrap})"
            case Apply():
                result = f", {dtype}" if expr.op == "cast" else ""
                return f"{expr.op}({', '.join(texts[a] for a in expr.args)}{result})"


def _worth_a_name(expr: Expr) -> bool:
    if isinstance(expr, Const | IndexValue | Ref):
        return False
    return not isinstance(expr, Load) or bool(operands(expr))
