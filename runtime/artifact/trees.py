"""Trees of arguments and results as JSON, without the classes of the model's code; and what stands for those classes.

A result that is an object of a class, such as ``BaseModelOutput`` of transformers, cannot be built where that class is
not there: a loaded artifact returns :class:`Output` in its place.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch.utils._pytree as pytree

from ...ir.errors import ArtifactError, UnsupportedError

MOST_DEPTH = 32
MOST_NODES = 100_000
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


class Output(OrderedDict[str, Any]):
    """A result with names, as the model's own class has them: ``out.logits``, ``out["logits"]`` and ``out[0]``."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return tuple(self.values())[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the result has no {name!r}: it has {', '.join(self) or 'nothing'}")

    def __delitem__(self, key: str) -> None:
        raise TypeError("a result is not changed")

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, in order."""
        return tuple(self.values())


def _flatten(output: Output) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output)


def _flatten_with_keys(output: Output) -> tuple[list[tuple[Any, Any]], list[str]]:
    return [(pytree.MappingKey(name), value) for name, value in output.items()], list(output)


def _unflatten(values: Any, names: Any) -> Output:
    return Output(zip(names, values, strict=True))


pytree.register_pytree_node(
    Output,
    _flatten,
    _unflatten,
    serialized_type_name="smelt.Output",
    flatten_with_keys_fn=_flatten_with_keys,
)


# --- writing ----------------------------------------------------------------------------------------------------------


def tree_data(spec: pytree.TreeSpec, what: str) -> Any:
    """A tree as JSON: ``"*"`` for a leaf, else its kind, the names of its parts if they have any, and its parts.

    Raises:
        UnsupportedError: a part of it is of a kind that an artifact cannot hold.
    """
    if spec.num_nodes > MOST_NODES:
        raise UnsupportedError(f"{what} have {spec.num_nodes} parts, an artifact holds {MOST_NODES}")
    return _data(spec, what)


class _Mark:
    """Stands for a part while its name is looked for."""


def _data(spec: pytree.TreeSpec, what: str) -> Any:
    if spec.is_leaf():
        return "*"
    cls, children = spec.type, list(spec.children())
    parts = [_data(child, what) for child in children]
    if cls in (tuple, list):
        return [cls.__name__, parts]
    if cls in (dict, OrderedDict):
        keys = list(spec.context)
        if all(type(key) in (str, int, bool) for key in keys):
            return ["dict" if cls is dict else "ordered", keys, parts]
    found = _names(spec, children)
    if found is not None:
        return [*found, parts]
    raise UnsupportedError(
        f"{what} hold a {cls.__name__}, of which an artifact cannot tell what it is: pass or return tensors, tuples, "
        "lists, dicts, named tuples or dataclasses"
    )


def _names(spec: pytree.TreeSpec, children: Sequence[pytree.TreeSpec]) -> tuple[str, list[str]] | None:
    """The kind of an object and the names of its parts; None where it does not have one for each."""
    marks = [_Mark() for _ in children]
    one_each = pytree.TreeSpec(spec.type, spec.context, [pytree.tree_flatten(0)[1]] * len(children))
    try:
        made = pytree.tree_unflatten(marks, one_each)
        if isinstance(made, tuple):
            names = list(getattr(type(made), "_fields", ()))
            values = list(made)
        elif isinstance(made, dict):
            names, values = list(made), list(made.values())
        elif dataclasses.is_dataclass(made):
            names = [f.name for f in dataclasses.fields(made) if isinstance(getattr(made, f.name, None), _Mark)]
            values = [getattr(made, name) for name in names]
        else:
            return None
    except Exception:  # whatever a registered type's own functions raise
        return None
    same = len(values) == len(marks) and all(a is b for a, b in zip(values, marks, strict=True))
    if not same or len(names) != len(marks) or not all(map(_is_field, names)):
        return None
    return "tuple of names" if isinstance(made, tuple) else "output", names


def _is_field(name: object) -> bool:
    return isinstance(name, str) and _FIELD.fullmatch(name) is not None and not keyword.iskeyword(name)


# --- reading ----------------------------------------------------------------------------------------------------------


def tree_of(data: Any) -> pytree.TreeSpec:
    """The tree that :func:`tree_data` wrote, with :class:`Output` for classes.

    Raises:
        ArtifactError: the data is not that of a tree.
    """
    budget = [MOST_NODES]
    spec: pytree.TreeSpec = pytree.tree_flatten(_skeleton(data, 0, budget))[1]
    return spec


def _skeleton(data: Any, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if depth > MOST_DEPTH or budget[0] < 0:
        raise ArtifactError("a tree of arguments or results is too large")
    if data == "*":
        return 0
    match data:
        case ["tuple" | "list" as kind, [*parts]]:
            made = [_skeleton(part, depth + 1, budget) for part in parts]
            return made if kind == "list" else tuple(made)
        case ["dict" | "ordered" | "output" | "tuple of names" as kind, [*names], [*parts]] if len(names) == len(parts):
            values = [_skeleton(part, depth + 1, budget) for part in parts]
            return _named(kind, names, values)
    raise ArtifactError("a tree of arguments or results is damaged")


def _named(kind: str, names: list[Any], values: list[Any]) -> Any:
    plain = all(type(name) in (str, int, bool) for name in names)
    if not plain or len(set(names)) < len(names):
        raise ArtifactError("a tree of arguments or results has parts of one name, or of none")
    if kind in ("dict", "ordered"):
        pairs = zip(names, values, strict=True)
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    if not all(map(_is_field, names)):
        raise ArtifactError("a tree of arguments or results has a part whose name is none")
    return Output(zip(names, values, strict=True)) if kind == "output" else _tuple_of(tuple(names))(*values)


@lru_cache(maxsize=256)
def _tuple_of(names: tuple[str, ...]) -> Any:
    """A named tuple of these names, which were checked."""
    return namedtuple("Output", names)
