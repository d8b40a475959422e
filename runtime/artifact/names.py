"""What may be named how in an artifact. Names are never paths, and none of them is ever run."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...ir.errors import ArtifactError

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"
_MEMBER = re.compile(rf"{_PART}(?:/{_PART}){{0,4}}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# of parameters, buffers and inputs: ``encoder.layer.0.weight``, ``states[0]["x"]``
_TENSOR = re.compile(r"""[A-Za-z0-9_.][A-Za-z0-9_.\[\]"'-]{0,255}""")


def member_name(name: object) -> str:
    """The name of a member, with ``/`` between its parts.

    Raises:
        ArtifactError: it is none.
    """
    if not isinstance(name, str) or not _MEMBER.fullmatch(name) or ".." in name:
        raise ArtifactError(f"{_brief(name)} cannot be the name of a member")
    return name


def identifier(name: object, what: str) -> str:
    """A name of letters, digits and underscores, of 64 at most: of an entry point, a size, a field.

    Raises:
        ArtifactError: it is none.
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise ArtifactError(f"{_brief(name)} cannot be {what}: give letters, digits and underscores")
    return name


def is_tensor_name(name: str) -> bool:
    """Whether an input or a weight may be called so."""
    return _TENSOR.fullmatch(name) is not None


def tensor_name(name: object) -> str:
    """The name of an input or a weight.

    Raises:
        ArtifactError: it is none.
    """
    if not isinstance(name, str) or not is_tensor_name(name):
        raise ArtifactError(f"{_brief(name)} cannot be the name of a tensor")
    return name


def plain_name(name: str, taken: Iterable[str], fallback: str) -> str:
    """The name itself where it may stand in an artifact and is free, another one made after ``fallback`` elsewhere."""
    used = set(taken)
    wanted = name if is_tensor_name(name) else fallback
    if wanted not in used:
        return wanted
    return next(made for i in range(2, len(used) + 3) if (made := f"{wanted[:240]}.{i}") not in used)


def _brief(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 60 else text[:57] + "..."
