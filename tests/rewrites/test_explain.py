"""A rule that does not fire says where it came nearest, and why it stopped."""

import torch

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.node import Node
from smelt.ir.ops import add, exp, mean, mul, rsqrt, scalar
from smelt.rewrites.explain import where, why_not
from smelt.rewrites.rule import rules_by_name
from smelt.rewrites.rules import RULES

RMS_NORM = rules_by_name(RULES)["rms-norm-of-rsqrt"]
X = ops.input(name="x", shape=(2, 3, 4), dtype=torch.float32)


def norm(axis: int) -> Node:
    squares = mean(mul(X, X), dims=(axis,), keepdim=True)
    return mul(X, rsqrt(add(squares, scalar(1e-6, torch.float32))))


def test_the_nearest_place_comes_first() -> None:
    graph = Graph([X], [mul(exp(X), norm(1))])
    (_, nearest), *_ = why_not(graph, RMS_NORM)
    assert str(nearest) == "dims is (1,), not (-1,), at mean(mul(x, x)) : f32[2, 1, 4]"
    assert why_not(graph, RMS_NORM, limit=1)[0][0] is norm(1)
    assert where(graph, RMS_NORM) == []


def test_the_places_that_fit() -> None:
    graph = Graph([X], [exp(norm(-1))])
    (found,) = where(graph, RMS_NORM)
    assert found.node is norm(-1)
    assert found.bindings == {"x": X, "eps": 1e-6}


def test_a_guard_that_refused_is_named() -> None:
    graph = Graph([X], [add(X, scalar(0.0, torch.float32))])
    ((_, refused),) = why_not(graph, rules_by_name(RULES)["add-zero"])
    assert refused.reason == "the guard of add-zero refused it"
