"""An engine on a full disk: machine code that cannot be kept is a warning, not a failure."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, resource, sys
logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(levelname)s %(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
if __name__ == "__main__":
    from specdec import Engine, EngineConfig, SamplingParams

    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    engine = Engine(EngineConfig(model=sys.argv[1], num_kv_blocks=200))
    [output] = engine.generate(["Hello"], SamplingParams(max_tokens=30), output_type=schema)
    print(output.text)
    engine.close()
"""


@pytest.mark.slow
def test_an_engine_whose_caches_cannot_be_written_starts_with_a_warning_and_answers(tiny_model_folder, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    finished = subprocess.run(
        [sys.executable, str(program), str(tiny_model_folder)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    *warnings, answer = finished.stdout.splitlines()
    assert answer == '{"a":1}'
    assert [line for line in warnings if line.startswith("WARNING machine code cannot be kept on disk")]
    assert not [*(tmp_path / "cache").rglob("*.nbc")]
