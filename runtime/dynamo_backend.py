"""The backend ``smelt`` of ``torch.compile``, registered by entry point: Dynamo's graphs compiled one by one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..frontend.dynamo import lower_fx
from ..ir.collection import no_collection
from ..ir.errors import InputError
from ..rewrites.quantization import quantization_of
from .captures import build_entry
from .check import Check
from .entry import Entry, Mismatch, Sizes
from .fx_weights import WeightWatch, bind_weights
from .options import Options
from .target import Target
from .tensors import check_tensor

# torch.compile's modes, which choose between ways to compile that other backends have.
MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OPTIONS = ("target", "threads", "fallback", "cache", "optimize", "check", "quantize")
_MAX_KNOWN = 1024
_told: set[str] = set()


def backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs: ``torch.compile(model, backend="smelt")``.

    Args:
        gm: the graph.
        example_inputs: its inputs, as Dynamo passes them.
        mode: taken and ignored, since there is one way to compile.
        options: ``target``, ``threads``, ``fallback``, ``cache``, ``optimize``, ``check`` and ``quantize``, as
            for ``smelt.compile``.

    Returns:
        What Dynamo calls in place of the graph. Where gradients are enabled and an input requires grad it is the graph
        itself, which PyTorch runs, and a warning says so once.

    Raises:
        ValueError: there is no such mode or option.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: the modes are {', '.join(str(known) for known in MODES)}")
    unknown = set(options or {}) - set(OPTIONS)
    if unknown:
        raise ValueError(f"there is no option {', '.join(sorted(unknown))}; there are: {', '.join(OPTIONS)}")
    if needs_grad(example_inputs):
        if "grad" not in _told:
            _told.add("grad")
            warnings.warn(
                "smelt compiles for inference, and gradients are enabled: PyTorch runs this model. Call it within "
                "torch.no_grad() or torch.inference_mode()",
                UserWarning,
                stacklevel=2,
            )
        return gm.forward
    return compile_fx(gm, example_inputs, make_options(**(options or {})))


def make_options(
    target: str | Target = "auto",
    threads: int | None = None,
    fallback: Any = "allow",
    cache: Any = True,
    optimize: Any = "rules",
    check: Check = None,
    quantize: Any = None,
) -> Options:
    """The options of a backend: those of ``smelt.compile``."""
    settings = quantization_of(quantize)
    return Options(Target.detect(target, threads), True, fallback, cache, optimize, check, quantize=settings)


def needs_grad(inputs: Sequence[Any]) -> bool:
    """Whether a call with these inputs is one that gradients will be asked of."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def compile_fx(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> GraphFunction:
    """Compile one of Dynamo's graphs."""
    start = time.perf_counter()
    with no_collection():
        bound, places = bind_weights(gm, example_inputs)
        rest = [value for place, value in enumerate(example_inputs) if place not in places.values()]
        captured = lower_fx(bound, rest, fallback=options.fallback)
        made = GraphFunction(build_entry(captured, options, time.perf_counter() - start), places, len(example_inputs))
    made.watch.note(example_inputs)
    return made


class GraphFunction:
    """A compiled graph, called with the graph's inputs. Dynamo's guards hold where it is called.

    Args:
        entry: the capture, of the inputs that are no weights.
        places: the weights' places among the inputs.
        count: how many inputs there are.
    """

    def __init__(self, entry: Entry, places: Mapping[str, int], count: int) -> None:
        self.entry = entry
        self.watch = WeightWatch(places)
        self._free = tuple(place for place in range(count) if place not in places.values())
        self._known: dict[Any, Sizes] = {}

    def __call__(self, *inputs: Any) -> Any:
        """The graph's results.

        Raises:
            InputError: an input is not one that the graph was captured for.
        """
        if self.watch.changed(inputs):
            self.entry.executable.refresh(self.watch.weights(inputs, self.entry.executable.weights))
        leaves = [inputs[place] for place in self._free]
        key = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        sizes = self._known.get(key)
        if sizes is None:
            sizes = self._match(leaves, key)
        result = self.entry.run(leaves, sizes)
        self.watch.note(inputs)
        return result

    def _match(self, leaves: Sequence[Any], key: Any) -> Sizes:
        for place, leaf in zip(self._free, leaves, strict=True):
            if isinstance(leaf, Tensor):
                check_tensor(f"input {place}", leaf)
        try:
            sizes = self.entry.match(self.entry.capture.in_spec, leaves)
        except Mismatch as mismatch:
            raise InputError(str(mismatch)) from None
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[key] = sizes
        return sizes
