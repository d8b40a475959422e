"""Into how many parts parallel loops are cut: more than there are threads, so that one that is late holds nobody up."""

from __future__ import annotations

PARTS = 8  # for each thread
