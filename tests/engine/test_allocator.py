"""Libraries under the engine keep little of what they have finished with, and the user's own settings hold."""

import os
import subprocess
import sys

import pytest

from specdec.allocator import NUM_PRIMITIVES

CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
PRODUCTS = """
import specdec
import psutil, torch
from specdec.allocator import return_free_pages
from specdec.linear import PackedLinear

weight = torch.zeros(960, 576, dtype=torch.bfloat16)
if not PackedLinear.supports(weight):
    print("unsupported")
    raise SystemExit
method = PackedLinear()
packed = method.prepare(weight)
x = torch.zeros(900, 576, dtype=torch.bfloat16)

def resident_mb():
    return_free_pages()
    return psutil.Process().memory_info().rss / 1e6

for num_rows in range(1, 280):
    method.apply(x[:num_rows], packed, None)
settled = resident_mb()
for num_rows in range(280, 900):
    method.apply(x[:num_rows], packed, None)
print(resident_mb() - settled)
"""


def run(program, **settings):
    clean = {name: value for name, value in os.environ.items() if name not in CACHES}
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | settings, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_products_of_ever_new_shapes_take_no_more_memory():
    grown_mb = run(PRODUCTS)
    if grown_mb == "unsupported":
        pytest.skip("this processor has no packed product")
    assert float(grown_mb) < 60
    # What is bounded: without, each shape keeps more than half a megabyte.
    unbounded = dict.fromkeys(CACHES, "1024")
    assert float(run(PRODUCTS, **unbounded)) > 200


@pytest.mark.parametrize("name", CACHES)
def test_a_bound_that_the_user_has_set_holds(name):
    program = f"import os, specdec; print(os.environ[{name!r}])"
    assert run(program) == str(NUM_PRIMITIVES)
    assert run(program, **{name: "7"}) == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_free_memory_between_blocks_in_use_goes_back():
    program = """
import ctypes, psutil
from specdec.allocator import return_free_pages
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_trim"):
    print("unsupported")
    raise SystemExit
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(64_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 64_000)
for block in blocks[::2]:
    libc.free(block)
before = psutil.Process().memory_info().rss
return_free_pages()
print((before - psutil.Process().memory_info().rss) / 1e6)
"""
    returned_mb = run(program)
    if returned_mb == "unsupported":
        pytest.skip("another C library")
    assert float(returned_mb) > 50
