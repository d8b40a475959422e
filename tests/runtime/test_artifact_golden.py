"""Artifacts that were written once and are kept: each must be read as it was meant, or refused by its format's number.

A change of what an artifact holds that these tests do not pass with needs another number, ``manifest.FORMAT`` for files
for processors, ``manifest.GPU_FORMAT`` for those that have kernels for GPUs as well. Then
``python -m smelt.tests.runtime.test_artifact_golden`` writes the files of those formats beside the others.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.artifact.loader import ArtifactWarning
from smelt.runtime.artifact.manifest import FORMAT, GPU_FORMAT

from .fake_cuda_driver import playing_driver

GOLDEN = Path(__file__).parents[1] / "golden"
KEPT = sorted(GOLDEN.glob("artifact-*.smelt"))


class Kept(nn.Module):
    """Products, a norm, state, sizes and results of several kinds, on weights that no generator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8, bias=False)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_((torch.arange(parameter.numel()) % 7 - 3).reshape(parameter.shape) / 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 0.5) -> dict[str, Any]:
        self.calls.add_(1)
        y = self.last(nn.functional.gelu(self.norm(self.first(x)))) * scale
        if mask is not None:
            y = y.masked_fill(~mask[:, None], -torch.inf)
        return {"y": y, "both": (y.softmax(-1), self.calls.sum()), "rows": x.shape[0]}


def call(rows: int) -> tuple[Tensor, Tensor]:
    """The arguments of a call."""
    return (torch.arange(rows * 8).reshape(rows, 8) % 5).float(), torch.arange(rows) % 3 > 0


def write() -> None:
    """Write the files of the present formats, but for those that are there."""
    entries = {"plain": (Kept().eval(), call(3)[:1]), "masked": (Kept().eval(), call(3))}
    for number, targets in ((FORMAT, ("x86-64-v3",)), (GPU_FORMAT, ("x86-64-v3", "sm_90"))):
        path = GOLDEN / f"artifact-{number}.smelt"
        if not path.exists():
            smelt.export(entries, target=targets).save(path)


def test_the_present_formats_are_kept() -> None:
    assert {GOLDEN / f"artifact-{number}.smelt" for number in (FORMAT, GPU_FORMAT)} <= set(KEPT)


def test_launches_of_the_file_for_gpus_are_read() -> None:
    """What they compute is for ``test_artifact_gpu.py``; here the records of an old file are still understood."""
    with playing_driver() as driver:
        loaded = smelt.load(GOLDEN / f"artifact-{GPU_FORMAT}.smelt", device="cuda", recompile=False)
        for rows in (3, 9):
            driver.launches.clear()
            loaded.entry_points["plain"](call(rows)[0])
            assert driver.launches


@pytest.mark.parametrize("target", ["auto", "x86-64-v3", "compile"])
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_it_is_read_or_refused(path: Path, target: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ArtifactWarning)  # that its kernels are compiled anew, as they may be
            loaded = smelt.load(path, target=target)
    except smelt.ArtifactError as error:
        assert "this smelt reads" in str(error)  # noqa: PT017
        return
    model = Kept().eval()
    with torch.no_grad():
        for rows in (3, 1, 9):
            for name, args in (("plain", call(rows)[:1]), ("masked", call(rows))):
                twin = model if name == "plain" else Kept().eval()
                twin.calls.fill_((3, 1, 9).index(rows))
                torch.testing.assert_close(dict(loaded.entry_points[name](*args)), twin(*args), equal_nan=True)


def test_a_format_of_the_future_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.runtime.artifact.manifest.FORMAT", 8)
    monkeypatch.setattr("smelt.runtime.artifact.manifest.GPU_FORMAT", 9)
    for path in KEPT:
        with pytest.raises(smelt.ArtifactError, match=r"has the format \d, this smelt reads 8 and 9: export"):
            smelt.load(path)


def test_kernels_that_are_called_in_another_way_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.runtime.artifact.manifest.layout_version", lambda: "another")
    with pytest.warns(ArtifactWarning, match="called in another way: its kernels are compiled anew"):
        loaded = smelt.load(KEPT[-1])
    assert "compiled anew" in json.dumps(loaded.report().to_dict())


if __name__ == "__main__":
    write()
