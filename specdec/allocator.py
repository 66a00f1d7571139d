"""What the libraries under an engine may keep of the memory that they have finished with.

Every step packs another number of tokens, and to oneDNN each shape of a product is another primitive. torch keeps
1,024 of them, twice, of up to a megabyte each, and lays them between the tensors of the steps, whose memory then
cannot be given back. Under mixed load at 64 at once an engine of SmolLM2-135M grew by 183 MB a minute, to more than
a gigabyte over what it needs. A product whose primitive has to be made again takes some 0.2 ms longer.

What is free between blocks in use goes back from time to time. To have large blocks mapped one by one instead would
cost up to a quarter of the speed in page faults: every step has logits and activations of megabytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

NUM_PRIMITIVES: Final = 256
"""Room for the shapes of a busy server, which PackedLinear rounds to few. Fewer than a step has, one for each shape
of a weight, would be made again in each layer."""


def bound_primitives() -> None:
    """Bound oneDNN's caches, unless the user has; only works before torch is imported."""
    if "torch" not in sys.modules:
        for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
            os.environ.setdefault(name, str(NUM_PRIMITIVES))


def return_free_pages() -> None:
    """Give whole pages that are free, between blocks in use too, back to the system: some 5 ms. With glibc alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
