"""``generate`` of a model that is not compiled, told to compile itself by ``CompileConfig(backend="smelt")``."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from smelt.runtime.executable import Executable

pytest.importorskip("transformers")

from transformers import CompileConfig

from smelt.runtime.dynamo_backend import backend

from .generative import prompts, tiny, tokens_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore:.*isinstance.*LeafSpec.*:FutureWarning"
)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_tokens_are_those_of_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: another cache is no reason to pack weights again, though transformers marks its tensors as static."""
    refreshed: list[int] = []
    refresh = Executable.refresh

    def counted(self: Executable, weights: Any) -> None:
        refreshed.append(1)
        refresh(self, weights)

    monkeypatch.setattr(Executable, "refresh", counted)
    model: Any = tiny("llama")
    how = CompileConfig(backend=backend)
    how._compile_all_devices = True  # on the CPU transformers does not compile by itself
    for inputs in (prompts("llama"), prompts("llama", length=7)):
        static = {"cache_implementation": "static"}
        expected = tokens_of(model, inputs, **static)[0]
        found = tokens_of(model, inputs, compile_config=how, **static)[0]
        assert torch.equal(found, expected)
    assert len(refreshed) == 1
