"""The tokens of graph text, and a cursor over them that knows where each one stands."""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from .errors import ParseError

_PATTERN = re.compile(
    r"""
      (?P<space>[ \t\r\n]+ | \#[^\n]*)
    | (?P<value>%[A-Za-z0-9_.]+)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<float>[0-9]+\.[0-9]*(?:e[+-]?[0-9]+)? | [0-9]+e[+-]?[0-9]+)
    | (?P<int>[0-9]+)
    | (?P<word>[A-Za-z_][A-Za-z0-9_.]*)
    | (?P<sign>\*\*|//|[-+*/=:,(){}\[\]$])
    """,
    re.VERBOSE | re.ASCII,
)
MAX_DIGITS = 4000  # Python refuses to convert more than 4300


class Token(NamedTuple):
    """A token: its kind (a group of the pattern, or ``end``), its text, and its offset in the whole text."""

    kind: str
    text: str
    offset: int


class Tokens:
    """A cursor over the tokens of a text: the ``next`` one, and the ``second`` behind it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = self._split()
        self._at = 0
        self.next = self._tokens[0]
        self.second = self._tokens[min(1, len(self._tokens) - 1)]

    def _split(self) -> list[Token]:
        tokens, offset = [], 0
        while offset < len(self.text):
            match = _PATTERN.match(self.text, offset)
            if match is None:
                self.fail(f"cannot read {self.text[offset : offset + 20].splitlines()[0]!r}", Token("", "", offset))
            if match.lastgroup != "space":
                tokens.append(Token(match.lastgroup or "", match.group(), offset))
            offset = match.end()
        return [*tokens, Token("end", "", offset)]

    def take(self) -> Token:
        """The next token, passed over."""
        token = self.next
        if token.kind != "end":
            self._at += 1
            self.next = self.second
            self.second = self._tokens[min(self._at + 1, len(self._tokens) - 1)]
        return token

    def accept(self, *texts: str) -> bool:
        """Pass over a sign or word if it comes next."""
        found = self.at(*texts)
        if found:
            self.take()
        return found

    def at(self, *texts: str) -> bool:
        """Whether one of these signs or words comes next."""
        return self.next.text in texts and self.next.kind in ("sign", "word")

    def expect(self, text: str) -> Token:
        """Pass over this sign or word; an error if another token comes next."""
        if not self.at(text):
            self.fail(f"expected {text!r}, found {self.found()}")
        return self.take()

    def expect_kind(self, kind: str, what: str) -> Token:
        """Pass over a token of this kind; an error, which calls it ``what``, if another comes next."""
        if self.next.kind != kind:
            self.fail(f"expected {what}, found {self.found()}")
        return self.take()

    def integer(self) -> int:
        """Pass over an unsigned integer."""
        token = self.expect_kind("int", "an integer")
        if len(token.text) > MAX_DIGITS:
            self.fail(f"an integer of {len(token.text)} digits", token)
        return int(token.text)

    def found(self) -> str:
        """The next token, for messages."""
        return "the end of the text" if self.next.kind == "end" else repr(self.next.text[:40])

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        """Raise the error at a token, the next one by default.

        Raises:
            ParseError: always.
        """
        before = self.text[: (token or self.next).offset]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise ParseError(f"line {line}, column {column}: {message}")
