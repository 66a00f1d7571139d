"""No request waits for a kernel to be compiled; what a GPU would compile is found out on a machine that has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.kernels.dispatch import HAS_TRITON, INTERPRETED

SCRIPT = Path(__file__).parents[1] / "support" / "specialised_kernels.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="nothing is compiled there"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kernel_that_requests_need_is_compiled_at_start(dtype, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(tmp_path), dtype], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads(finished.stdout)
    assert found["num_kernels"] > 30
    assert found["news"] == []
