"""Fixtures of the frontend's tests."""

from collections.abc import Callable

import pytest

from smelt.frontend.capture import Capture

from .calls import check_calls


@pytest.fixture
def check() -> Callable[..., Capture]:
    """`check(model, *calls)` captures the first call's arguments and compares every call with eager."""
    return check_calls
