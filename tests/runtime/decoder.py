"""A tiny decoder that makes a cache, for tests of calls with one."""

from typing import Any

import pytest
import torch

from smelt.tools.zoo import build_llama

IDS = torch.tensor([[5, 7, 11, 13], [17, 19, 23, 29]])


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made = build_llama(True).eval()
    made.config.use_cache = True
    return made
