"""The worker of check_process.py: `python -m specdec.grammars.check_worker` judges what it reads, line by line.

One JSON object a line both ways. In: {"constraint": ..., "text": ...}. Out: {} once it is ready, and then for each
line {"violation": null or why, "unjudgeable": null or why}. It ends with its input.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable
from typing import Any, TextIO

import msgspec

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.constraints import Constraint
from specdec.grammars.final_check import FinalCheck
from specdec.grammars.judge import UnjudgeableError

_MAX_CACHED_CHECKS = 256
_LONGEST_CHECK_SECONDS = 60
"""Far above any deadline of the other end: a worker that outlives it in the middle of a check ends by itself."""


def answer_all(lines: Iterable[str], replies: TextIO) -> None:
    """Answer until the lines end."""
    checks: BoundedCache[str, FinalCheck] = BoundedCache(_MAX_CACHED_CHECKS)
    _say(replies, {})
    for line in lines:
        # Any: our own other end wrote it.
        job: Any = json.loads(line)
        _set_alarm(_LONGEST_CHECK_SECONDS)
        try:
            check = checks.get(job["constraint"])
            if check is None:
                # Not by msgspec, which would make doubles of whole numbers of more than 64 bits.
                constraint: Constraint = msgspec.convert(json.loads(job["constraint"]), Constraint)
                check = FinalCheck(constraint)
                checks.put(job["constraint"], check)
            reply = {"violation": check.violation(job["text"]), "unjudgeable": None}
        except UnjudgeableError as error:
            reply = {"violation": None, "unjudgeable": str(error)}
        except Exception as error:  # noqa: BLE001, a fault of the judge is no fault of the answer
            reply = {"violation": None, "unjudgeable": f"the judge failed: {type(error).__name__}: {error}"}
        _set_alarm(0)
        _say(replies, reply)


def _set_alarm(seconds: int) -> None:
    """Have the system end this process after so long; 0 for not at all."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _say(replies: TextIO, reply: dict[str, str | None]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    answer_all(sys.stdin, sys.stdout)
