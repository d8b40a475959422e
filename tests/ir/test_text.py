"""The text of graphs: what it looks like, that it is read back to the same object, and what is not read."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import GraphError, ParseError
from smelt.ir.graph import Graph, Mutation
from smelt.ir.node import Node, Origin, Var
from smelt.ir.text import parse_graph, print_graph, print_node, value_names
from smelt.ir.types import SymbolRange, TensorType, TupleType, symbol

F32 = torch.float32
S = symbol("s0")


def sample() -> Graph:
    """A bit of everything."""
    x = ops.input(name="x", shape=(S, 128), dtype=F32)
    unused = ops.input(name="2 unused/names", shape=(), dtype=torch.int64)
    cache = ops.input(name="cache", shape=(S, 128), dtype=F32)
    w = ops.weight(name="fc1.weight", shape=(128, 128), dtype=F32)
    steps = ops.weight(name="steps", shape=(), dtype=torch.int64)
    y = ops.linear(x, w).keep_origin(Origin("model.py:12", "encoder.fc1"))
    inner = ops.input(name="0", shape=(S, 128), dtype=F32)
    region = Graph([inner], [ops.gelu(inner), ops.sum(inner, dims=(1,), keepdim=True)], (), [SymbolRange(S, 1, 512)])
    fused = ops.fused(y, region=region, layouts=((0, 1), (0, 1)))
    first, second = ops.results(fused)
    half = ops.slice_(ops.div(first, second), dim=0, stop=(S + 1) // 2)
    types = (TensorType(((S + 1) // 2, 2), F32), TensorType(((S + 1) // 2, 2), torch.int64))
    args = (("operand", 0), ("value", 2), ("value", -1), ("value", True))
    top = ops.aten_call(half, target="aten.topk.default", args=args, types=types)
    mutations = [Mutation(cache, first), Mutation(steps, ops.add(steps, ops.scalar(1, torch.int64)))]
    return Graph([x, unused, cache], [*ops.results(top), x], mutations, [SymbolRange(S, 1, 512)])


def test_text_of_a_graph(golden: Callable[[str, str], None]) -> None:
    golden("ir-text.txt", print_graph(sample(), origins=True))


def test_text_is_read_back_to_the_same_object() -> None:
    graph = sample()
    assert parse_graph(print_graph(graph)) is graph
    assert parse_graph(print_graph(graph, origins=True)) is graph


def test_empty_graph() -> None:
    assert parse_graph(print_graph(Graph([], []))) is Graph([], [])


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -7,
    10**30,
    0.0,
    -0.0,
    0.1,
    1e300,
    1e-45,
    5e-324,
    -1e16,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    'quotes " and \\ backslashes',
    "lines\nand\ttabs \x00 \x7f   é 漢 \ud800 # no comment",
    "%0 = input",
    torch.float32,
    torch.bool,
    torch.complex64,
    torch.device("cuda:1"),
    torch.strided,
    torch.channels_last,
    S,
    -S,
    (S + 1) // 2 * S,
    (),
    (1,),
    ((), (1, (2.0, (True,)))),
    TensorType((), torch.bool),
    TensorType((S, 2 * S + 1, 0), torch.bfloat16),
    TupleType((TensorType((S,), F32), TensorType((), F32))),
    TupleType(()),
    (TensorType((1,), F32), (torch.float16, None)),
    Graph([], []),
    (Graph([], [ops.scalar(1.0, F32)]), 1),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_attribute_values(value: Any) -> None:
    result = (TensorType((), F32),)
    call = ops.aten_call(target="aten.f", args=("value", value), kwargs=value, types=result)
    graph = Graph([], [call], (), [SymbolRange(S)])
    assert parse_graph(print_graph(graph)) is graph


@pytest.mark.parametrize(
    "name", ["s0", "_", "inf", "none", "f32", "bool", "bf16", "Max", "a b", 'q"', "%0", "graph", "é", ""]
)
def test_symbol_names(name: str) -> None:
    s = symbol(name)
    x = ops.input(name=name, shape=(s, s * 2), dtype=F32)
    call = ops.aten_call(x, target="aten.f", args=(("value", s), ("value", s + 1)), types=(x.type,))
    graph = Graph([x], [call], (), [SymbolRange(s, 3)])
    assert parse_graph(print_graph(graph)) is graph


def test_names_are_readable_and_distinct() -> None:
    names = ["x", "x.1", "x 1", "x/1", "0", "", "x_1.2", "weights[0]"]
    inputs = [ops.input(name=n, shape=(), dtype=F32) for n in names]
    total = ops.add(inputs[0], ops.weight(name="x", shape=(), dtype=F32))
    graph = Graph(inputs, [total])
    found = value_names(graph)
    assert list(found.values()) == [
        "%x",
        "%x.1",
        "%x_1",
        "%x_1.2",
        "%arg0",
        "%arg",
        "%x_1.2.2",
        "%weights_0_",
        "%x.2",
        "%0",
    ]
    assert parse_graph(print_graph(graph)) is graph


def test_defaults_are_left_out() -> None:
    x = ops.input(name="x", shape=(4,), dtype=F32)
    text = print_graph(Graph([x], [ops.gelu(x), ops.gelu(x, approximate="tanh"), ops.softmax(x, dim=0)]))
    assert "gelu(%x) :" in text
    assert 'gelu(%x, approximate="tanh") :' in text
    assert "softmax(%x, dim=0) :" in text


def test_origins_are_comments_of_one_line() -> None:
    x = ops.input(name="x", shape=(7,), dtype=F32)
    y = ops.tanh(x).keep_origin(Origin("a.py:3", "layer\n.0   return", "rule # one"))
    assert "%0 = tanh(%x) : f32[7]  # layer .0 return, a.py:3, by rule # one\n" in print_graph(
        Graph([x], [y]), origins=True
    )
    assert "#" not in print_graph(Graph([x], [y]))


def test_line_of_a_node() -> None:
    graph = sample()
    fused = next(node for node in graph.nodes if node.op is ops.fused)
    assert print_node(graph, fused) == (
        "%1 = fused(%0, layouts=[[0, 1], [0, 1]], region=graph {...}) : (f32[s0, 128], f32[s0, 1])"
    )


def test_patterns_print_for_messages() -> None:
    node = ops.softmax(Var("x"), dim=Var("d"))
    assert "%0 = softmax(?x, dim=?d) : ?\n" in print_graph(Graph([], [node]))


def test_what_has_no_text() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = (deep,)
    for value, message in ((torch.float8_e4m3fn, "has no text"), (deep, "nested more than")):
        call = ops.aten_call(target="aten.f", args=value, types=(TensorType((), F32),))
        with pytest.raises(GraphError, match=message):
            print_graph(Graph([], [call]))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_layout_of_the_text_is_free() -> None:
    text = 'graph(s0 in[1,inf]){%a=input "x":f32[s0,2] # comment "\n#more\n%b=add(%a,%a):f32[s0,2]return %b,%a}'
    x = ops.input(name="x", shape=(S, 2), dtype=F32)
    assert parse_graph(text) is Graph([x], [ops.add(x, x), x], (), [SymbolRange(S, 1)])


def test_values_that_nothing_needs_are_dropped() -> None:
    x = ops.input(name="x", shape=(), dtype=F32)
    assert parse_graph('graph { %a = input "x" : f32[] %b = exp(%a) : f32[] return %a }') is Graph([x], [x])


def body(line: str) -> str:
    return f'graph(s in [0, 9]) {{\n  %x = input "x" : f32[s, 4]\n  {line}\n  return %x\n}}\n'


def call(value: str) -> str:
    return body(f'%y = aten.call(target="t", args={value}, types=[f32[]]) : f32[]')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: expected 'graph', found the end of the text"),
        ("graph {\n  return\n", "line 3, column 1: "),
        ("graph { return } graph { return }", "line 1, column 18: expected the end of the text"),
        ("graph {\n return ; }", "line 2, column 9: cannot read ';"),
        (body("%x = exp(%x) : f32[s, 4]"), "line 3, column 3: %x is defined twice"),
        (body("%y = exp(%z) : f32[s, 4]"), "line 3, column 12: %z is not defined above"),
        (body("%y = explode(%x) : f32[s, 4]"), "line 3, column 8: there is no operator 'explode'"),
        (body("%y = exp(%x) : f32[s, 5]"), "column 16: the type is f32[s, 4]"),
        (body("%y = exp(%x) : f31[s, 4]"), "there is no dtype 'f31'"),
        (body("%y = exp(%x) : f32[s, u]"), "column 25: the symbol 'u' is not declared"),
        (body("%y = exp(%x, base=2) : f32[s, 4]"), "line 3, column 8: exp has no attribute base"),
        (body("%y = softmax(%x) : f32[s, 4]"), "softmax needs the attribute dim"),
        (body("%y = softmax(%x, dim=0, dim=0) : f32[s, 4]"), "dim is given twice"),
        (body('%y = softmax(%x, dim="0") : f32[s, 4]'), "line 3, column 8: "),
        (body("%y = softmax(%x, dim=0.5) : f32[s, 4]"), "line 3, column 8: "),
        (body("%y = sum(%x, dims=true) : f32[s, 4]"), "line 3, column 8: "),
        (body("%y = reshape(%x, shape=[f32, 2]) : f32[s, 4]"), "line 3, column 8: "),
        (body("%y = exp(?x) : f32[]"), "cannot read '?x) : f32[]'"),
        (body('%y = input "y" : (f32[2], f32[2])'), "'y' is one tensor"),
        (body('%y = input "y" : f32[-2]'), "a dim is negative"),
        (body('%y = input "y" : f32[2.0]'), "expected"),
        (body("mutate %x = %z"), "%z is not defined above"),
        ("graph(s in [0, 1], s in [0, 1]) { return }", "a symbol is declared twice"),
        ("graph(s in [-1, 2]) { return }", "expected an integer"),
        (call("__import__"), "the symbol '__import__' is not declared"),
        (call('__import__("os")'), "the symbol '__import__' is not declared"),
        (call("s.__class__"), "the symbol 's.__class__' is not declared"),
        (call("lambda: 1"), "the symbol 'lambda' is not declared"),
        (call("exec(1)"), "the symbol 'exec' is not declared"),
        (call("Max"), "the symbol 'Max' is not declared"),
        (call("s//0"), "this is no size"),
        (call("s/0"), "this is no size"),
        (call("Mod(s, 0)"), "this is no size"),
        (call("Mod(s)"), "this is no size"),
        (call("Max()"), "this is no size"),
        (call("1/2"), "this is no size"),
        (call("s +"), "expected a size"),
        (call("s**s"), "expected an integer"),
        (call("s**65"), "up to 64"),
        (call("9**9**9"), "only symbols and functions have powers"),
        (call("(s + 1)**2"), "only symbols and functions have powers"),
        (call("9" * 5000), "an integer of 5000 digits"),
        (call("[" * 100), "nested more than 40 deep"),
        (call("(" * 100), "nested more than 40 deep"),
        (call("-" * 100 + "s"), "nested more than 40 deep"),
        (call("Max(" * 100), "nested more than 40 deep"),
        (call("graph { %0 = fused(region=" * 100), "nested more than 40 deep"),
        (call("+".join(f"s**{i}*7" for i in range(64)) + " + 1" * 1000), "more than 1000 operators"),
        (call("*".join(["(1 + s + s**2 + s**3)"] * 50)), "more than 256 terms"),
        (call('"no end'), "cannot read '\"no end"),
        (call('"\\q"'), "an escape that JSON does not have"),
        (call('device "moon"'), "there is no device 'moon'"),
        (call('layout "round"'), "there is no layout 'round'"),
        (call("1 2"), "expected ',', found '2'"),
    ],
)
def test_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(ParseError) as error:
        parse_graph(text)
    assert message in str(error.value)
    assert str(error.value).startswith("line ")


def test_any_truncation_is_an_error_and_never_a_crash() -> None:
    text = print_graph(sample())
    for end in range(0, len(text) - 2, 7):
        with pytest.raises(ParseError):
            parse_graph(text[:end])


def test_any_damage_is_an_error_or_another_graph() -> None:
    text = print_graph(sample())
    generator = torch.Generator().manual_seed(0)
    letters = '%"[](){}=:,#$-*/.0 s\n'
    for _ in range(300):
        at = int(torch.randint(len(text), (), generator=generator))
        letter = letters[int(torch.randint(len(letters), (), generator=generator))]
        with contextlib.suppress(ParseError):
            parse_graph(text[:at] + letter + text[at + 1 :])


def test_copies_and_pickles() -> None:
    graph = sample()
    node: Node = graph.outputs[0]
    assert copy.copy(graph) is copy.deepcopy(graph) is graph
    assert copy.copy(node) is copy.deepcopy(node) is node
    assert copy.deepcopy({"graph": [graph]})["graph"][0] is graph
