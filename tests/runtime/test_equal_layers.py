"""Equal layers are compiled once: what 48 of them take is little more than what 4 take."""

import pytest

from smelt.tools.scaling import time_layers

pytest.importorskip("transformers")


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_many_equal_layers_take_little_longer_than_few(family: str) -> None:
    time_layers(family, 2)  # what is done once in a process: imports, caches of sizes
    for _ in range(3):  # the machine may be busy: one clean run is enough
        few, many = time_layers(family, 4), time_layers(family, 48)
        assert many["kernels"] == few["kernels"]
        # tracing all layers takes 5 times as long, and 1.5 is what both together take: 007-compile-time.md
        if many["compile"] < 2 * few["compile"] and many["capture"] < 3.5 * few["capture"]:
            return
    pytest.fail(f"48 layers take {many}, 4 layers {few}")
