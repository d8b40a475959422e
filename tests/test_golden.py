"""The golden fixture itself: a change must fail with a diff, and only --bless may write."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"
TEST = "def test_text(golden):\n    golden('text.txt', 'first\\nsecond')\n"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of one test, with this suite's conftest and its own golden folder."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_text.py").write_text(TEST, encoding="utf-8")
    return tmp_path


def test_missing_file_fails_until_blessed(suite: Path) -> None:
    missing = run(suite)
    assert missing.returncode == 1
    assert "pytest --bless" in missing.stdout
    assert not (suite / "golden").exists()

    assert run(suite, "--bless").returncode == 0
    assert (suite / "golden" / "text.txt").read_text(encoding="utf-8") == "first\nsecond\n"
    assert run(suite).returncode == 0


def test_change_fails_with_a_diff_and_writes_nothing(suite: Path) -> None:
    recorded = suite / "golden" / "text.txt"
    recorded.parent.mkdir()
    recorded.write_text("first\nthird\n", encoding="utf-8")
    changed = run(suite)
    assert changed.returncode == 1
    assert "-third\n+second" in changed.stdout
    assert recorded.read_text(encoding="utf-8") == "first\nthird\n"
