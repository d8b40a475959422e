"""The errors of the command line, apart from what raises them, so that `smelt --help` loads nothing else."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import SmeltError


class ModelError(SmeltError, ValueError):
    """A model that a command was given does not exist or is not what a command takes."""


class UserCodeError(SmeltError):
    """Code that is not ours raised while a model was imported or made; the text is its traceback."""


class MissingPackageError(SmeltError, ImportError):
    """A command needs a package that is not installed; the message holds the command that installs it."""


class RuleNameError(SmeltError, ValueError):
    """A rule that a command was given does not exist."""


class OutputError(SmeltError, OSError):
    """A file cannot be written where a command was told to."""


def check_output(path: Path) -> None:
    """See before long work that its result can be written.

    Raises:
        OutputError: there is no such folder, or the path is a folder.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError(f"there is no folder {path.absolute().parent} to write {path.name} to")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
