"""The errors of the command line, apart from what raises them, so that `smelt --help` loads nothing else."""

from __future__ import annotations

from ..ir.errors import SmeltError


class ModelError(SmeltError, ValueError):
    """A model that a command was given does not exist or is not what a command takes."""


class UserCodeError(SmeltError):
    """Code that is not ours raised while a model was imported or made; the text is its traceback."""


class MissingPackageError(SmeltError, ImportError):
    """A command needs a package that is not installed; the message holds the command that installs it."""


class RuleNameError(SmeltError, ValueError):
    """A rule that a command was given does not exist."""
