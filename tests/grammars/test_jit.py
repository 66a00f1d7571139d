"""Machine code where nothing can be written: it is compiled anew, with a warning, and runs."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, resource, sys
logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(levelname)s %(message)s")
if sys.argv[1] == "full":
    # As on a full disk, no byte can be written to a file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from specdec.grammars.jit import compiled

def plus(a, b):
    return a + b

def minus(a, b):
    return a - b

print(compiled(plus, "int64(int64, int64)")(2, 3), compiled(minus, "int64(int64, int64)")(2, 3))
"""


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """What the program prints, line by line, with a cache in this folder."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(cache, disk="sound"):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
        command = [sys.executable, str(program), disk]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.splitlines()

    return run


def test_machine_code_is_kept_where_it_can_be(printed, tmp_path):
    assert printed(tmp_path / "cache") == ["5 -1"]
    assert len([*(tmp_path / "cache").rglob("*.nbc")]) == 2


def test_on_a_full_disk_one_warning_says_that_it_is_not_kept(printed, tmp_path):
    *warnings, result = printed(tmp_path / "cache", "full")
    assert result == "5 -1"
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING machine code cannot be kept on disk")
    assert "NUMBA_CACHE_DIR" in warnings[0]
