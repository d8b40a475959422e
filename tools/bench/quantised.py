"""Models with weights in 8 or 4 bits: how each peer is asked for them.

int8 is dynamic quantisation: weights as int8, activations quantised to 8 bits in each call, products in integers. int4
is weights as int4 in blocks of 32.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.compile import compile
from ..models import Model

BLOCK = 32  # int4 weights that share a scale
MOST_PROTOBUF = 1 << 30  # bytes of a network that is written as one file
QUANTIZE: Mapping[str, str] = {"int8": "int8-dynamic", "int4": "int4"}  # what smelt.compile calls them


class NotThere(Exception):
    """A way to quantise that is not there; the message says which."""


def compiled(model: Model, dtype: str, threads: int) -> Any:
    """The model compiled by smelt, quantised where the dtype says so.

    Raises:
        NotThere: this smelt has no such option.
    """
    if dtype not in QUANTIZE:
        return compile(model.model, threads=threads)
    if "quantize" not in inspect.signature(compile).parameters:
        raise NotThere(f'smelt.compile has no option quantize="{QUANTIZE[dtype]}" yet')
    options: dict[str, Any] = {"quantize": QUANTIZE[dtype]}
    return compile(model.model, threads=threads, **options)


def quantised_onnx(path: Path, dtype: str) -> Path:
    """An ONNX file with its products quantised, beside the one given.

    Raises:
        ImportError: a package is missing.
    """
    return _int8(path) if dtype == "int8" else _int4(path)


def _int8(path: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made, network = path.with_name("int8.onnx"), onnx.load(str(path))
    # what the exporter says of intermediates: the quantiser infers it again, and takes some of it for wrong
    del network.graph.value_info[:]
    large = network.ByteSize() > MOST_PROTOBUF
    quantize_dynamic(network, made, weight_type=QuantType.QInt8, use_external_data_format=large)
    return made


def _int4(path: Path) -> Path:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = path.with_name("int4.onnx")
    quantizer = MatMulNBitsQuantizer(onnx.load(str(path)), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(made), use_external_data_format=True)
    return made
