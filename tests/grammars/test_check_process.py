"""The check in a process of its own: it answers as the check does, ends on its deadline, and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from specdec.grammars.check_process import CheckNotMadeError, CheckProcess, CheckTimeoutError
from specdec.grammars.constraints import Choice, JsonSchema, Regex
from specdec.grammars.options import SchemaOptions

# Python's re tries 2**40 ways to read the a's before it takes the second branch.
SLOW = Regex(pattern="(?:a+)+b|a*")
SLOW_TEXT = "a" * 40
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def process() -> Iterator[CheckProcess]:
    process = CheckProcess()
    yield process
    process.close()
    process.release()


def once_at_work(process: CheckProcess, do: Callable[[], object]) -> None:
    """Do something when the process, which is idle now, has taken a check that does not end."""
    cpu_times = psutil.Process(process._process.pid).cpu_times
    idle_s = cpu_times().user

    def watch() -> None:
        while cpu_times().user < idle_s + 0.1:
            time.sleep(0.01)
        do()

    threading.Thread(target=watch, daemon=True).start()


def test_verdicts_are_those_of_the_check(process: CheckProcess) -> None:
    big = JsonSchema(schema='{"$ref":"urn:n"}', options=SchemaOptions(documents={"urn:n": {"const": 10**40}}))
    for constraint, right, wrong in (
        (JsonSchema(schema='{"type":"string"}'), '"\u2028\U0001f600"', "1"),
        (Choice(choices=("a\nb", "")), "a\nb", "a"),
        (big, str(10**40), str(10**40 + 1)),
    ):
        for _ in range(2):
            assert process.violation(constraint, right, deadline_s=120) is None
            assert process.violation(constraint, wrong, deadline_s=120) is not None
    with pytest.raises(CheckNotMadeError, match="re does not read") as unjudgeable:
        process.violation(Regex(pattern="\\p{L}"), "a", deadline_s=120)
    assert not isinstance(unjudgeable.value, CheckTimeoutError)


def test_a_check_that_takes_too_long_is_ended_and_the_next_one_is_made(process: CheckProcess) -> None:
    process.start()
    with pytest.raises(CheckTimeoutError, match=r"more than 0\.3 s"):
        process.violation(SLOW, SLOW_TEXT, deadline_s=0.3)
    assert process.violation(SLOW, "aab", deadline_s=120) is None


def test_a_process_that_dies_costs_one_check(process: CheckProcess) -> None:
    process.start()
    once_at_work(process, lambda: os.kill(process._process.pid, signal.SIGKILL))
    with pytest.raises(CheckNotMadeError, match="status -9") as died:
        process.violation(SLOW, SLOW_TEXT, deadline_s=240)
    assert not isinstance(died.value, CheckTimeoutError)
    assert process.violation(SLOW, "aab", deadline_s=120) is None


def test_close_ends_a_check_in_progress_and_starts_no_other() -> None:
    process = CheckProcess()
    process.start()
    once_at_work(process, process.close)
    with pytest.raises(CheckNotMadeError):
        process.violation(SLOW, SLOW_TEXT, deadline_s=240)
    with pytest.raises(CheckNotMadeError, match="closed"):
        process.violation(SLOW, "aab", deadline_s=240)
    process.release()


def test_the_asking_side_imports_no_validator() -> None:
    program = (
        "import sys, specdec.grammars, specdec.grammars.check_process\n"
        "print([name for name in ('jsonschema', 'torch', 'numba') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-P", "-c", program], text=True).strip() == "[]"
