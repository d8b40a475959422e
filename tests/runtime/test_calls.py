"""Calls read by route give the leaves that reading them by the signature gives."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from smelt.frontend.capture import describe, normal_form, signature_of
from smelt.ir.errors import InputError
from smelt.runtime.calls import CallReader

X, Y = torch.ones(2), torch.zeros(3)


def f(x: Any, y: Any = None, z: Any = 1.0, *rest: Any, flag: Any = True, **more: Any) -> None: ...
def positional(x: Any, y: Any = None, /) -> None: ...


VALUES = st.sampled_from([X, Y, None, True, False, 1.0, 2.0, 1, "a", nn.Parameter(X), (X, None), {"k": Y}])


@settings(max_examples=200, deadline=None)
@given(
    args=st.lists(VALUES, max_size=4),
    names=st.lists(st.sampled_from(["x", "y", "z", "flag", "other"]), unique=True),
    data=st.data(),
)
def test_a_route_changes_nothing(args: list[Any], names: list[str], data: st.DataObject) -> None:
    signature = inspect.signature(f)
    reader = CallReader(signature)
    kwargs = {name: data.draw(VALUES) for name in names}
    try:
        leaves, spec = pytree.tree_flatten(normal_form(signature, tuple(args), kwargs))
    except InputError:
        with pytest.raises(InputError):
            reader.read(tuple(args), kwargs)
        return
    for _ in range(3):
        call = reader.read(tuple(args), kwargs)
        assert call.spec == spec
        assert len(call.leaves) == len(leaves)
        assert all(a is b for a, b in zip(call.leaves, leaves, strict=True))


def test_a_default_counts_by_its_value() -> None:
    reader = CallReader(inspect.signature(f))
    assert [len(reader.read((X,), {"flag": flag}).leaves) for flag in (True, False, True)] == [1, 2, 1]


def g(x: Any, scale: float = 0.0, many: int = 1, sizes: Any = (1, 2.5), what: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("name", "value", "is_default"),
    [
        ("scale", float("0"), True),
        ("scale", -0.0, False),
        ("scale", 0, False),
        ("many", True, False),
        ("sizes", (int("1"), float("2.5")), True),
        ("sizes", (1, 2), False),
        ("sizes", [1, 2.5], False),
        ("sizes", (1,), False),
        ("what", False, False),
    ],
)
def test_equal_constants_of_one_type_are_the_default(name: str, value: Any, is_default: bool) -> None:
    named = normal_form(inspect.signature(g), (X,), {name: value})[1]
    assert (name not in named) == is_default


def test_equal_trees_are_one_object() -> None:
    reader = CallReader(inspect.signature(f))
    assert reader.read((X, Y), {}).spec is reader.read((), {"y": X, "x": Y}).spec
    assert reader.read((X, [Y]), {}).spec is reader.read((Y, [X]), {}).spec


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "names"),
    [
        (f, (X, Y), {}, ["x", "y"]),
        (f, (X, Y, 2.0, Y, X), {"flag": 3}, ["x", "y", "z", "rest[0]", "rest[1]", "flag"]),
        (f, ({"a": [X, Y]},), {"b": (X,)}, ['x["a"][0]', 'x["a"][1]', "b[0]"]),
        (positional, (X, [Y]), {}, ["x", "y[0]"]),
    ],
)
def test_names(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> None:
    reader = CallReader(signature_of(function))
    assert reader.names(reader.read(args, kwargs).spec) == names


def test_without_a_signature() -> None:
    reader = CallReader(None)
    call = reader.read((X, 2), {"b": Y})
    assert reader.names(call.spec) == ["args[0]", "args[1]", "b"]
    assert reader.read((X, 2), {"b": Y}) == call


def test_routes_do_not_grow_without_end() -> None:
    reader = CallReader(inspect.signature(f))
    for number in range(600):
        reader.read((X,), {f"name{number}": Y})
    assert len(reader._routes) <= 256
    assert isinstance(reader.read((X,), {}).leaves[0], Tensor)


def test_names_in_a_container_that_is_made_of_tensors_alone() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    reader = CallReader(inspect.signature(f))
    call = reader.read((packed, X), {"flag": packed})
    leaves = len(pytree.tree_leaves(packed))
    assert reader.names(call.spec) == [*(f"x[{i}]" for i in range(leaves)), "y", *(f"flag[{i}]" for i in range(leaves))]
    assert "PackedSequence" in describe(call.spec)
