"""Models with weights in 8 or 4 bits: how each peer is asked for them.

fp8 and fp8-dynamic are what ``smelt.compile`` calls so; ONNX Runtime and OpenVINO are not asked for them.

int8 is dynamic quantisation: weights as int8, activations quantised to 8 bits in each call, products in integers. int4
is weights as int4 in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...rewrites.quantization import NAMED, Quantization
from ...runtime.compile import compile
from ...runtime.module import CompiledModule
from ..models import Model

BLOCK = 32  # int4 weights that share a scale
MOST_PROTOBUF = 1 << 30  # bytes of a network that is written as one file
QUANTIZE: Mapping[str, Quantization] = {  # as smelt.compile takes them
    "int8": Quantization(weights="int8", activations="int8"),
    "int4": Quantization(weights="int4", group_size=BLOCK),
    "fp8": NAMED["fp8"],
    "fp8-dynamic": NAMED["fp8-dynamic"],
}
IN_ONNX = ("int8", "int4")


def compiled(model: Model, dtype: str, threads: int) -> CompiledModule:
    """The model compiled by smelt, quantised where the dtype says so."""
    return compile(model.model, threads=threads, quantize=QUANTIZE.get(dtype))


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


def split_gemm(network: Any) -> None:
    """Each Gemm that is x @ w + b as MatMul and Add, in place: the quantiser to 4 bits leaves Gemm as it is."""
    import onnx

    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    nodes: list[Any] = []
    for node in network.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != "Gemm" or len(node.input) != 3 or plain | given != plain:
            nodes.append(node)
            continue
        x, w, b = node.input
        product = f"{node.output[0]}_product"
        nodes.append(onnx.helper.make_node("MatMul", [x, w], [product], name=f"{node.name}_product"))
        nodes.append(onnx.helper.make_node("Add", [product, b], list(node.output), name=node.name))
    del network.graph.node[:]
    network.graph.node.extend(nodes)


def _int4(path: Path) -> Path:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made, network = path.with_name("int4.onnx"), onnx.load(str(path))
    split_gemm(network)
    quantizer = MatMulNBitsQuantizer(network, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(made), use_external_data_format=True)
    return made
