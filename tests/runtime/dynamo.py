"""What tests with Dynamo share: nothing left of earlier ones, and none of its own remarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

QUIET = pytest.mark.filterwarnings(
    # Dynamo's own remarks on what it imports
    "ignore::DeprecationWarning",
    "ignore:.*isinstance.*LeafSpec.*:FutureWarning",
)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Dynamo knows nothing, before a test and after it."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
