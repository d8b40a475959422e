"""Tracing Python functions into LLVM text."""

from smelt.codegen.tvm.llvm import Value, define, fma, select


def relu_of_line(x: Value) -> Value:
    line = fma(x, 0.1, 1.0)
    return select(line > 0.0, line, 0.0)


def test_vector_function() -> None:
    text, declarations = define("f", 8, relu_of_line)
    assert text.splitlines() == [
        "define <8 x float> @f(<8 x float> %x) {",
        "  %v0 = call <8 x float> @llvm.fma.v8f32(<8 x float> %x, <8 x float> splat (float 0x3FB99999A0000000), "
        "<8 x float> splat (float 0x3FF0000000000000))",
        "  %v1 = fcmp ogt <8 x float> %v0, splat (float 0x0000000000000000)",
        "  %v2 = select <8 x i1> %v1, <8 x float> %v0, <8 x float> splat (float 0x0000000000000000)",
        "  ret <8 x float> %v2",
        "}",
    ]
    assert declarations == {"declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)"}


def test_one_lane_is_scalar() -> None:
    text, declarations = define("g", 1, lambda x, y: 1.0 / -x - y)
    assert text.splitlines() == [
        "define float @g(float %x, float %y) {",
        "  %v0 = fneg float %x",
        "  %v1 = fdiv float 0x3FF0000000000000, %v0",
        "  %v2 = fsub float %v1, %y",
        "  ret float %v2",
        "}",
    ]
    assert declarations == set()


def test_integers_and_conversions() -> None:
    def body(x: Value) -> Value:
        bits = x.convert("bitcast", "i32")
        shifted = ((bits >> 23) + 1) << 23
        return select(bits < 0, shifted ^ bits, 7 - bits).convert("bitcast", "float")

    text, _ = define("h", 4, body)
    assert "  %v1 = ashr <4 x i32> %v0, splat (i32 23)" in text
    assert "  %v4 = icmp slt <4 x i32> %v0, splat (i32 0)" in text
    assert "  %v6 = sub <4 x i32> splat (i32 7), %v0" in text
    assert "  %v8 = bitcast <4 x i32> %v7 to <4 x float>" in text
