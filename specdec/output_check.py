"""OutputChecker: the last delta of a constrained choice, held back until the whole text has been judged.

The engine's thread hands texts in and takes verdicts out; a thread of the checker's own waits for the process that
judges (grammars/check_process.py). No step waits for a check, and a check that takes too long delays one delta.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import queue
import threading
import time
import weakref
from typing import NamedTuple

import msgspec

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.check_process import CheckNotMadeError, CheckProcess, CheckTimeoutError
from specdec.grammars.constraints import Constraint
from specdec.request import FinishReason, Request, TokenDelta

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
"""Longest that a delta is held for its check, other checks included; plus the start of the process, where it must."""
_MAX_LOGGED_CHARS = 4000
_MAX_REASON_CHARS = 500
_MAX_REMEMBERED = 4096
"""Constraints that are known to be slow, and those that a warning was given of."""


class OutputChecker:
    """Belongs to the engine's thread. The counts only grow, and can be read from any thread."""

    def __init__(self) -> None:
        self.num_checked = 0
        self.num_failed = 0
        self.num_not_made = 0
        self._constraints: dict[str, Constraint] = {}
        self._texts: dict[tuple[str, int], list[str]] = {}
        self._held: dict[int, TokenDelta] = {}
        self._tickets = itertools.count()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[_Verdict] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def request_ids(self) -> set[str]:
        """Of the deltas that are held back."""
        return {delta.request_id for delta in self._held.values()}

    def watch(self, request: Request) -> None:
        """Judge what this request's choices will say."""
        if request.constraint is None:
            return
        self._constraints[request.request_id] = request.constraint
        if self._thread is None:
            process = CheckProcess()
            # The loop does not know the checker, so that the checker can be collected.
            loop = _CheckLoop(process, self._jobs, self._verdicts)
            self._thread = threading.Thread(target=loop.run, name="specdec-check", daemon=True)
            self._thread.start()
            weakref.finalize(self, _end, process, self._jobs, self._thread)

    def forget(self, request_id: str) -> None:
        """Nobody waits for the request any more."""
        self._constraints.pop(request_id, None)
        self._texts = {key: texts for key, texts in self._texts.items() if key[0] != request_id}
        self._held = {ticket: delta for ticket, delta in self._held.items() if delta.request_id != request_id}

    def hold(self, deltas: list[TokenDelta]) -> list[TokenDelta]:
        """What may go on of these deltas, and those held back before whose verdicts have come."""
        passed = [delta for delta in deltas if not self._holds(delta)]
        return passed + self._judged()

    def wait(self, timeout_s: float) -> list[TokenDelta]:
        """Deltas whose verdicts have come, after waiting for a first one."""
        if not self._held:
            return []
        try:
            first = self._verdicts.get(timeout=timeout_s)
        except queue.Empty:
            return []
        return [*self._released(first), *self._judged()]

    def _holds(self, delta: TokenDelta) -> bool:
        constraint = self._constraints.get(delta.request_id)
        if constraint is None:
            return False
        key = (delta.request_id, delta.choice_index)
        texts = self._texts.setdefault(key, [])
        texts.append(delta.text)
        if delta.finish_reason is None:
            return False
        del self._texts[key]
        if delta.finish_reason is not FinishReason.STOP:
            return False
        ticket = next(self._tickets)
        self._held[ticket] = delta
        self._jobs.put(_Job(ticket, constraint, "".join(texts), time.monotonic()))
        return True

    def _judged(self) -> list[TokenDelta]:
        released: list[TokenDelta] = []
        while True:
            try:
                released += self._released(self._verdicts.get_nowait())
            except queue.Empty:
                return released

    def _released(self, verdict: _Verdict) -> list[TokenDelta]:
        if verdict.not_made is not None:
            self.num_not_made += 1
        else:
            self.num_checked += 1
            self.num_failed += verdict.violation is not None
        delta = self._held.pop(verdict.ticket, None)
        if delta is None:
            return []
        if verdict.violation is None:
            return [delta]
        error = f"the answer does not satisfy its constraint, which is a fault of the engine: {verdict.violation}"
        return [msgspec.structs.replace(delta, finish_reason=FinishReason.ERROR, error=error)]


class _Job(NamedTuple):
    ticket: int
    constraint: Constraint
    text: str
    since: float


class _Verdict(NamedTuple):
    ticket: int
    violation: str | None = None
    not_made: str | None = None


class _CheckLoop:
    """What the checker's thread does, until None comes in place of a job."""

    def __init__(
        self, process: CheckProcess, jobs: queue.SimpleQueue[_Job | None], verdicts: queue.SimpleQueue[_Verdict]
    ) -> None:
        self._process = process
        self._jobs = jobs
        self._verdicts = verdicts
        self._slow: BoundedCache[bytes, bool] = BoundedCache(_MAX_REMEMBERED)
        self._warned: BoundedCache[bytes, bool] = BoundedCache(_MAX_REMEMBERED)

    def run(self) -> None:
        self._start()
        started = time.monotonic()
        while (job := self._jobs.get()) is not None:
            try:
                verdict = self._verdict(job, max(job.since, started) + CHECK_SECONDS)
            except Exception as error:  # the thread has to go on: deltas wait for it
                logger.exception("a check failed")
                verdict = _Verdict(job.ticket, not_made=type(error).__name__)
            self._verdicts.put(verdict)
            # The process of a check that was ended is replaced now, not when the next answer waits.
            self._start()
        self._process.release()

    def _start(self) -> None:
        try:
            self._process.start()
        except CheckNotMadeError as error:
            if not self._process.is_closed:
                logger.warning("answers are not checked: %s", error)

    def _verdict(self, job: _Job, deadline: float) -> _Verdict:
        constraint = json.dumps(msgspec.to_builtins(job.constraint))
        digest = hashlib.sha256(constraint.encode()).digest()
        try:
            violation = self._violation(job, digest, deadline - time.monotonic())
        except CheckNotMadeError as error:
            if isinstance(error, CheckTimeoutError):
                self._slow.put(digest, True)
            reason = str(error)[:_MAX_REASON_CHARS]
            if not self._warned.get(digest):
                self._warned.put(digest, True)
                logger.warning("an answer was not checked: %s; constraint: %s", reason, constraint[:_MAX_LOGGED_CHARS])
            return _Verdict(job.ticket, not_made=reason)
        if violation is None:
            return _Verdict(job.ticket)
        violation = violation[:_MAX_REASON_CHARS]
        logger.error(
            "an answer does not satisfy its constraint: %s; constraint: %s", violation, constraint[:_MAX_LOGGED_CHARS]
        )
        return _Verdict(job.ticket, violation)

    def _violation(self, job: _Job, digest: bytes, left_s: float) -> str | None:
        """As CheckProcess.violation; CheckNotMadeError as well where the check is not worth a try.

        Half of the time at least is left to a check that is made: one that runs out of it is slow by itself.
        """
        if self._slow.get(digest):
            raise CheckNotMadeError("a check of the same constraint has taken too long before")
        if left_s < CHECK_SECONDS / 2:
            raise CheckNotMadeError("other checks took too long")
        return self._process.violation(job.constraint, job.text, deadline_s=left_s)


def _end(process: CheckProcess, jobs: queue.SimpleQueue[_Job | None], thread: threading.Thread) -> None:
    process.close()
    jobs.put(None)
    # The collector may run this on the very thread.
    if thread is not threading.current_thread():
        thread.join(timeout=5.0)
