"""Operators and nodes: the values that graphs are made of.

An :class:`OpDef` declares an operator once. Calling it builds a :class:`Node`, which is immutable and interned: equal
nodes are one object, so equality is ``is`` and a common subexpression cannot be written twice.
"""

from __future__ import annotations

import enum
import threading
import weakref
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Union

import sympy
import torch

from .errors import TypeRuleError
from .types import UNKNOWN, Dim, TensorType, TupleType, Type, UnknownType, canonical_dim

if TYPE_CHECKING:
    from .graph import Graph

Constant = torch.dtype | torch.device | torch.layout | torch.memory_format
AttrValue = Union[None, bool, int, float, str, Constant, sympy.Expr, Type, "Graph", "Var", "tuple[AttrValue, ...]"]
Attrs = Mapping[str, AttrValue]


class Trait(enum.Enum):
    """What passes and code generation may assume of an operator."""

    SOURCE = "source"  # input or weight: no computation
    CREATION = "creation"  # a value from attributes alone
    POINTWISE = "pointwise"  # element i of the result needs element i of the broadcast operands
    REDUCTION = "reduction"  # combines along axes
    SCAN = "scan"  # a running combination along one axis
    CONTRACTION = "contraction"  # products summed over an axis
    VIEW = "view"  # the operand's elements, addressed otherwise
    CONCAT = "concat"  # several operands side by side
    GATHER = "gather"  # addressed by values
    SCATTER = "scatter"  # written where values say
    ATTENTION = "attention"  # softmax(q k^T) v
    RECURRENCE = "recurrence"  # a state carried along one axis
    COMPOSITE = "composite"  # defined by its decomposition into primitives
    OPAQUE = "opaque"  # run by PyTorch
    REGION = "region"  # a fused graph
    PROJECTION = "projection"  # one result of several


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Var:
    """A variable of a pattern: any node where an operand is expected, any value where an attribute is."""

    name: str


@dataclass
class Origin:
    """Where a node came from. Not part of a node's identity: the first maker of an interned node is kept.

    ``source`` is a line of the model (``file.py:12``), ``module`` a path in it (``encoder.layer.0``), ``made_by`` the
    pass or rule that built the node.
    """

    source: str = ""
    module: str = ""
    made_by: str = ""


class Interned:
    """A value that is immutable and one object wherever it is built: its copies are itself."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__.lower()} is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__.lower()} is immutable: cannot delete {name}")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("graphs and nodes are not pickled: store a graph as text, with print_graph and parse_graph")


class Node(Interned):
    """One value: an operator applied to nodes, with attributes and a type. Build nodes by calling an :class:`OpDef`."""

    __slots__ = ("__weakref__", "attrs", "inputs", "op", "origin", "type")

    op: OpDef
    inputs: tuple[Node, ...]
    attrs: Attrs
    type: Any  # TensorType for all but operators with several results: `shape` and `dtype` read it without a cast
    origin: Origin

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dims of a node that is one tensor."""
        return self.tensor_type.shape

    @property
    def dtype(self) -> torch.dtype:
        """The element type of a node that is one tensor."""
        return self.tensor_type.dtype

    @property
    def tensor_type(self) -> TensorType:
        """The type of a node that is one tensor.

        Raises:
            TypeRuleError: the node has several results or is a pattern.
        """
        if not isinstance(self.type, TensorType):
            raise TypeRuleError(f"{self.op.name} has type {self.type}: not one tensor")
        return self.type

    def is_a(self, *ops: OpDef) -> bool:
        """Whether the node applies one of these operators."""
        return self.op in ops

    def has(self, *traits: Trait) -> bool:
        """Whether the node's operator has any of these traits."""
        return not self.op.traits.isdisjoint(traits)

    def with_inputs(self, inputs: tuple[Node, ...], origin: Origin | None = None) -> Node:
        """The same operator and attributes on other operands; the origin is kept where no other is given."""
        if inputs == self.inputs:
            return self
        if [x.type for x in inputs] == [x.type for x in self.inputs]:
            made = _intern(
                self.op, inputs, dict(self.attrs), self.type
            )  # what attributes and type follow from is equal
        else:
            made = self.op(*inputs, **self.attrs)
        return made.keep_origin(origin or self.origin)

    def keep_origin(self, origin: Origin) -> Node:
        """Take ``origin`` for what this node does not know of itself; returns the node."""
        mine = self.origin
        mine.source = mine.source or origin.source
        mine.module = mine.module or origin.module
        mine.made_by = mine.made_by or origin.made_by
        return self

    def __repr__(self) -> str:
        return f"<{self.op.name} : {self.type}>"


InferRule = Callable[..., Type]
NormaliseRule = Callable[..., dict[str, Any]]


@dataclass(frozen=True, eq=False)
class OpDef:
    """An operator, declared once.

    Attributes:
        name: its name in text.
        infer: the type rule: ``infer(*types, **attrs)``; raises TypeRuleError on what it refuses.
        evaluate: its meaning: ``evaluate(*tensors, **attrs)`` in PyTorch, in any float dtype, float64 included.
        arity: the least and the most operands (None: any number).
        attrs: attribute names and their defaults (``REQUIRED`` where there is none).
        traits: what passes and code generation may assume.
        flops: floating-point operations of a node, as a dim; for pointwise operators per element.
        decompose: a composite's definition in terms of other operators, on nodes.
        normalise: attributes in normal form: ``normalise(*types, **attrs)``, e.g. a negative axis made positive.
    """

    name: str
    infer: InferRule
    evaluate: Callable[..., Any]
    arity: tuple[int, int | None] = (1, 1)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    traits: frozenset[Trait] = frozenset()
    flops: Callable[[Node], Dim] = lambda node: 0
    decompose: Callable[..., Node] | None = None
    normalise: NormaliseRule | None = None

    def __call__(self, *inputs: Node | Var, **attrs: Any) -> Node:
        """Build the node of this operator on these operands.

        Raises:
            TypeRuleError: wrong number of operands, an unknown or missing attribute, or operands the type rule refuses.
        """
        nodes = tuple(wildcard(x.name) if isinstance(x, Var) else x for x in inputs)
        self._check_arity(nodes)
        given = self._complete(attrs)
        types = [node.type for node in nodes]
        if any(isinstance(t, UnknownType) for t in types) or any(_holds_var(v) for v in given.values()):
            return _intern(self, nodes, given, UNKNOWN)
        if self.normalise is not None:
            given = {**given, **self.normalise(*types, **given)}
        given = {name: _canonical(value) for name, value in given.items()}
        return _intern(self, nodes, given, self.infer(*types, **given))

    def _check_arity(self, nodes: tuple[Node, ...]) -> None:
        low, high = self.arity
        if len(nodes) < low or (high is not None and len(nodes) > high):
            raise TypeRuleError(f"{self.name} takes {low} to {high or 'any number of'} operands, got {len(nodes)}")
        for node in nodes:
            if not isinstance(node, Node):
                raise TypeRuleError(f"{self.name}: an operand is a {type(node).__name__}, not a node")
            if isinstance(node.type, TupleType) and Trait.PROJECTION not in self.traits:
                raise TypeRuleError(f"{self.name}: an operand has several results: take one with item")

    def _complete(self, attrs: dict[str, Any]) -> dict[str, Any]:
        unknown = attrs.keys() - self.attrs.keys()
        if unknown:
            raise TypeRuleError(f"{self.name} has no attribute {', '.join(sorted(unknown))}")
        complete = {**self.attrs, **attrs}
        missing = [name for name, value in complete.items() if value is REQUIRED]
        if missing:
            raise TypeRuleError(f"{self.name} needs the attribute {', '.join(missing)}")
        return complete

    def __repr__(self) -> str:
        return f"<operator {self.name}>"


OPS: dict[str, OpDef] = {}


def register(op: OpDef) -> OpDef:
    """Enter an operator in the table that the text parser and the coverage tests read."""
    if op.name in OPS:
        raise ValueError(f"operator {op.name} is declared twice")
    OPS[op.name] = op
    return op


_INTERNED: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
# reentrant, because a garbage collection may run a finaliser that builds nodes while it is held
_LOCK = threading.RLock()
Value = TypeVar("Value", bound=Interned)


def keep_first(table: weakref.WeakValueDictionary[Any, Value], key: Hashable, made: Value) -> Value:
    """``made``, or what another thread entered under ``key`` since it was looked up.

    ``WeakValueDictionary.setdefault`` is not atomic: without the lock, two threads could each keep their own object.
    """
    with _LOCK:
        return table.setdefault(key, made)


def _intern(op: OpDef, inputs: tuple[Node, ...], attrs: dict[str, Any], type_: Type) -> Node:
    key = (op, inputs, tuple((name, attr_key(value)) for name, value in attrs.items()), type_)
    found = _INTERNED.get(key)
    if found is not None:
        return found
    node = object.__new__(Node)
    values = {"op": op, "inputs": inputs, "attrs": MappingProxyType(attrs), "type": type_, "origin": Origin()}
    for name, value in values.items():
        object.__setattr__(node, name, value)
    return keep_first(_INTERNED, key, node)


def attr_key(value: Any) -> Any:
    """A key that tells attribute values apart where ``==`` does not: 1, 1.0 and True; 0.0 and -0.0; two NaN are one."""
    if isinstance(value, tuple):
        return ("tuple", *map(attr_key, value))
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, bool | int):
        return (type(value).__name__, value)
    return value


def _holds_var(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_var(v) for v in value)
    return isinstance(value, Var)


_AS_IT_IS = (bool, str, Interned, TensorType, TupleType, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _canonical(value: Any) -> AttrValue:
    """An attribute value in normal form: lists as tuples, dims in theirs, numbers of exactly Python's types."""
    if isinstance(value, list | tuple):
        return tuple(_canonical(v) for v in value)
    if value is None or isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, sympy.Expr):
        return canonical_dim(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeRuleError(f"an attribute cannot hold {value!r}, a {type(value).__name__}")


def _no_meaning(*_: Any, **__: Any) -> Any:
    raise TypeRuleError("a pattern variable has no value")


WILDCARD = OpDef("var", infer=lambda name: UNKNOWN, evaluate=_no_meaning, arity=(0, 0), attrs={"name": REQUIRED})


def wildcard(name: str) -> Node:
    """The pattern node that stands for any operand; one of a name is one object."""
    return _intern(WILDCARD, (), {"name": name}, UNKNOWN)


def through_views(node: Node, stop: Container[Node] = ()) -> Node:
    """The value that a chain of views looks at; a view in ``stop`` counts as a value."""
    while node.has(Trait.VIEW) and node not in stop:
        node = node.inputs[0]
    return node


def topological(roots: Sequence[Node], stop: Iterable[Node] = ()) -> Iterator[Node]:
    """Every node that the roots need, operands before users, each once, in a fixed order. Not recursive.

    Nodes in ``stop``, and what they alone need, are left out.
    """
    seen: set[Node] = set(stop)
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((x, False) for x in reversed(node.inputs) if x not in seen)


def result_types(type_: Type) -> tuple[TensorType, ...]:
    """The tensors that a value of this type holds, in order."""
    if isinstance(type_, TupleType):
        return type_.items
    if isinstance(type_, TensorType):
        return (type_,)
    raise TypeRuleError("a pattern has no result types")
