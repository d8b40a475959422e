"""``smelt.compile``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, Literal

import torch

from ..ir.collection import no_collection
from ..ir.errors import UnsupportedError
from ..rewrites.quantization import Quantization, quantization_of
from .cache import KernelCache
from .check import Check
from .cuda.history import MOST_GRAPHS
from .expect import Expectations
from .module import CompiledModule
from .options import Dynamic, Options
from .target import Target, within_cores


def compile(
    model: Callable[..., Any],
    *,
    target: str | Target = "auto",
    dynamic: Dynamic = True,
    fallback: Literal["allow", "error"] = "allow",
    threads: int | None = None,
    cache: bool | Literal["kernels"] | KernelCache = True,
    optimize: Literal["rules", "search"] = "rules",
    check: Check = None,
    expect: Expectations | None = None,
    quantize: Literal["int8-dynamic", "int8", "int4", "fp8", "fp8-dynamic"] | Quantization | None = None,
    tune: Literal["off", "cached", "full"] = "cached",
    graphs: int = MOST_GRAPHS,
    streams: int = 1,
    kv_cache_dtype: Literal["bfloat16", "int8"] | None = None,
) -> CompiledModule:
    """Compile a model for inference. It is captured on the first call, by that call's arguments.

    Args:
        model: a module in eval mode, or a function of tensors.
        target: ``"auto"``: where the model's weights are, and the CPU for a function; ``"cpu"``; ``"cuda"``: the GPU
            that the model is on, and for a function the current one; ``"cuda:1"``; or a target made with
            ``Target.detect``. See ``docs/gpu.md``.
        dynamic: True keeps every size symbolic that the model does not fix, so that one capture serves all sizes; False
            makes one capture for each combination of sizes; a mapping names the symbolic ones:
            ``{"input_ids": {0: "batch", 1: "seq"}}``.
        fallback: ``"allow"`` lets PyTorch run what smelt cannot; the report lists it. ``"error"`` refuses the model.
        threads: how many threads kernels may use; by default all cores that this process may run on, and no more than
            those: of a larger number a warning tells.
        cache: whether kernels and captures are kept between processes, in ``SMELT_CACHE_DIR`` or the user's cache
            folder; or the cache to keep them in. ``"kernels"`` keeps kernels and captures the model in each process.
        optimize: ``"rules"`` applies each rewrite where it fits; ``"search"`` also compares what products, sums, scales
            and transposes are equal to in real arithmetic, and takes the order that costs least at the sizes of the
            first call. Results then differ from the model's by rounding, within the contract of ``smelt.verify``. It
            needs the package egglog: ``pip install "smelt[search]"``.
        check: ``"rules"`` evaluates what every rewrite replaced, before and after, on small sampled inputs;
            ``"passes"`` does so for the whole graph around each pass, and for every kernel program. The report counts
            the verdicts.
        expect: what the first capture is held to: how often an operator was recognised (``{"attention": 12}``), and
            bounds on ``kernels``, ``kernels_per_layer``, ``fallbacks`` and ``bytes_over_minimum``; a range or a
            function of what was found may stand for a number. A call that makes another capture is not held to it.
        quantize: hold the weights of linear layers in few bits: ``"int8"`` (a scale for each output), ``"int4"`` (a
            scale for each 128 terms of it), ``"fp8"`` (float8_e4m3fn, a scale for each output), ``"int8-dynamic"``
            and ``"fp8-dynamic"`` (each row of a layer's input as well, when it is called), or a
            ``smelt.Quantization``. Results then differ from the model's: ``smelt.verify`` holds them to the model with
            the quantised weights, and says how far they moved; the report lists every weight.
        tune: ``"cached"`` takes the schedules that ``smelt tune`` found for these kernels on this machine, or that
            ``smelt.lock`` in the working folder names; ``"full"`` also tunes kernels that were not tuned yet, at the
            sizes of the first call, for up to a minute; ``"off"`` takes the default schedules. Results differ by
            rounding.
        graphs: of how many kinds of calls CUDA graphs are held for each capture; 0 for none. The CPU has none.
        streams: on how many streams the kernels of a CUDA graph may be: those that leave processors free and do not
            need each other run side by side. It takes more memory; what it gains was not measured.
        kv_cache_dtype: round the keys and values of a transformers model's cache when they are written, in ``generate``
            and in loops of your own: ``"bfloat16"``, or ``"int8"`` with a scale for each head and position. Caches take
            fewer bytes; attention computes in float32 as before.
            Results then differ from the model's: ``smelt.verify`` holds them to the model with rounded caches. See
            ``docs/generation.md``. CPUs only.

    Returns:
        A module that is called as the model is, and gives the same results.

    Raises:
        BackendError: the package of the target's backend, or of ``optimize="search"``, is not installed, or there is no
            GPU.
        UnsupportedError: there is no such target, or not all of this for it, the model is TorchScript, or
            ``kv_cache_dtype`` is given for a model without such caches.
        QuantizationError: ``quantize`` is none of these, or keeps a layer that the model does not have.
        TypeError: the model cannot be called.
        ValueError: another argument is none of what is listed here.
    """
    with no_collection():  # its imports make many objects that stay
        plain = unwrap(model)
        found = Target.detect(target_for(target, plain), threads)
        if threads is not None:  # a target that was made with more threads keeps them
            found = within_cores(found)
        settings = quantization_of(quantize)
        if settings is not None and isinstance(plain, torch.nn.Module):
            settings.check_names([name for name, _ in plain.named_modules(remove_duplicate=False)])
        options = Options(
            found,
            dynamic,
            fallback,
            cache,
            optimize,
            check,
            expect or {},
            settings,
            tune,
            graphs,
            streams,
            kv_cache_dtype,
        )
        made = CompiledModule(plain, options)
        _check_caches(made, kv_cache_dtype)
    return made


def _check_caches(made: CompiledModule, kv_cache_dtype: str | None) -> None:
    """Raise UnsupportedError where caches are to be rounded and the model has none."""
    if kv_cache_dtype is not None and not made.takes_cache:
        what = f"{type(made.original).__name__} is no model of transformers with a cache of keys and values"
        raise UnsupportedError(f"kv_cache_dtype is {kv_cache_dtype!r}, and {what}: leave it out")


def target_for(spec: str | Target, model: Callable[..., Any]) -> str | Target:
    """What a target says of a model: where that leaves the device open it is the one of the model's first weight."""
    if spec not in ("auto", "cuda") or not isinstance(model, torch.nn.Module):
        return spec
    first = next(chain(model.parameters(), model.buffers()), None)
    return str(first.device) if first is not None and first.device.type == "cuda" else spec


def unwrap(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model itself, where another compiler, or this one, was here before.

    Raises:
        TypeError: it cannot be called, or is a class of modules.
        UnsupportedError: it is TorchScript, of which the Python is lost.
    """
    if isinstance(model, CompiledModule):
        return model.original
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise UnsupportedError("the model is TorchScript, which cannot be captured: give what it was made from")
    # What torch.compile returns: a module that holds the model, or a function that names it.
    inner = getattr(model, "_orig_mod", None) or getattr(model, "_torchdynamo_orig_callable", None)
    if inner is not None:
        return unwrap(inner)
    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise TypeError(f"model is the class {model.__name__}: give an instance of it")
    if not callable(model):
        raise TypeError(f"model is a {type(model).__name__}: give an nn.Module or a function")
    return model
