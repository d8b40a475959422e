"""Reading calls: the leaves of a call's arguments, in one form for all calls that mean the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple

import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..frontend.capture import normal_form

# Types that are a leaf whatever their value; subclasses may be registered as containers.
_LEAVES = frozenset({Tensor, nn.Parameter, NoneType, bool, int, float, complex, str})
_MAX_ROUTES = 256


class Call(NamedTuple):
    """A call's arguments: their tree, one object for equal trees, and its leaves."""

    spec: pytree.TreeSpec
    leaves: list[Any]


def kind_of(call: Call) -> tuple[Any, ...]:
    """What a call has in common with those of other sizes and values: its tree, and of each leaf its type.

    Numbers, texts and the like are a part of it, since models decide by them.
    """
    parts: list[Any] = [id(call.spec)]  # one object for equal trees
    for leaf in call.leaves:
        if isinstance(leaf, Tensor):
            parts.append((type(leaf), leaf.ndim, leaf.dtype))
        else:
            parts.append((type(leaf), repr(leaf) if type(leaf) in _LEAVES else None))
    return tuple(parts)


class _Route(NamedTuple):
    """How to read a call without its signature: for each leaf its place in the arguments as written, or None."""

    spec: pytree.TreeSpec
    places: tuple[int | None, ...]


class CallReader:
    """Reads the calls of one model.

    Binding arguments to a signature and flattening them takes some 40 µs. A call that passes the same names with the
    same plain types as one before is read by its route, in some 2 µs.
    """

    def __init__(self, signature: inspect.Signature | None) -> None:
        self.signature = signature
        self._routes: dict[Any, _Route | None] = {}
        self._specs: dict[pytree.TreeSpec, pytree.TreeSpec] = {}

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The leaves of a call.

        Raises:
            InputError: the arguments do not fit the signature.
        """
        values = (*args, *kwargs.values())
        form = (len(args), *kwargs, *map(type, values))
        route = self._routes.get(form)
        if route is not None:
            return Call(route.spec, [None if place is None else values[place] for place in route.places])
        call = self._flatten(args, kwargs)
        if form not in self._routes:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[form] = self._route(args, kwargs)
        return call

    def places(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | None, ...] | None:
        """Which of its values, as they are written, is each leaf of a call; None for a leaf that is None.

        None where the leaves of calls that were read before tell nothing of those of others of this form.
        """
        route = self._routes.get((len(args), *kwargs, *map(type, (*args, *kwargs.values()))))
        return None if route is None else route.places

    def names(self, spec: pytree.TreeSpec) -> list[str]:
        """What each leaf is called in messages: ``input_ids``, ``states[0]["x"]``."""
        try:
            tree = pytree.tree_unflatten(range(spec.num_leaves), spec)
        except Exception:  # a class that is made of tensors alone, as PackedSequence
            return self._names_by_place(spec)
        return [self._name(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        leaves, spec = pytree.tree_flatten(normal_form(self.signature, args, kwargs))
        return Call(self._specs.setdefault(spec, spec), leaves)

    def _route(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Route | None:
        """The route of calls of this form; None where what they mean depends on more than their form."""
        values = (*args, *kwargs.values())
        if any(type(value) not in _LEAVES for value in values):
            return None
        # A value that may equal a default is left out of the normal form or not, by its value. For None the type tells.
        defaults = {type(p.default) for p in self.signature.parameters.values()} if self.signature else set()
        if any(type(value) in defaults and value is not None for value in values):
            return None
        marks = [None if value is None else _Mark(place) for place, value in enumerate(values)]
        spec, leaves = self._flatten(tuple(marks[: len(args)]), dict(zip(kwargs, marks[len(args) :], strict=True)))
        return _Route(spec, tuple(leaf and leaf.place for leaf in leaves))

    def _name(self, path: tuple[Any, ...]) -> str:
        side, first, *rest = path
        inside = "".join(f'["{key.key}"]' if isinstance(getattr(key, "key", None), str) else str(key) for key in rest)
        return (self._positional(first.idx) if side.idx == 0 else str(first.key)) + inside

    def _names_by_place(self, spec: pytree.TreeSpec) -> list[str]:
        """What each leaf is called where containers cannot be made of numbers: ``packed[0]``."""
        args, kwargs = spec.children()
        tops = [(self._positional(place), child) for place, child in enumerate(args.children())]
        tops += zip(kwargs.context, kwargs.children(), strict=True)
        return [name if top.is_leaf() else f"{name}[{i}]" for name, top in tops for i in range(top.num_leaves)]

    def _positional(self, place: int) -> str:
        for number, (name, parameter) in enumerate((self.signature.parameters if self.signature else {}).items()):
            if parameter.kind is parameter.VAR_POSITIONAL:
                return f"{name}[{place - number}]"
            if number == place:
                return name
        return f"args[{place}]"


class _Mark:
    """Stands for an argument while its route is found."""

    def __init__(self, place: int) -> None:
        self.place = place
