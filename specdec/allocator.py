"""What the libraries under an engine may keep of the memory that they have finished with.

Every step packs another number of tokens, and to oneDNN each shape of a product is another primitive, of 0.6 MB with
its machine code. oneDNN keeps 1,024 of them and torch, which asks oneDNN each time all the same, as many; they lie
between the tensors of the steps, whose memory then cannot be given back. Under mixed load at 64 at once an engine of
SmolLM2-135M grew by 183 MB a minute, to more than a gigabyte over what it needs. A product whose primitive has to be
made again takes 0.4 ms longer.

glibc gives the threads of a process up to eight arenas a processor, each in pieces of 64 MB that the tensors of a step
fill badly, and what one has free is of no use to another. One arena is enough where Python's lock lets one thread
allocate at a time.

In an arena large blocks leave large holes; what is small and stays is then put into them, and the next large block
finds no place: under mixed load at 64 at once the arena grew by 50 MB a minute, on and on, of which what lay between
took ever more pages. Large blocks are therefore mapped one by one. That costs page faults, up to a quarter of the
speed if every layer did it, so what is large and needed in each layer has its buffer (gather_buffer.py,
logits_buffer.py). What is free between blocks in use goes back from time to time.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Final

CACHE_BOUNDS: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 160, "LRU_CACHE_CAPACITY": 16}
"""oneDNN's holds the products of some sixteen numbers of rows, about 50 MB: all that decode a few sequences with
drafts. More sequences take steps so long that a few primitives made anew do not matter. A busy server has filled it
within a minute. What torch's holds saves no time where oneDNN's has it too."""
LARGE_BLOCK_BYTES: Final = 4 * 2**20
"""From here on blocks are mapped one by one: more than an activation of SmolLM2-135M takes for 512 tokens."""
_FREE_TOP_BYTES: Final = 64 * 2**20
"""What may be free at the arena's end before it is given back at once: what glibc comes to by itself where it is
free to choose what is large."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Of malloc.h."""


def bound_primitives() -> None:
    """Bound oneDNN's caches, unless the user has; only works before torch is imported."""
    if "torch" not in sys.modules:
        for name, capacity in CACHE_BOUNDS.items():
            os.environ.setdefault(name, str(capacity))


def share_one_arena() -> None:
    """Allocate for all threads from one arena, unless the user has said; before there are threads. With glibc alone."""
    if not _has_user_set("MALLOC_ARENA_MAX", "arena_max"):
        _set_malloc(_M_ARENA_MAX, 1)


def map_large_blocks() -> None:
    """Keep large blocks out of the arena, unless the user has said what is large. With glibc alone."""
    if not _has_user_set("MALLOC_MMAP_THRESHOLD_", "mmap_threshold"):
        _set_malloc(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        # glibc leaves this at 128 KiB once the other is set: every step would give its memory back and ask for it anew.
        if not _has_user_set("MALLOC_TRIM_THRESHOLD_", "trim_threshold"):
            _set_malloc(_M_TRIM_THRESHOLD, _FREE_TOP_BYTES)


def _has_user_set(variable: str, tunable: str) -> bool:
    return variable in os.environ or f"glibc.malloc.{tunable}=" in os.environ.get("GLIBC_TUNABLES", "")


def _set_malloc(parameter: int, value: int) -> None:
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def return_free_pages() -> None:
    """Give whole pages that are free, between blocks in use too, back to the system: some 5 ms. With glibc alone."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _c_library() -> ctypes.CDLL | None:
    """Looked up once: each that is made leaves cycles to the garbage collector."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
