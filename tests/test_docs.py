"""What the documents say of files is true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


DOCUMENTS = ["README.md", "SECURITY.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`([\w/.-]+(?:/|\.(?:py|md|toml|txt)))`", text)
    # Names of files that a command would write, or that a reader's own project holds, have no folder.
    missing = [name for name in named if "/" in name and not (ROOT / name).exists()]
    assert missing == []


def test_the_layout_names_every_folder_with_code() -> None:
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/**/__init__.py")}
    folders = {folder for folder in folders if folder.split("/")[0] not in ("build", "tests")}
    assert [folder for folder in sorted(folders) if f"{folder}/" not in text] == []
