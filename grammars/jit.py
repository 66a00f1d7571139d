"""Compiling a plain Python function with numba: ahead of its first call, without the GIL, cached on disk."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


# numba ships no types, and what is compiled may have any signature.
def compiled(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """The function as machine code for these types."""
    # Importing numba takes half a second, which those who only want the errors' names need not pay.
    import numba  # noqa: PLC0415

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except (RuntimeError, OSError) as error:
        # No folder for the cache can be written, of a read-only installation or on a full disk.
        _warn_once(f"{type(error).__name__}: {error}")
        return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning(
        "machine code cannot be kept on disk (%s): every start compiles it again; free space, or name a folder that "
        "can be written by NUMBA_CACHE_DIR",
        reason,
    )
