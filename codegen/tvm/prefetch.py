"""Asking for memory before it is needed."""

from __future__ import annotations

AHEAD = 8192  # bytes: two small pages, what a core reads in some 200 ns

_SYMBOL = "smelt_prefetch"
TEXT = f"""define linkonce_odr i32 @{_SYMBOL}(ptr %p) alwaysinline {{
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 3, i32 1)
  ret i32 0
}}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
"""


def prefetch_text(element: str) -> str:
    """The text of a prefetch of an element of a buffer, which may lie past its end."""
    return f'T.call_extern("int32", "{_SYMBOL}", T.address_of({element}))'
