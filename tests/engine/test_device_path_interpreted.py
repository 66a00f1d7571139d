"""The GPU path once more, with its kernels in Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.kernels.dispatch import HAS_TRITON, INTERPRETED

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the run in the interpreter")
@pytest.mark.skipif(not HAS_TRITON, reason="there is no triton on this platform")
def test_the_interpreted_kernels_answer_as_the_cpu_path_does():
    pytest_here = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    names = (
        "device_path",
        "device_sampling",
        "captured_sampling",
        "captured_drafting",
        "graphed_engine",
        "device_drafts",
    )
    files = [str(HERE / f"test_{name}.py") for name in names]
    finished = subprocess.run(
        [*pytest_here, *files],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    closing_line = finished.stdout.strip().splitlines()[-1]
    passed = re.fullmatch(r"(\d+) passed, \d+ deselected in .*", closing_line)
    assert passed, f"something was skipped: {closing_line}"
    assert int(passed[1]) >= 20
