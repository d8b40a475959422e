"""Networks as the quantiser to 4 bits wants them."""

from typing import Any

import numpy
import pytest

from smelt.tools.bench.quantised import split_gemm

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def network(**attributes: Any) -> Any:
    """x [2, 4] times w [4, 4], and b."""
    from onnx import TensorProto, helper, numpy_helper

    generator = numpy.random.default_rng(0)
    weights = {"w": generator.standard_normal((4, 4)), "b": generator.standard_normal(4)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(value.astype("float32"), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def result(model: Any) -> Any:
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": numpy.arange(8, dtype="float32").reshape(2, 4)})[0]


def test_a_gemm_becomes_a_product_and_a_sum() -> None:
    model = network()
    before = result(model)
    split_gemm(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"]
    numpy.testing.assert_allclose(result(model), before, rtol=1e-6)


@pytest.mark.parametrize("attributes", [{"transB": 1}, {"alpha": 2.0}, {"beta": 0.5}])
def test_another_gemm_stays(attributes: Any) -> None:
    model = network(**attributes)
    split_gemm(model)
    assert [node.op_type for node in model.graph.node] == ["Gemm"]
