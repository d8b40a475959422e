"""What code is generated for, as it is kept between processes: found and read without PyTorch or TVM."""

from __future__ import annotations

from typing import NamedTuple


class Processor(NamedTuple):
    """A processor as code is generated for it: LLVM's name, and the features in order of the alphabet."""

    name: str
    features: tuple[str, ...]
