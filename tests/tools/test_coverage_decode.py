"""Steps of decoding with transformers' static cache: one graph, nothing for PyTorch, the logits and caches of eager."""

import pytest
import torch

from smelt.frontend.export import capture
from smelt.ir.interpret import interpret
from smelt.tools.coverage.architectures import ARCHITECTURES, tokens
from smelt.tools.coverage.measure import CONTEXT, PROMPT, prompt_of

pytest.importorskip("transformers")

from smelt.tools.coverage.step import CachedStep

NAMES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "gpt2", "phi", "t5", "bart", "mixtral"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_one_graph_without_fallbacks(name: str) -> None:
    found = ARCHITECTURES[name]
    model = found.make()
    step = CachedStep(model, prompt_of(found, model), CONTEXT).eval()
    args = tokens(PROMPT[0], 1), torch.tensor([PROMPT[1]])
    captured = capture(step, args, {}, dynamic=False, fallback="error")
    before = {name: buffer.clone() for name, buffer in step.named_buffers()}
    ran = interpret(captured.graph, list(args), captured.weights)
    assert all(torch.equal(buffer, before[name]) for name, buffer in step.named_buffers())
    with torch.no_grad():
        expected = step(*args)
    torch.testing.assert_close(ran.outputs[0], expected, rtol=1e-4, atol=1e-5)
    after = dict(step.named_buffers())
    written = [str(mutation.target.attrs["name"]) for mutation in captured.graph.mutations]
    for key, value in zip(written, ran.mutations, strict=True):
        torch.testing.assert_close(value, after[key], rtol=1e-4, atol=1e-5, msg=key)
    # keys and values of both layers
    assert {"keys_0", "values_0", "keys_1", "values_1"} <= set(written)
