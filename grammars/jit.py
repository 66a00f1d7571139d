"""Compiling a plain Python function with numba: ahead of its first call, without the GIL, cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


# numba ships no types, and what is compiled may have any signature.
def compiled(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """The function as machine code for these types."""
    # Importing numba takes half a second, which those who only want the errors' names need not pay.
    import numba  # noqa: PLC0415

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except (RuntimeError, OSError):
        # No folder for the cache can be written (a read-only installation): compile in memory only.
        return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]
