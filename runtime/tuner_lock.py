"""``smelt.lock``: the schedules that a project is compiled with, as a file that is kept with its sources."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..ir.errors import CacheError
from .cache import CacheWarning
from .tuner_records import FORMAT, Choice, record_from_dict, record_to_dict

LOCK = "smelt.lock"


def read_lock(path: Path) -> list[Choice]:
    """The choices in a lock file; none where there is no such file, or it is damaged, which is said."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("not a lock of this format")
        found = [record_from_dict(one) for one in data["choices"]]
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is not used ({error}): make it again with smelt tune --lock", CacheWarning, stacklevel=2)
        return []
    return [one for one in found if isinstance(one, Choice)]


def write_lock(path: Path, choices: Sequence[Choice]) -> None:
    """Write choices to a lock file, by renaming, so that a reader finds all or nothing.

    Raises:
        CacheError: it cannot be written.
    """
    ordered = sorted(choices, key=lambda c: (c.kernel, c.key, sorted(c.sizes.items())))
    text = json.dumps({"format": FORMAT, "choices": [record_to_dict(c) for c in ordered]}, indent=1) + "\n"
    try:
        handle, name = tempfile.mkstemp(prefix=".new-", dir=path.absolute().parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError as error:
        raise CacheError(f"{path} cannot be written: {error.strerror}") from error
