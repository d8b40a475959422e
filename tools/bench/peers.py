"""What a model is benchmarked against. A peer is made ready by compiling for, and running, one call.

Every peer gets the sizes of the call as constants, which is the best case for those that can use it, and as many
threads as the others. It is called as its users call it: eager and Inductor on tensors within ``torch.no_grad()``, the
others on arrays, whose results stay what they are. For int8 and int4, eager and Inductor run the model in float32:
what quantising is worth.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ...ir.errors import SmeltError
from ..errors import ModelError
from ..models import Model
from ..timing import Runner
from .quantised import IN_ONNX, QUANTIZE, compiled, quantised_onnx

SMELT = "smelt"
_IN_PYTORCH = frozenset({SMELT, "eager", "inductor", "inductor-max"})
TOLERANCE = {
    torch.float32: 2e-3,
    torch.float64: 1e-6,
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}  # of the largest value
# of quantised results: the root of the mean square of the error over that of the values
# what smelt quantises is held to its own quantised weights by smelt.verify; the zoo's random weights lose most
QUANTISED_TOLERANCE = {"int8": 0.15, "int4": 0.75, "fp8": 0.3, "fp8-dynamic": 0.3}
MOST_LAYERS = 128
INSTALL = "pip install 'smelt[bench]'"


class PeerError(SmeltError, RuntimeError):
    """A peer cannot run a model; the message says why."""


def prepare(name: str, model: Model, threads: int, dtype: str = "f32") -> Runner:
    """A runner of the model on that many threads; the first call of it may still compile.

    Raises:
        ModelError: there is no such peer.
        PeerError: the peer is not installed or refuses the model.
    """
    if name not in PEERS:
        raise ModelError(f"there is no peer {name!r}; there are: {', '.join(PEERS)}")
    torch.set_num_threads(threads)
    try:
        with _quiet():
            call = PEERS[name](model, threads, dtype)
    except SmeltError:
        raise
    except Exception as error:  # whatever an exporter or a compiler of others raises
        raise PeerError(f"{name} cannot run {model.name}: {first_line(error)}") from error

    if name not in _IN_PYTORCH:
        return call

    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def check(name: str, found: Any, expected: Any, dtype: str = "f32") -> float:
    """Hold a peer's result against eager's, before it is timed; returns its error relative to the values, as an RMS.

    Raises:
        PeerError: they differ by more than ``TOLERANCE`` of the largest value, or in their number or shapes; quantised
            ones by more than ``QUANTISED_TOLERANCE`` of the values.
    """
    ours, theirs = _tensors(found), _tensors(expected)
    if len(ours) != len(theirs):
        raise PeerError(f"{name} returns {len(ours)} tensors in place of {len(theirs)}")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise PeerError(f"{name} returns {list(a.shape)} in place of {list(b.shape)}")
        if not b.numel():
            continue
        relative = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        worst = max(worst, relative)
        if dtype in QUANTISED_TOLERANCE and b.is_floating_point():
            if not relative <= QUANTISED_TOLERANCE[dtype]:
                raise PeerError(f"{name} is wrong by {relative:.0%} of the values: more than quantising explains")
            continue
        limit = TOLERANCE.get(b.dtype, 0.0) * float(b.abs().max())
        error = float((a.double() - b.double()).abs().max())
        if not error <= limit:
            raise PeerError(f"{name} is wrong by {error:.1e} where the largest value is {float(b.abs().max()):.1e}")
    return worst


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, arrays among them."""
    leaves = pytree.tree_leaves(result)
    found = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in leaves]
    return [x for x in found if isinstance(x, Tensor)]


def _smelt(model: Model, threads: int, dtype: str) -> Callable[[], Any]:
    fast = compiled(model, dtype, threads)
    return lambda: fast(*model.args, **model.kwargs)


def _eager(model: Model, threads: int, dtype: str) -> Callable[[], Any]:
    return lambda: model.model(*model.args, **model.kwargs)


def _inductor(model: Model, threads: int, dtype: str) -> Callable[[], Any]:
    _let_recompile()
    made = torch.compile(model.model, dynamic=False)
    return lambda: made(*model.args, **model.kwargs)


def _inductor_max(model: Model, threads: int, dtype: str) -> Callable[[], Any]:
    import torch._inductor.config as config

    _let_recompile()
    options: dict[str, Any] = {"max_autotune": True, "freezing": True, "cpp.threads": threads}
    known = {name: value for name, value in options.items() if name in config.get_config_copy()}
    made = torch.compile(model.model, dynamic=False, options=known)
    return lambda: made(*model.args, **model.kwargs)


def _let_recompile() -> None:
    """Dynamo makes a graph for each layer that has a number of its own, and runs those past its limit in eager mode."""
    import torch._dynamo.config as config

    config.recompile_limit = max(config.recompile_limit, MOST_LAYERS)


def _onnxruntime(model: Model, threads: int, dtype: str) -> Callable[[], Any]:
    _require("onnxruntime", "onnx", "onnxscript")
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = _export(model, Path(folder), dtype)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = dict(zip((x.name for x in session.get_inputs()), _arrays(model), strict=True))

    return lambda: session.run(None, inputs)


def _openvino(model: Model, threads: int, dtype: str) -> Callable[[], Any]:
    _require("openvino")
    import openvino  # type: ignore[import-untyped, unused-ignore]

    half = any(x.dtype == torch.bfloat16 for x in _module(model).parameters())
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # in which the weights of a quantised network lie until it is compiled
        network = _openvino_network(openvino, model, dtype, Path(folder))
        request = openvino.compile_model(network, "CPU", settings).create_infer_request()
    arrays = _arrays(model)

    return lambda: list(request.infer(arrays, share_inputs=True, share_outputs=True).values())


def _openvino_network(openvino: Any, model: Model, dtype: str, folder: Path) -> Any:
    """What OpenVINO compiles: the exported model, or, quantised, the ONNX that ONNX Runtime takes."""
    if dtype not in QUANTIZE:
        return openvino.convert_model(torch.export.export(_module(model), model.args, dict(model.kwargs), strict=False))
    _require("onnxruntime", "onnx", "onnxscript")
    return openvino.convert_model(str(_export(model, folder, dtype)))


def _export(model: Model, folder: Path, dtype: str) -> Path:
    """The model as ONNX, with the sizes of the call, quantised where the dtype says so."""
    if dtype in QUANTIZE and dtype not in IN_ONNX:
        raise PeerError(f"{dtype} is not asked of it")
    path = folder / "model.onnx"
    torch.onnx.export(_module(model), model.args, path, kwargs=dict(model.kwargs), dynamo=True, verbose=False)
    return quantised_onnx(path, dtype) if dtype in QUANTIZE else path


def _module(model: Model) -> nn.Module:
    if not isinstance(model.model, nn.Module):
        raise PeerError("only an nn.Module can be exported")
    return model.model


def _arrays(model: Model) -> list[Any]:
    leaves: Sequence[Any] = pytree.tree_leaves((model.args, dict(model.kwargs)))
    return [x.detach().numpy() for x in leaves if isinstance(x, Tensor)]


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise PeerError(f"{', '.join(missing)} is not installed: {INSTALL}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters and converters write progress and warnings that are no concern of a benchmark."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


PEERS: Mapping[str, Callable[[Model, int, str], Callable[[], Any]]] = {
    SMELT: _smelt,
    "eager": _eager,
    "inductor": _inductor,
    "inductor-max": _inductor_max,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
