"""Every model of the zoo, compiled: within the numeric contract at several sizes from one capture, and no fallback."""

from functools import cache

import pytest
import torch
from torch.utils._pytree import tree_leaves

import smelt
from smelt.tools.zoo import ZOO, Padding, ZooModel

NAMES = list(ZOO)
PADDED = [name for name in NAMES if any("mask" in argument for argument in ZOO[name].axes)]
SIZES = [(2, 33), (1, 1), (1, 128), (5, 17)]
Compiled = tuple[ZooModel, torch.nn.Module, smelt.CompiledModule]


@cache
def compiled(name: str) -> Compiled:
    """A tiny zoo model, compiled by a first call with its default inputs."""
    zoo = ZOO[name]
    model, args, kwargs = zoo.make(tiny=True)
    fast = smelt.compile(model)
    fast(*args, **kwargs)
    return zoo, model, fast


@pytest.mark.parametrize("name", NAMES)
def test_one_capture_serves_all_sizes_without_fallbacks(name: str) -> None:
    zoo, model, fast = compiled(name)
    for batch, seq in SIZES:
        args, kwargs = zoo.inputs(model, batch, seq)
        smelt.verify(fast, *args, **kwargs)
    assert len(fast.entries) == 1
    assert fast.entries[0].executable.fallbacks == ()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PADDED)
def test_padding_is_honoured(name: str, side: Padding) -> None:
    zoo, model, fast = compiled(name)
    args, kwargs = zoo.inputs(model, 3, 21, side)
    smelt.verify(fast, *args, **kwargs)
    plain = {name: torch.ones_like(value) if "mask" in name else value for name, value in kwargs.items()}
    padded, full = (tree_leaves(fast(*args, **given))[0] for given in (kwargs, plain))
    assert not torch.allclose(padded, full), "the mask changes nothing: it is not honoured"
