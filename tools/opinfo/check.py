"""Cases held against PyTorch: compiled together where they can be, alone where that fails, to tell which one it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...frontend.arguments import CONSTANTS
from ...frontend.dynamo import lower_fx
from ...frontend.export import capture
from ...ir import ops
from ...ir.errors import CaptureError, UnsupportedError
from ...ir.node import Node, topological
from ...runtime.build import build_executable
from ...runtime.contract import compare
from ...runtime.dynamo_backend import compile_fx
from ...runtime.entry import Entry
from ...runtime.options import Options
from ...runtime.plan import TorchStep
from ...runtime.target import Target
from ..fuzz.check import on_the_edge
from ..fuzz.noise import explained, noisy_runs
from ..fuzz.variants import interpreted_hosts
from .cases import UNWRITTEN, Case

Kind = Literal["lowered", "passed", "wrong", "skipped"]
TOGETHER = 8  # cases in one graph


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        kind: ``lowered``: all of it is ours, and right; ``passed``: PyTorch runs a part, or all, and it is right;
            ``wrong``: another result than eager's; ``skipped``: eager refuses it, or it is none that a backend gets.
        reason: which operators PyTorch runs, what is wrong, why it was skipped.
    """

    case: str
    kind: Kind
    reason: str = ""


class Ways(NamedTuple):
    """How cases are compiled: see :func:`check`."""

    native: bool
    dynamic: bool


@dataclass(frozen=True)
class Observed:
    """What a call gave: the leaves of its result, and its tensors afterwards."""

    results: list[Any]
    tensors: list[Tensor]


def check(name: str, cases: Sequence[Case], native: bool = True, dynamic: bool = False) -> list[Verdict]:
    """Check the cases of one operator.

    Args:
        name, cases: the operator and its calls.
        native: compile kernels and run them; otherwise they are interpreted.
        dynamic: make every size symbolic that can be, as ``smelt.compile`` does; otherwise all are those of the cases.
    """
    ways = Ways(native, dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [_prepared(name, case) for case in cases]
        ready = [x for x in found if isinstance(x, _Expected)]
        verdicts = {x.case: x for x in found if isinstance(x, Verdict)}
        for start in range(0, len(ready), TOGETHER):
            verdicts.update((v.case, v) for v in _check(ready[start : start + TOGETHER], ways))
    return [verdicts[case.name] for case in cases]


# --- eager ------------------------------------------------------------------------------------------------------------


@dataclass
class _Expected:
    """A case and what eager makes of it. Of random results, and of unwritten memory, only types are compared."""

    case: Case
    eager: Observed
    types_only: bool
    exact: Observed | None = None

    def fault(self, ours: Observed) -> str | None:
        """What is wrong with a result."""
        eager = self.eager
        if len(ours.results) != len(eager.results):
            return f"{len(ours.results)} results, eager gives {len(eager.results)}"
        named = [(f"result {i}", *pair) for i, pair in enumerate(zip(ours.results, eager.results, strict=True))]
        named += [(f"argument {i}", *pair) for i, pair in enumerate(zip(ours.tensors, eager.tensors, strict=True))]
        exact = dict(self._exact())
        for path, mine, theirs in named:
            if self.types_only and _types(mine) == _types(theirs):
                continue
            result = compare(path, mine, theirs, exact.get(path))
            if not result.passed and not self._explained(path, mine, theirs, exact.get(path)):
                return str(result)
        return None

    def _exact(self) -> list[tuple[str, Any]]:
        if self.exact is None:
            try:
                self.exact = _observe(self.case, [_wide(t) for t in self.case.tensors])
            except Exception:  # whatever an operator does that is not there in float64
                self.exact = Observed([], [])
        kinds = (("result", self.exact.results), ("argument", self.exact.tensors))
        wide = [(f"{kind} {i}", value) for kind, values in kinds for i, value in enumerate(values)]
        return [(path, v) for path, v in wide if isinstance(v, Tensor) and v.dtype == torch.float64]

    def _explained(self, path: str, ours: Any, eager: Any, exact: Any) -> bool:
        """Whether rounding within a composite operator explains a difference."""
        if not isinstance(ours, Tensor) or not isinstance(eager, Tensor) or ours.shape != eager.shape:
            return False
        if ours.dtype != eager.dtype or not eager.dtype.is_floating_point:
            return False
        if on_the_edge(ours, eager, exact):
            return True
        kind, number = path.split()

        def again() -> dict[str, Any]:
            made = _observe(self.case, self.case.tensors)
            return {path: (made.results if kind == "result" else made.tensors)[int(number)]}

        return explained(path, ours, eager, noisy_runs(again))


def _prepared(name: str, case: Case) -> _Expected | Verdict:
    strange = next((x for x in case.leaves if not _is_given(x)), None)
    if strange is not None:
        return Verdict(case.name, "skipped", f"an argument is a {_described(strange)}")
    try:
        eager, again = _observe(case, case.tensors), _observe(case, case.tensors, seed=1)
    except Exception as error:
        return Verdict(case.name, "skipped", f"eager raises {type(error).__name__}")
    if any(isinstance(x, Tensor) and x.layout is not torch.strided for x in eager.results):
        return Verdict(case.name, "skipped", "a result is sparse")
    return _Expected(case, eager, name in UNWRITTEN or case.is_seeded or not _equal(eager, again))


def _is_given(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout is torch.strided and not leaf.is_quantized and not leaf.dtype.is_complex
    return leaf is None or isinstance(leaf, CONSTANTS)


def _described(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"{leaf.layout} tensor of {leaf.dtype}".replace("torch.", "")
    return type(leaf).__name__


def _observe(case: Case, tensors: Sequence[Tensor], seed: int = 0) -> Observed:
    given = [_copy(t) for t in tensors]
    torch.manual_seed(seed)
    with torch.no_grad():
        results = case.call(given)
    return Observed([_resolved(x) for x in results], given)


def _copy(tensor: Tensor) -> Tensor:
    """A copy with the same strides, at an address that kernels can read as it is where the tensor is dense."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format).copy_(tensor)


def _resolved(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype.is_floating_point else tensor


def _equal(one: Observed, other: Observed) -> bool:
    pairs = zip([*one.results, *one.tensors], [*other.results, *other.tensors], strict=True)
    return all(_same(a, b) for a, b in pairs)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return bool(a == b or a != a)
    return _types(a) == _types(b) and bool(((a == b) | ((a != a) & (b != b))).all())


def _types(leaf: Any) -> Any:
    return (leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else type(leaf)


# --- compiled ---------------------------------------------------------------------------------------------------------


def _check(expected: Sequence[_Expected], ways: Ways) -> list[Verdict]:
    try:
        found = _checked(expected, ways)
    except Exception as error:
        if len(expected) == 1:
            return [_refused(expected[0], error)]
        found = []
    if len(expected) > 1 and (not found or any(v.kind == "wrong" for v in found)):
        return [v for x in expected for v in _check([x], ways)]
    return found


def _refused(expected: _Expected, error: Exception) -> Verdict:
    text = str(error).strip().split("\n")[0]
    if isinstance(error, CaptureError | UnsupportedError):
        # the backend hands such a graph to PyTorch
        return Verdict(expected.case.name, "passed", f"the whole graph: {text}")
    return Verdict(expected.case.name, "wrong", f"raises {type(error).__name__}: {text}")


def _checked(expected: Sequence[_Expected], ways: Ways) -> list[Verdict]:
    given = [[_copy(t) for t in x.case.tensors] for x in expected]
    inputs = [tensor for tensors in given for tensor in tensors]
    graph = _graph([x.case for x in expected])
    entry, run = _built(graph, inputs, ways) if ways.dynamic or not ways.native else _compiled(graph, inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        results = run()
    run_by_torch = _run_by_torch(entry, [len(t) for t in given], [len(r) for r in results])
    verdicts = []
    for x, tensors, result, reason in zip(expected, given, results, run_by_torch, strict=True):
        fault = x.fault(Observed(result, tensors))
        kind: Kind = "wrong" if fault else "passed" if reason else "lowered"
        verdicts.append(Verdict(x.case.name, kind, fault or reason))
    return verdicts


def _options() -> Options:
    return Options(Target.detect("cpu", 1), True, cache=False, tune="off")


def _graph(cases: Sequence[Case]) -> fx.GraphModule:
    """A graph as Dynamo makes them: the tensors of all cases, and one call for each case."""
    graph = fx.Graph()
    places = [[graph.placeholder(f"x{i}_{j}") for j in range(len(case.tensors))] for i, case in enumerate(cases)]
    graph.output([graph.call_function(_Call(case), tuple(own)) for case, own in zip(cases, places, strict=True)])
    return fx.GraphModule(nn.Module(), graph)


class _Call:
    """A case as a function of tensors."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.__name__ = self.__qualname__ = "case"
        self.__module__ = __name__

    def __call__(self, *tensors: Tensor) -> list[Any]:
        return self.case.call(tensors)


def _compiled(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[Entry, Callable[[], Any]]:
    function = compile_fx(graph, inputs, _options())
    return function.entry, lambda: function(*inputs)


def _built(graph: fx.GraphModule, inputs: Sequence[Tensor], ways: Ways) -> tuple[Entry, Callable[[], Any]]:
    captured = capture(graph.eval(), tuple(inputs)) if ways.dynamic else lower_fx(graph, inputs)
    made = build_executable(captured, _options().target, verify=True, native=None if ways.native else interpreted_hosts)
    entry = Entry(captured, made)
    leaves = captured.flatten(tuple(inputs), {}) if ways.dynamic else list(inputs)
    return entry, lambda: entry.run(leaves, entry.match(captured.in_spec, leaves))


def _run_by_torch(entry: Entry, tensors: Sequence[int], results: Sequence[int]) -> list[str]:
    """For each case, the operators that PyTorch runs; "" where all is ours.

    Args:
        entry: several cases as one graph.
        tensors, results: how many arguments and results each case has.
    """
    plan = entry.executable.plan
    graph, steps = plan.graph, {step.node for step in plan.steps if isinstance(step, TorchStep)}
    written = {graph.inputs.index(m.target): m.value for m in graph.mutations if m.target in graph.inputs}
    specs, first, found = iter(entry.capture.outputs), 0, []
    for given, count in zip(tensors, results, strict=True):
        own = [graph.outputs[s.index] for s in [next(specs) for _ in range(count)] if s.kind == "tensor"]
        own += [written[place] for place in range(first, first + given) if place in written]
        first += given
        found.append(", ".join(dict.fromkeys(_name(n) for n in topological(own) if n in steps)))
    return found


def _name(node: Node) -> str:
    if node.is_a(ops.aten_call):
        return str(node.attrs["target"])
    region: Any = node.attrs["region"]
    return f"{region.outputs[0].op.name} (no kernel)"
