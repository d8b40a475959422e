"""Fixtures of the whole suite: golden text, seeded randomness, and a kernel cache of its own."""

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite the golden files with what the tests produce")


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kernels are cached in a folder of this run, so that no run sees another one's, nor the user's."""
    folder = tmp_path_factory.mktemp("smelt-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMELT_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares text with tests/golden/NAME, or rewrites that file under --bless."""
    bless = bool(request.config.getoption("--bless"))
    return lambda name, text: check_golden(GOLDEN / name, text, bless)


def check_golden(path: Path, text: str, bless: bool) -> None:
    """Fail with a unified diff where the file at path does not hold text; with bless, make it hold text."""
    text = text.rstrip("\n") + "\n"
    if bless:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    if not path.exists():
        pytest.fail(f"{path} does not exist; look at the output and write it: pytest --bless\n\n{text}")
    expected = path.read_text(encoding="utf-8")
    if text != expected:
        diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), path.name, "produced", lineterm="")
        pytest.fail("\n".join(["the output changed; accept it with pytest --bless", "", *diff]), pytrace=False)
