"""What evals say while they run: a bar on a terminal, and lines where there is none."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from specdec.evals import progress
from specdec.evals.progress import progress_in_lines, progress_on

LINE = re.compile(r"work: (\d+)/4, \d:\d\d:\d\d elapsed(, about \d:\d\d:\d\d left)?(, .+)?")


def told(until, *, first_seconds=0.002, lines=None):
    """The lines of a run of four steps."""
    lines = [] if lines is None else lines
    with progress_in_lines("work", 4, lines.append, first_seconds=first_seconds) as steps:
        until(steps, lines)
    return lines


def wait_for(lines, number):
    deadline = time.monotonic() + 60
    while len(lines) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_lines_come_however_long_a_step_takes_and_say_what_is_done_what_is_left_and_what_runs():
    def two_steps(steps, lines):
        steps.note("the first [one]")
        # The one that is being written may be from before.
        wait_for(lines, len(lines) + 2)
        steps.advance()
        steps.advance()
        steps.note("the third")
        wait_for(lines, len(lines) + 2)

    lines = told(two_steps)
    found = [LINE.fullmatch(line).groups() for line in lines]
    assert [groups for groups in found if groups[0] == "0"][-1] == ("0", None, ", the first [one]")
    done, left, note = found[-1]
    assert (done, note) == ("2", ", the third")
    assert left


def test_the_last_line_says_that_all_is_done():
    def to_the_end(steps, lines):
        wait_for(lines, 1)
        steps.note("the last")
        for _ in range(4):
            steps.advance()

    assert LINE.fullmatch(told(to_the_end)[-1]).groups() == ("4", None, None)


def test_what_is_over_at_once_has_no_lines():
    assert told(lambda steps, lines: steps.advance(), first_seconds=600.0) == []


def test_lines_end_with_a_run_that_fails():
    lines = []

    def fail(steps, lines):
        wait_for(lines, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        told(fail, lines=lines)
    number = len(lines)
    time.sleep(0.05)
    assert len(lines) == number


def test_a_terminal_has_a_bar_that_vanishes_and_no_lines():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with progress_on(console, "work", 4) as steps:
        steps.note("the first [one]")
        steps.advance()
    assert "1/4" in screen.getvalue()
    assert "elapsed" not in screen.getvalue()


def test_what_is_piped_has_lines_on_standard_error_alone():
    program = (
        "import time\n"
        "from specdec.evals import progress\n"
        "from specdec.evals.terminal import Terminal\n"
        "progress.FIRST_SECONDS = 0.01\n"
        "with Terminal(json=False).progress('work', 4) as steps:\n"
        "    steps.note('some [red]step[/]'); time.sleep(0.5)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    assert all(LINE.fullmatch(line) for line in ran.stderr.splitlines())
    assert "some [red]step[/]" in ran.stderr


def test_no_eval_has_a_progress_of_its_own():
    folder = Path(progress.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "rich.progress" in path.read_text()] == ["progress.py"]
