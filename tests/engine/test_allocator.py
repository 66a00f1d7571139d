"""Libraries under the engine keep little of what they have finished with, and the user's own settings hold."""

import os
import subprocess
import sys

import pytest

from specdec.allocator import CACHE_BOUNDS

PRODUCTS = """
import specdec
import psutil, torch
from specdec.allocator import return_free_pages
from specdec.linear import PackedLinear, linear_method

weight = torch.zeros(960, 576, dtype=torch.bfloat16)
method = linear_method(exact=False, dtype=weight.dtype, device=weight.device)
if not isinstance(method, PackedLinear):
    print("unsupported")
    raise SystemExit
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
    clean = {name: value for name, value in os.environ.items() if name not in CACHE_BOUNDS}
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | settings, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_products_of_ever_new_shapes_take_no_more_memory():
    grown_mb = run(PRODUCTS)
    if grown_mb == "unsupported":
        pytest.skip("this processor has another product")
    assert float(grown_mb) < 60
    # What is bounded: without, each shape keeps more than half a megabyte.
    unbounded = dict.fromkeys(CACHE_BOUNDS, "1024")
    assert float(run(PRODUCTS, **unbounded)) > 200


IN_USE = """
import ctypes
import specdec
import torch
from specdec.linear import PackedLinear, linear_method

libc = ctypes.CDLL(None)
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
Mallinfo2 = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields.split()]})

def in_use_mb():
    libc.mallinfo2.restype = Mallinfo2
    info = libc.mallinfo2()
    return (info.uordblks + info.hblkhd) / 1e6

weight = torch.zeros(960, 576, dtype=torch.bfloat16)
method = linear_method(exact=False, dtype=weight.dtype, device=weight.device)
if not isinstance(method, PackedLinear) or not hasattr(libc, "mallinfo2"):
    print("unsupported")
    raise SystemExit
packed = method.prepare(weight)
x = torch.zeros(400, 576, dtype=torch.bfloat16)
method.apply(x[:1], packed, None)
first = in_use_mb()
for num_rows in range(2, 400):
    method.apply(x[:num_rows], packed, None)
print(in_use_mb() - first)
"""


def test_what_is_kept_of_products_is_tens_of_megabytes_and_each_once():
    kept_mb = run(IN_USE)
    if kept_mb == "unsupported":
        pytest.skip("this processor has another product, or the C library does not count")
    assert float(kept_mb) < 80
    assert float(run(IN_USE, LRU_CACHE_CAPACITY="160")) > float(kept_mb) + 10


@pytest.mark.parametrize("name", CACHE_BOUNDS)
def test_a_bound_that_the_user_has_set_holds(name):
    program = f"import os, specdec; print(os.environ[{name!r}])"
    assert run(program) == str(CACHE_BOUNDS[name])
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


ARENAS = """
import ctypes, os, tempfile, threading
from specdec.allocator import share_one_arena

libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):
    print("unsupported")
    raise SystemExit
share_one_arena()
libc.malloc.restype = ctypes.c_void_p
all_allocate = threading.Barrier(4)

def allocate():
    all_allocate.wait()
    libc.malloc(100_000)
    all_allocate.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    opened = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, opened)
    libc.fclose(opened)
    print(file.read().count(b"<heap "))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_the_threads_of_an_engine_share_one_arena_unless_the_user_says_otherwise():
    num_arenas = run(ARENAS)
    if num_arenas == "unsupported":
        pytest.skip("another C library")
    assert num_arenas == "1"
    assert run(ARENAS, MALLOC_ARENA_MAX="4") == "4"


MAPPED = """
import ctypes
from specdec.allocator import LARGE_BLOCK_BYTES, map_large_blocks

libc = ctypes.CDLL(None)
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
Mallinfo2 = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields.split()]})
if not hasattr(libc, "mallinfo2"):
    print("unsupported")
    raise SystemExit
libc.mallinfo2.restype = Mallinfo2
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
map_large_blocks()
# By itself glibc takes what was mapped and freed once for small from then on.
libc.free(libc.malloc(4 * LARGE_BLOCK_BYTES))
num_mapped = libc.mallinfo2().hblks
large = libc.malloc(LARGE_BLOCK_BYTES)
num_mapped = libc.mallinfo2().hblks - num_mapped
# Nothing but them is allocated here, so that they are the arena's end.
small = [0] * 16
arena = libc.mallinfo2().arena
for i in range(16):
    small[i] = libc.malloc(LARGE_BLOCK_BYTES // 2)
grown = libc.mallinfo2().arena - arena
for i in range(16):
    libc.free(small[i])
kept = libc.mallinfo2().arena - arena
print(num_mapped, int(kept > grown // 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_large_blocks_stay_out_of_the_arena_which_keeps_its_end_unless_the_user_says_otherwise():
    said = run(MAPPED)
    if said == "unsupported":
        pytest.skip("another C library")
    assert said.split() == ["1", "1"]
    for setting in ({"MALLOC_MMAP_THRESHOLD_": "33554432"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}):
        assert run(MAPPED, **setting).split()[0] == "0"
    # The arena then ends where the user says.
    assert run(MAPPED, MALLOC_TRIM_THRESHOLD_="131072").split() == ["1", "0"]
