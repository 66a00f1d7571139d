"""What Triton makes of the kernels for an H100, on a machine that has none; whether they are right, others say.

What a compiler alone refuses, the interpreter lets pass, and it says nothing of shared memory and matrix units.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.kernels.dispatch import HAS_TRITON, INTERPRETED

ROOT = Path(__file__).parents[2]
SHARED_BYTES = 99 * 1024
"""That a program may have on a GPU of compute capability 8.6 or 8.9, the least of those that can be had."""
HOPPER_BYTES = 227 * 1024
"""On one of 9.0."""
NOISY = {"_summarise_kernel", "_choose_kernel", "_draw_kernel", "_penalties_kernel"}
"""Kernels whose numbers have the same bits on every device."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="nothing is compiled there"),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Of each kernel in each case of compiled_kernels.py."""
    script = ROOT / "tests" / "support" / "compiled_kernels.py"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    finished = subprocess.run(
        [sys.executable, "-P", str(script), "90"], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


def of_attention(reports, *, dtype):
    kernels = [each for each in reports if each["kernel"] == "paged_attention_kernel"]
    return [each for each in kernels if (each["case"] == "prompt, fp32") == (dtype == "fp32")]


def test_every_kernel_is_compiled(reports):
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "kernels").glob("*.py")]
    kernels = {name for source in sources for name in re.findall(r"def (\w+_kernel)\(", source)}
    assert {each["kernel"] for each in reports} == kernels


def test_no_program_has_more_shared_memory_than_there_is(reports):
    too_large = [
        (each["case"], each["shared_bytes"])
        for each in reports
        # What runs on one kind of device alone may have all of its.
        if each["shared_bytes"] > (HOPPER_BYTES if each["kernel"] == "_few_row_linear_kernel" else SHARED_BYTES)
    ]
    assert too_large == []


def test_products_and_sums_of_noise_are_never_fused(reports):
    noisy = [each for each in reports if each["kernel"] in NOISY]
    assert {each["kernel"] for each in noisy} == NOISY
    assert not any(each["is_fused"] or each["num_fused"] for each in noisy)


def test_attention_in_half_precision_multiplies_matrices_and_loads_the_next_keys_meanwhile(reports):
    halves = of_attention(reports, dtype="half")
    assert len(halves) > 6
    assert all(each["num_products"] and each["num_async_copies"] for each in halves)


def test_stages_and_warps_are_those_of_the_tiling(reports):
    own, other = (
        next(each for each in of_attention(reports, dtype="half") if each["case"] == case)
        for case in ("decode", "decode, 3 stages, 8 warps")
    )
    assert (own["num_warps"], other["num_warps"]) == (4, 8)
    assert other["shared_bytes"] > own["shared_bytes"], "two tiles of keys and values at once"


def test_attention_in_full_precision_is_not_cut_to_what_matrix_units_take(reports):
    (full,) = of_attention(reports, dtype="fp32")
    assert full["num_products"] == 0


def test_grids_are_within_what_a_launch_takes(reports):
    assert all(size <= 65535 for each in reports for size in each["grid"][1:])
