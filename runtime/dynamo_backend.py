"""The backend ``smelt`` of ``torch.compile``, registered by entry point: Dynamo's graphs compiled one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.exc import TorchDynamoException

from ..ir.errors import CaptureError, InputError, SmeltError, UnsupportedError
from ..rewrites.quantization import quantization_of
from .check import Check
from .graph_function import GraphFunction
from .options import Options
from .target import Target, within_cores

# What torch.compile's modes are here, which choose between ways to compile that other backends have.
MODES: Mapping[str | None, Mapping[str, Any]] = {
    None: {},
    "default": {},
    "reduce-overhead": {},  # a run is one native call already
    "max-autotune": {"tune": "full"},
    "max-autotune-no-cudagraphs": {"tune": "full"},
}
OPTIONS = ("target", "threads", "fallback", "cache", "optimize", "check", "quantize", "tune")
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
        mode: ``"max-autotune"`` is ``tune="full"``: schedules are tried for up to a minute for each graph. All others
            are one way to compile.
        options: ``target``, ``threads``, ``fallback``, ``cache``, ``optimize``, ``check``, ``quantize`` and ``tune``,
            as for ``smelt.compile``. With ``fallback="allow"`` a graph that cannot be compiled is run by PyTorch, and a
            warning says why.

    Returns:
        What Dynamo calls in place of the graph. Where gradients are enabled and a result requires grad it is the graph
        itself, which PyTorch runs, and a warning says so once.

    Raises:
        ValueError: there is no such mode or option.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: the modes are {', '.join(str(known) for known in MODES)}")
    unknown = set(options or {}) - set(OPTIONS)
    if unknown:
        raise ValueError(f"there is no option {', '.join(sorted(unknown))}; there are: {', '.join(OPTIONS)}")
    if needs_grad(gm, example_inputs):
        _tell(
            "grad",
            "smelt compiles for inference, and gradients are enabled: PyTorch runs this model. Call it within "
            "torch.no_grad() or torch.inference_mode()",
        )
        return gm.forward
    asked = {**MODES[mode], **(options or {})}
    asked["target"] = target_of(asked.get("target", "auto"), example_inputs)
    if mode is not None and str(asked["target"]).startswith("cuda") and "tune" not in (options or {}):
        asked["tune"] = "cached"  # kernels for GPUs are not tuned
    return compile_graph(gm, example_inputs, make_options(**asked))


def target_of(spec: str | Target, inputs: Sequence[Any]) -> str | Target:
    """What a target says of a graph: where that leaves the device open it is the one of its first input on a GPU."""
    if spec not in ("auto", "cuda"):
        return spec
    found = (str(x.device) for x in inputs if isinstance(x, Tensor) and x.device.type == "cuda")
    return next(found, spec)


def make_options(
    target: str | Target = "auto",
    threads: int | None = None,
    fallback: Any = "allow",
    cache: Any = True,
    optimize: Any = "rules",
    check: Check = None,
    quantize: Any = None,
    tune: Any = "cached",
) -> Options:
    """The options of a backend: those of ``smelt.compile``."""
    settings = quantization_of(quantize)
    found = Target.detect(target, threads)
    if threads is not None:  # a target that was made with more threads keeps them
        found = within_cores(found)
    return Options(found, True, fallback, cache, optimize, check, quantize=settings, tune=tune)


def needs_grad(gm: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether gradients may be asked of a call with these inputs: a result, or an input written to, requires grad.

    Where gradients are disabled around the graph, a region of it may enable them. Views of inputs require grad there as
    those inputs do, and have no history.
    """
    enabled = torch.is_grad_enabled()
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    output = next(node for node in gm.graph.nodes if node.op == "output")
    returned = [node for node in output.all_input_nodes if enabled or node.op != "placeholder"]
    written = [node for node in placeholders if not _is_leaf(node)]
    known = [fake for node in (*returned, *written) if isinstance(fake := node.meta.get("example_value"), Tensor)]
    asked = any(fake.requires_grad and (enabled or fake.grad_fn is not None or not fake._is_view()) for fake in known)
    if asked or not enabled:
        return asked
    unknown = any(node.meta.get("example_value") is None for node in returned)
    return unknown and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def _is_leaf(node: fx.Node) -> bool:
    fake = node.meta.get("example_value")
    return not isinstance(fake, Tensor) or fake.is_leaf


def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs; the graph itself, and a warning, where it cannot be and fallbacks are allowed."""
    try:
        return compile_fx(gm, example_inputs, options)
    except (CaptureError, UnsupportedError, InputError) as error:
        if options.fallback == "error":
            raise
        reason = str(error).split("\n")[0]
        _tell(reason, f"PyTorch runs a graph that smelt cannot compile: {reason}")
        return gm.forward
    except (SmeltError, TorchDynamoException):
        raise  # a check that failed, a compiler that is missing; and what Dynamo is to do
    except Exception as error:  # a fault of smelt's own, which is no reason to stop a model that runs
        if options.fallback == "error":
            raise
        reason = f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
        _tell(reason, f"PyTorch runs a graph that smelt failed to compile, which is a fault of smelt: {reason}")
        return gm.forward


def compile_fx(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> GraphFunction:
    """Compile one of Dynamo's graphs.

    Raises:
        CaptureError, UnsupportedError: as for ``frontend.dynamo.lower_fx``.
        InputError: an input is not a plain tensor on the target's device.
    """
    return GraphFunction(gm, example_inputs, options)


def _tell(key: str, message: str) -> None:
    if key not in _told:
        _told.add(key)
        warnings.warn(message, UserWarning, stacklevel=3)
