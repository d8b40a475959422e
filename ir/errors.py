"""The errors that smelt raises on purpose. Each message says what was found and what to do next."""

from __future__ import annotations


class SmeltError(Exception):
    """Base of every error that smelt raises on purpose."""


class TypeRuleError(SmeltError, TypeError):
    """An operator was applied to operands that its type rule refuses."""


class BroadcastError(TypeRuleError):
    """Two sizes of one axis differ, and neither is 1.

    Attributes:
        left, right: the sizes.
    """

    def __init__(self, left: object, right: object) -> None:
        super().__init__(f"cannot broadcast a dim of {left} with one of {right}")
        self.left, self.right = left, right


class GraphError(SmeltError, ValueError):
    """A graph breaks an invariant that ``ir.verify`` holds."""


class ParseError(SmeltError, ValueError):
    """IR text that cannot be read; the message gives line and column."""


class CaptureError(SmeltError, RuntimeError):
    """A model could not be captured."""


class InputError(SmeltError, TypeError):
    """A call's arguments do not fit the model: number, dtype, rank, size or device.

    ``place`` is the name of the argument and the number of the dim that do not fit, where it is a size of one.
    """

    place: tuple[str, int] | None = None


class UnsupportedError(SmeltError, RuntimeError):
    """Something that smelt knows of and does not do, where falling back was not allowed."""


class VerifyError(SmeltError, AssertionError):
    """A result broke the numeric contract; the message names the worst output."""


class CheckError(VerifyError):
    """A step of the compiler changed what the model means; found by ``compile(check=...)``.

    Attributes:
        number: the application that is wrong, counted from 1; None where a whole pass or kernel is.
        rule: its rule, or the pass or kernel.
    """

    def __init__(self, message: str, rule: str = "", number: int | None = None) -> None:
        super().__init__(message)
        self.rule, self.number = rule, number


class ExpectationError(SmeltError, AssertionError):
    """A compiled model is not what ``compile(..., expect=...)`` said; the message tells what was found."""


class BackendError(SmeltError, RuntimeError):
    """A backend is missing or refused a kernel."""


class QuantizationError(SmeltError, ValueError):
    """What ``compile(quantize=...)`` asks for is not possible; the message says what is."""


class CacheError(SmeltError, RuntimeError):
    """The kernel cache cannot be used where it must be."""


class ArtifactError(SmeltError, ValueError):
    """An artifact is damaged, cannot be written or read, or was closed; the message says what was found."""
