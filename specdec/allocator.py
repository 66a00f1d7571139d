"""What the libraries under an engine may keep of the memory that they have finished with.

Every step packs another number of tokens, and to oneDNN each shape of a product is another primitive, of 0.6 MB with
its machine code. oneDNN keeps 1,024 of them and torch, which asks oneDNN each time all the same, as many; they lie
between the tensors of the steps, whose memory then cannot be given back. Under mixed load at 64 at once an engine of
SmolLM2-135M grew by 183 MB a minute, to more than a gigabyte over what it needs. A product whose primitive has to be
made again takes 0.4 ms longer.

glibc gives the threads of a process up to eight arenas a processor, each in pieces of 64 MB that the tensors of a step
fill badly, and what one has free is of no use to another. One arena is enough where Python's lock lets one thread
allocate at a time.

What is free between blocks in use goes back from time to time. To have large blocks mapped one by one instead would
cost up to a quarter of the speed in page faults: every step has logits and activations of megabytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

CACHE_BOUNDS: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 160, "LRU_CACHE_CAPACITY": 16}
"""oneDNN's holds the products of some sixteen numbers of rows, about 50 MB: all that decode a few sequences with
drafts. More sequences take steps so long that a few primitives made anew do not matter. A busy server has filled it
within a minute. What torch's holds saves no time where oneDNN's has it too."""
_M_ARENA_MAX: Final = -8
"""Of malloc.h."""


def bound_primitives() -> None:
    """Bound oneDNN's caches, unless the user has; only works before torch is imported."""
    if "torch" not in sys.modules:
        for name, capacity in CACHE_BOUNDS.items():
            os.environ.setdefault(name, str(capacity))


def share_one_arena() -> None:
    """Allocate for all threads from one arena, unless the user has said; before there are threads. With glibc alone."""
    has_said = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not has_said:
        mallopt(_M_ARENA_MAX, 1)


def return_free_pages() -> None:
    """Give whole pages that are free, between blocks in use too, back to the system: some 5 ms. With glibc alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
