"""The kernel tests once more, in Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.kernels.dispatch import HAS_TRITON, INTERPRETED

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BACKEND = ROOT / "tests" / "engine" / "test_triton_attention.py"
NOT_INTERPRETED = [Path(__file__), HERE / "test_compilation.py"]


@pytest.mark.skipif(INTERPRETED, reason="this is the run in the interpreter")
@pytest.mark.skipif(not HAS_TRITON, reason="there is no triton on this platform")
@pytest.mark.parametrize(
    ("markers", "at_least"),
    [("not slow and not gpu", 500), pytest.param("slow and not gpu", 13, marks=pytest.mark.slow)],
)
def test_every_kernel_equals_its_reference_in_the_interpreter(markers, at_least):
    pytest_here = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", markers]
    finished = subprocess.run(
        [
            *pytest_here,
            f"--confcutdir={HERE}",
            *(f"--ignore={path}" for path in NOT_INTERPRETED),
            str(HERE),
            str(BACKEND),
        ],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    closing_line = finished.stdout.strip().splitlines()[-1]
    passed = re.fullmatch(r"(\d+) passed, \d+ deselected in .*", closing_line)
    assert passed, f"something was skipped: {closing_line}"
    assert int(passed[1]) >= at_least


@pytest.mark.skipif(INTERPRETED, reason="the interpreter needs triton")
def test_the_cpu_path_imports_no_triton():
    program = (
        "import sys, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "sys.modules['triton'] = None\n"  # import triton raises from here on
        "from specdec.kernels.kv_store import kv_store\n"
        "from specdec.kernels.token_mask import apply_token_mask\n"
        "logits = torch.zeros(1, 40)\n"
        "apply_token_mask(logits, torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([0]))\n"
        "assert logits.isfinite().sum() == 1\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    python = [sys.executable, "-P", "-W", "error", "-c", program]
    subprocess.run(python, env=environment, check=True, timeout=120)
