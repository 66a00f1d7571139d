"""Faults: what goes wrong in the work for one sequence is that sequence's end, not its batch's.

A step works for all of its sequences and commits at its end. Until then it has changed nothing that counts, so that
work that fails for one of them is given up for all: the one at fault ends, and the others take the step again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, TypeAlias

from specdec.logs import FIELDS
from specdec.sequence import Sequence

logger = logging.getLogger(__name__)

Stage: TypeAlias = Literal["prepare", "schedule", "draft", "mask", "sample", "commit", "learn"]
"""The part of the work for a request that failed."""


class SequenceFaultError(Exception):
    """The work for one sequence failed; `__cause__` says how. Never leaves the engine."""

    def __init__(self, sequence: Sequence, stage: Stage) -> None:
        super().__init__(f"{stage} of {sequence.request_id}, choice {sequence.choice_index}")
        self.sequence = sequence
        self.stage = stage


class attributed_to:  # noqa: N801, used as a function is; a generator would cost each step three times as much
    """`with attributed_to(sequence, stage):` what fails within raises SequenceFaultError instead."""

    __slots__ = ("_sequence", "_stage")

    def __init__(self, sequence: Sequence, stage: Stage) -> None:
        self._sequence = sequence
        self._stage: Stage = stage

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, SequenceFaultError):
            raise SequenceFaultError(self._sequence, self._stage) from error


def find_fault(stage: Stage, trials: Iterable[tuple[Sequence, Callable[[], object]]]) -> None:
    """Do for each sequence alone what failed for all together; raises SequenceFaultError for the first that fails."""
    for sequence, work in trials:
        with attributed_to(sequence, stage):
            work()


class FaultLog:
    """Logs and counts faults; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Faults so far, by stage."""
        with self._lock:
            return self._counts.copy()

    def record(self, fault: SequenceFaultError) -> None:
        """A sequence that ends, or ended, with a fault."""
        self._record(fault.stage, fault.sequence.request_id, fault.sequence.choice_index, fault.__cause__)

    def record_unprepared(self, request_id: str, error: Exception) -> None:
        """A request that ends before it is a sequence."""
        self._record("prepare", request_id, None, error)

    def _record(self, stage: Stage, request_id: str, choice_index: int | None, cause: BaseException | None) -> None:
        with self._lock:
            self._counts[stage] = self._counts.get(stage, 0) + 1
        logger.error(
            "the engine failed on a request",
            exc_info=cause,
            extra={FIELDS: {"answer_id": request_id, "choice": choice_index, "stage": stage}},
        )
