"""All rows, each part's most telling first: what no time is left for is at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .row import COMPILED, CUDNN, EAGER, FLASH, GRAPHS, PARTS, SMELT, STREAMS, TUNED, Row, Target

ALL = (SMELT, EAGER, GRAPHS, COMPILED, TUNED)
ONE, SMALL, LARGE = "llama-3.2-1b", "qwen3-0.6b", "llama-3-8b"
CASES = ("map", "rows", "scatter", "matmul", "prologue", "attention", "cached", "recurrence", "quantized")
SCHEDULED = ("matmul", "prologue", "attention", "cached", "quantized", "recurrence", "rows")
BATCHES = 4  # that the cases of a class are dealt into
PLAIN_ZOO = ("two-layer-mlp", "mean-classifier", "nn-transformer", "rnn-lm", "lstm-lm", "gru-lm")
HF_ZOO = ("bert-base", "gpt2", "llama", "t5-small", "bart-base", "vit-base")
HF_STEPS = ("gpt2-decode", "llama-decode", "t5-decode")


def rows_of(part: str) -> Sequence[Row]:
    """The rows of a part."""
    return [row for row in ROWS if row.part == part]


def _tests() -> Iterator[Row]:
    for name in (ONE, SMALL, LARGE):
        for weights in ("float32", "bfloat16"):
            yield _test(f"tokens {name} {weights}", "tokens", model=name, dtype=weights)
        for bits in ("int8", "int4"):
            yield _test(f"tokens {name} {bits}", "tokens", model=name, dtype="bfloat16", quantize=bits)
        yield _test(f"prefill {name}", "tiny prefill", model=name, dtype="float32")
    yield Row("tests", "launches per layer", "launches", {"model": ONE}, (SMELT,), (Target("launches", "<=", 6),))
    for name in ("bert", "t5", "vit"):
        yield _test(f"tiny {name}", "tiny encoder", model=name, dtype="float32")
    for group in CASES:
        for batch in range(BATCHES):
            yield _test(f"{group} {batch + 1} of {BATCHES}", "cases", group=group, batch=batch, batches=BATCHES)
    for group in SCHEDULED:
        yield _test(f"schedules of {group}", "schedules", group=group)
    for name in (*PLAIN_ZOO, *HF_ZOO, *HF_STEPS):
        yield _test(f"zoo {name}", "zoo", model=name)


def _test(name: str, kind: str, **options: Any) -> Row:
    return Row("tests", name, kind, options)


# --- single kernels ---------------------------------------------------------------------------------------------------

NEAR_COPY = (Target("share", ">=", 0.90),)
LIBRARY = (SMELT, EAGER, COMPILED)


def _kernels() -> Iterator[Row]:
    long = (Target("tflops", ">=", 450), Target("best_tflops", ">=", 550))
    flash = (SMELT, EAGER, FLASH, CUDNN)
    yield _kernel("attention 1x16x16384x128", "attention", flash, long, batch=1, heads=16, length=16384, head=128)
    causal = {"batch": 1, "heads": 16, "length": 16384, "head": 128, "causal": True}
    yield _kernel("causal attention 1x16x16384x128", "attention", flash, **causal)
    yield _kernel("gemv 4096 to 14336", "linear", LIBRARY, NEAR_COPY, rows=1, terms=4096, columns=14336)
    yield _kernel("gemv 4096 to 128256", "linear", LIBRARY, NEAR_COPY, rows=1, terms=4096, columns=128256)
    yield _kernel("add and rms norm 16384x4096", "add_rms_norm", LIBRARY, NEAR_COPY, rows=16384, columns=4096)
    yield _kernel("add and layer norm 16384x4096", "add_layer_norm", LIBRARY, NEAR_COPY, rows=16384, columns=4096)
    yield _kernel("rope 4x32x4096x128", "rope", LIBRARY, NEAR_COPY, batch=4, heads=32, length=4096, head=128)
    yield _kernel("softmax 16384x8192", "softmax", LIBRARY, NEAR_COPY, rows=16384, columns=8192)
    for size in (8192, 4096):
        yield _kernel(f"matmul {size}x{size}x{size}", "linear", (*LIBRARY, TUNED), rows=size, terms=size, columns=size)
    yield _kernel("matmul 2048x4096x14336", "linear", (*LIBRARY, TUNED), rows=2048, terms=4096, columns=14336)
    yield _kernel("matmul and gelu 4096x768x3072", "linear_gelu", LIBRARY, rows=4096, terms=768, columns=3072)
    yield _kernel("matmul 16x4096x14336", "linear", LIBRARY, rows=16, terms=4096, columns=14336)
    for bits in ("int8", "int4"):
        yield _kernel(f"gemv 4096 to 14336 {bits}", "linear", rows=1, terms=4096, columns=14336, quantize=bits)
    yield _kernel("attention 8x12x512x64", "attention", flash, batch=8, heads=12, length=512, head=64)
    decode = {"batch": 8, "heads": 32, "kv_heads": 8, "length": 8192, "head": 128, "queries": 1}
    yield _kernel("attention of one query 8x32x8192x128", "attention", (SMELT, EAGER), **decode)


def _kernel(name: str, op: str, peers: Sequence[str] = (SMELT, EAGER), targets: Any = (), **options: Any) -> Row:
    return Row("kernels", name, "kernel", {"op": op, **options}, tuple(peers), tuple(targets), limit=40)


# --- models -----------------------------------------------------------------------------------------------------------

STEP_MS = {
    (ONE, "bfloat16"): 0.66,
    (LARGE, "bfloat16"): 3.9,
    (LARGE, "int8"): 2.1,
    (LARGE, "int4"): 1.4,
}
OVER_TUNED = {SMALL: 1.5, ONE: 1.15, LARGE: 1.15}


def _start() -> Iterator[Row]:
    targets = (Target("seconds", "<=", 10), Target("share_of_tuned", "<=", 1 / 8))
    for peer, aims in ((SMELT, targets), (COMPILED, ()), (TUNED, ())):
        options = {"model": ONE, "peer": peer}
        yield Row("start", f"{ONE} by {peer}", "start", options, (peer,), aims, limit=150, alone=True)


def _decode() -> Iterator[Row]:
    for context in (128, 2048):
        for name in (ONE, LARGE, SMALL):
            yield _step(name, "bfloat16", context)
        for name in (LARGE, ONE, SMALL):
            for weights in ("int8", "int4"):
                yield _step(name, weights, context)


def _step(name: str, weights: str, context: int) -> Row:
    whole = weights == "bfloat16"
    peers = ALL if whole else (SMELT, EAGER, GRAPHS)
    targets = []
    if context == 128 and (name, weights) in STEP_MS:
        targets.append(Target("ms", "<=", STEP_MS[name, weights]))
    if context == 128 and whole:
        targets += [Target("over_tuned", ">=", OVER_TUNED[name]), Target("graph_launches", "<=", 1)]
    if (name, weights, context) == (ONE, "bfloat16", 128):
        targets.append(Target("share", ">=", 0.87))
    options = {"model": name, "context": context, "dtype": "bfloat16", "quantize": "" if whole else weights}
    return Row("decode", f"{name} {weights} context {context}", "decode", options, peers, tuple(targets), limit=150)


def _prefill() -> Iterator[Row]:
    for name in (ONE, LARGE, SMALL):
        options = {"model": name, "length": 2048, "dtype": "bfloat16"}
        yield Row("prefill", f"{name} bfloat16 2048", "prefill", options, ALL, limit=100)


def _encoders() -> Iterator[Row]:
    sizes = (("bert", 32, 128, 1.45), ("bert", 1, 128, 0.35), ("t5", 1, 128, None), ("vit", 32, 0, None))
    for name, batch, length, limit in sizes:
        targets = () if limit is None else (Target("ms", "<=", limit),)
        dtype = "bfloat16" if name == "t5" else "float16"
        text = f"{name}-base {dtype} batch {batch}" + (f" length {length}" if length else "")
        options = {"model": name, "batch": batch, "length": length, "dtype": dtype}
        # a decoder's projections of its source do not need one another
        peers = (SMELT, STREAMS, *ALL[1:]) if name == "t5" else ALL
        yield Row("encoders", text, "encoder", options, peers, targets, limit=100)


ROWS: tuple[Row, ...] = (*_tests(), *_kernels(), *_start(), *_decode(), *_prefill(), *_encoders())
assert {row.part for row in ROWS} == set(PARTS)
