"""Equal layers are compiled once: what 48 of them take is little more than what 4 take."""

import pytest

from smelt.tools.scaling import least, time_layers

pytest.importorskip("transformers")


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_many_equal_layers_take_little_longer_than_few(family: str) -> None:
    time_layers(family, 2)  # what is done once in a process: imports, caches of sizes
    few = least(2, time_layers, family, 4)
    many = least(2, time_layers, family, 48)
    assert many["kernels"] == few["kernels"]
    # less on an idle machine: docs/decisions/007-compile-time.md; a capture that traces all takes 5 times as long
    assert many["compile"] < 2.5 * few["compile"]
    assert many["capture"] < 3 * few["capture"]
