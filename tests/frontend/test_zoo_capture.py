"""Every model of the zoo: one capture, all sizes, no fallback."""

from typing import Any

import pytest
import torch

from smelt.frontend.export import capture
from smelt.ir.verify import verify
from smelt.tools.zoo import ZOO, MissingExtraError

from .calls import run, same


@pytest.mark.parametrize("name", ZOO)
def test_one_capture_serves_every_size(name: str) -> None:
    entry = ZOO[name]
    try:
        model, args, kwargs = entry.make(tiny=True)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    captured = capture(model, args, kwargs, dynamic=bool(entry.dynamic_dims), fallback="error")
    verify(captured.graph)
    assert captured.notes == ()
    assert captured.guards == ()
    for batch, seq, padding in [(*entry.sizes[1], "left"), (*entry.sizes[2], "right"), (1, 9, "none"), (3, 1, "none")]:
        compare(captured, model, *entry.inputs(model, batch, seq, padding))


@pytest.mark.parametrize("name", ["nn-transformer", "bert-base", "gpt2"])
def test_an_example_of_size_one_serves_every_size(name: str) -> None:
    pytest.importorskip("transformers")
    entry = ZOO[name]
    model, _, _ = entry.make(tiny=True)
    captured = capture(model, *entry.inputs(model, 1, 1, "none"), fallback="error")
    assert captured.notes == ()
    for batch, seq in [(1, 1), (3, 7)]:
        compare(captured, model, *entry.inputs(model, batch, seq, "none"))


def test_symbolic_sizes_are_those_the_zoo_names() -> None:
    for name in ("two-layer-mlp", "mean-classifier", "lstm-lm"):
        entry = ZOO[name]
        captured = capture(*entry.make(tiny=True))
        dims = {dim for node in captured.graph.inputs for dim in node.shape if not isinstance(dim, int)}
        assert len(dims) == len(entry.dynamic_dims)


@pytest.mark.parametrize("name", ["rnn-lm", "lstm-lm", "gru-lm"])
def test_a_recurrent_layer_is_one_product_and_one_recurrence(name: str) -> None:
    captured = capture(*ZOO[name].make(tiny=True))
    names = [node.op.name for node in captured.graph.nodes]
    assert names.count("recurrence") == 2
    assert names.count("linear") == 3


def compare(captured: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with torch.no_grad():
        expected = model(*args, **kwargs)
    same(run(captured, args, kwargs).result, expected)
