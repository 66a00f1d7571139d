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
from specdec.linear import PackedLinear

weight = torch.zeros(960, 576, dtype=torch.bfloat16)
if not PackedLinear.supports(weight):
    print("unsupported")
    raise SystemExit
method = PackedLinear()
packed = method.prepare(weight)
x = torch.zeros(600, 576, dtype=torch.bfloat16)

def resident_mb():
    return psutil.Process().memory_info().rss / 1e6

for num_rows in range(1, 100):
    method.apply(x[:num_rows], packed, None)
settled = resident_mb()
for num_rows in range(100, 600):
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
    assert float(grown_mb) < 120
    # What is bounded: without, each shape keeps more than half a megabyte.
    unbounded = dict.fromkeys(CACHES, "1024")
    assert float(run(PRODUCTS, **unbounded)) > 200


@pytest.mark.parametrize("name", CACHES)
def test_a_bound_that_the_user_has_set_holds(name):
    program = f"import os, specdec; print(os.environ[{name!r}])"
    assert run(program) == str(NUM_PRIMITIVES)
    assert run(program, **{name: "7"}) == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_the_memory_of_a_large_block_goes_back_when_it_does():
    program = """
import ctypes, specdec.allocator as allocator
allocator.return_large_blocks()
libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    print(0)
    raise SystemExit
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h mapped u f used free k".split()]
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
# A freed block raises glibc's own threshold: the next one would come from an arena.
libc.free(libc.malloc(12 << 20))
held = libc.malloc(12 << 20)
mapped = libc.mallinfo2().mapped
libc.free(held)
print(mapped >> 20, libc.mallinfo2().mapped >> 20)
"""
    held, after = map(int, run(program).split())
    assert held - after == 12
