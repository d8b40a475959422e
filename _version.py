"""The version of smelt."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def read_version() -> str:
    """The version of the installed package, or that of the checkout where smelt is imported without an install."""
    try:
        return version("smelt")
    except PackageNotFoundError:
        pyproject = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))
        return str(pyproject["project"]["version"])


__version__ = read_version()
