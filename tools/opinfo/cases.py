"""PyTorch's operator database as cases: one call of one operator on tensors, with what it is given beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..errors import MissingPackageError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int64": torch.int64,
    "bool": torch.bool,
}
SEED = 0
MOST_ELEMENTS = 1 << 18  # of a sample: larger ones show nothing that smaller ones do not
VARIED = 2  # samples of an operator that are also tried in place and on strided tensors

# operators whose results are memory that nobody wrote
UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: the sample's number in the database, with ``in place`` or ``strided`` where it is such a variant.
        function: the operator.
        leaves, spec: its arguments ``(args, kwargs)``, flattened.
    """

    name: str
    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, each once."""
        return list({id(leaf): leaf for leaf in self.leaves if isinstance(leaf, Tensor)}.values())

    @property
    def is_seeded(self) -> bool:
        """Whether it sets a seed and draws random numbers: it sets it where it is traced, and not where it runs."""
        return "wrapper_set_seed" in getattr(getattr(self.function, "__code__", None), "co_names", ())

    def call(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The leaves of the result for tensors in the places of the case's own."""
        places = {id(own): tensor for own, tensor in zip(self.tensors, tensors, strict=True)}
        values = [places[id(leaf)] if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(values, self.spec)
        return pytree.tree_leaves(self.function(*args, **kwargs))


@cache
def database() -> Mapping[str, Any]:
    """PyTorch's OpInfos by full name, in its order.

    Raises:
        MissingPackageError: a package that PyTorch's own tests need is not installed.
    """
    if find_spec("expecttest") is None:
        raise MissingPackageError("smelt opinfo needs the package expecttest; run: pip install expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.full_name: op for op in op_db}


def supported(name: str) -> list[str]:
    """The dtypes, of those that are tried, that an operator takes on a CPU."""
    return [dtype for dtype, known in DTYPES.items() if database()[name].supports_dtype(known, "cpu")]


def cases_of(name: str, dtype: str, limit: int, edges: bool = False, varied: int = VARIED) -> list[Case]:
    """Calls of an operator: at most ``limit`` samples, evenly from all that there are, and variants of the first ones.

    With ``edges`` they are those that PyTorch compares with NumPy: extreme values, infinities and NaN among them.
    """
    op = database()[name]
    torch.manual_seed(SEED)
    made = (op.reference_inputs if edges else op.sample_inputs)("cpu", DTYPES[dtype])
    samples = [(number, sample) for number, sample in enumerate(made) if _elements(sample) <= MOST_ELEMENTS]
    chosen = samples if len(samples) <= limit else [samples[len(samples) * i // limit] for i in range(limit)]
    found = [_case(str(number), op.op, sample) for number, sample in chosen]
    for number, sample in chosen[:varied]:
        found.extend(_variants(op, number, sample))
    return found


def _elements(sample: Any) -> int:
    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))


def _variants(op: Any, number: int, sample: Any) -> Iterator[Case]:
    if op.inplace_variant is not None and isinstance(sample.input, Tensor) and not sample.broadcasts_input:
        yield _case(f"{number} in place", op.inplace_variant, sample)
    yield _case(f"{number} strided", op.op, sample.noncontiguous())


def _case(name: str, function: Callable[..., Any], sample: Any) -> Case:
    leaves, spec = pytree.tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
    return Case(name, function, tuple(x.detach() if isinstance(x, Tensor) else x for x in leaves), spec)
