"""What a function's code is, apart from where it stands: its digest, and the names that it uses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from types import CodeType
from typing import Any

# A name, a dotted name, or what may be one of an environment variable.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,79}")
# by identity: code objects are equal that differ in a constant 0.0 or -0.0
_known: dict[int, tuple[CodeType, tuple[str, frozenset[str], frozenset[str]]]] = {}


def digest_of(code: CodeType) -> str:
    """The digest of instructions, constants, names and arguments; not of lines and files."""
    return _facts(code)[0]


def names_of(code: CodeType) -> frozenset[str]:
    """Every name that the code, and what is nested in it, may look up in its module, a class or an object."""
    return _facts(code)[1]


def words_of(code: CodeType) -> frozenset[str]:
    """The names, and every string constant that could be one: ``getattr`` and ``os.environ`` take them."""
    return _facts(code)[2]


def _facts(code: CodeType) -> tuple[str, frozenset[str], frozenset[str]]:
    found = _known.get(id(code))
    if found is None or found[0] is not code:
        found = _known[id(code)] = (code, _read(code))
    return found[1]


def _read(code: CodeType) -> tuple[str, frozenset[str], frozenset[str]]:
    hashed = hashlib.sha256()
    names: set[str] = set()
    words: set[str] = set()
    for one in _nested(code):
        head = (one.co_argcount, one.co_posonlyargcount, one.co_kwonlyargcount, one.co_flags, one.co_name)
        used = (one.co_names, one.co_varnames, one.co_freevars, one.co_cellvars)
        hashed.update(repr((head, used)).encode("utf-8", "surrogatepass"))
        hashed.update(one.co_code + b"|" + one.co_exceptiontable)
        for constant in one.co_consts:
            hashed.update(_constant(constant).encode("utf-8", "surrogatepass"))
        names.update(one.co_names)
        words.update(word for text in _strings(one.co_consts) for word in text.split(".") if _NAME.fullmatch(text))
    return hashed.hexdigest(), frozenset(names), frozenset(words | names)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _strings(constants: tuple[Any, ...]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _strings(tuple(constant))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return "code"  # it follows
    if isinstance(value, tuple):
        return f"({','.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_constant, value)))}}}"
    return f"{type(value).__name__}:{value.hex() if isinstance(value, float) else value!r}"
