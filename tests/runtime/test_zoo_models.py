"""Every model of the zoo, compiled: within the numeric contract at several sizes from one capture, and no fallback."""

import pytest
import torch

import smelt
from smelt.tools.zoo import ZOO, ZooModel

# the rnn, lstm and gru models differ in one operator only: all three are tried
NAMES = list(ZOO)
PADDED = [name for name in NAMES if any("mask" in argument for argument in ZOO[name].axes)]
SIZES = [(2, 33), (1, 1), (1, 128), (5, 17)]


@pytest.fixture(scope="module", params=NAMES)
def compiled(request: pytest.FixtureRequest) -> tuple[ZooModel, torch.nn.Module, smelt.CompiledModule]:
    zoo = ZOO[request.param]
    model, args, kwargs = zoo.make(tiny=True)
    fast = smelt.compile(model)
    fast(*args, **kwargs)
    return zoo, model, fast


def test_one_capture_serves_all_sizes_without_fallbacks(
    compiled: tuple[ZooModel, torch.nn.Module, smelt.CompiledModule],
) -> None:
    zoo, model, fast = compiled
    for batch, seq in SIZES:
        args, kwargs = zoo.inputs(model, batch, seq)
        smelt.verify(fast, *args, **kwargs)
    assert len(fast.entries) == 1
    assert fast.entries[0].executable.fallbacks == ()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_honoured(side: str, compiled: tuple[ZooModel, torch.nn.Module, smelt.CompiledModule]) -> None:
    zoo, model, fast = compiled
    if zoo.name not in PADDED:
        pytest.skip(f"{zoo.name} takes no mask")
    args, kwargs = zoo.inputs(model, 3, 21, side)  # type: ignore[arg-type]
    smelt.verify(fast, *args, **kwargs)
    unpadded_args, unpadded = zoo.inputs(model, 3, 21)
    plain = {**kwargs, **{k: v for k, v in unpadded.items() if "mask" in k}}
    first = torch.utils._pytree.tree_leaves(fast(*args, **kwargs))[0]
    other = torch.utils._pytree.tree_leaves(fast(*unpadded_args, **plain))[0]
    assert not torch.allclose(first, other), "the mask changes nothing: it is not honoured"
