"""DeltaStream: what asyncio reads of one submission to the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import msgspec

from specdec.request import Request, TokenDelta, TokenLogprob

logger = logging.getLogger(__name__)

MAX_WAITING_DELTAS = 64
"""Deltas of one choice that wait to be read before they are joined into one."""

DeltaObserver = Callable[[TokenDelta], None]
"""Sees every delta on the event loop as it arrives, however slowly the stream is read."""


class Release(Protocol):
    """How a stream leaves the register of what is in flight (open_streams.py)."""

    def __call__(self, stream: DeltaStream, *, abort: bool) -> None: ...


class DeltaStream:
    """The deltas of the requests submitted together, in order within each choice; one reader.

    Deltas that arrive faster than they are read are joined, choice by choice: what waits is bounded by the
    length of the answers, and the engine never waits for a reader. Once every choice has finished, the
    iteration ends; if the engine fails first, it raises.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        release: Release,
        observer: DeltaObserver | None = None,
        *,
        is_read: bool = True,
    ) -> None:
        """With `is_read` False nobody iterates: the deltas are for the observer alone."""
        self.requests = tuple(requests)
        self.failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._is_read = is_read
        self._release = release
        self._observer = observer
        self._num_open_choices = sum(request.sampling_params.n for request in requests)
        self._pending: dict[tuple[str, int], list[TokenDelta]] = {}
        self._arrived = asyncio.Event()
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        while True:
            if self._pending:
                return self._take(next(iter(self._pending)))
            if self._is_closed:
                raise StopAsyncIteration
            if self.failure.done():
                raise self.failure.result()
            if not self._num_open_choices:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, by whoever submitted."""
        return self._is_closed

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended, read or not."""
        return not self._num_open_choices

    def close(self) -> None:
        """Abort what still runs and drop what was not read; idempotent, safe at any time."""
        if not self._is_closed:
            self._is_closed = True
            self._pending.clear()
            self._observer = None
            self._arrived.set()
            self._release(self, abort=True)

    def push(self, delta: TokenDelta) -> None:
        """Take what a step added to one choice."""
        if self._is_closed or self.failure.done():
            return
        if self._is_read:
            append_joined(self._pending.setdefault((delta.request_id, delta.choice_index), []), delta)
            self._arrived.set()
        if delta.finish_reason is not None:
            self._num_open_choices -= 1
        observer = self._observer
        if not self._num_open_choices:
            # It may hold the stream, and the two would wait for the garbage collector, prompt and all.
            self._observer = None
            self._release(self, abort=False)
        if observer is not None:
            try:
                observer(delta)
            except Exception:  # an observer's fault must not cost the batch's other streams their deltas
                logger.exception("the observer of %s failed", delta.request_id)

    def fail(self, error: Exception) -> None:
        """End the iteration with an error, after what has already arrived."""
        if not self._is_closed and not self.failure.done() and self._num_open_choices:
            self.failure.set_result(error)
            self._observer = None
            self._arrived.set()
            self._release(self, abort=True)

    def _take(self, choice: tuple[str, int]) -> TokenDelta:
        """What waits of a choice, as one; that the engine gave it up comes after its last tokens, by itself."""
        waiting = self._pending.pop(choice)
        if len(waiting) > 1 and waiting[-1].is_failure:
            self._pending[choice] = [waiting.pop()]
        return join_deltas(waiting)


def append_joined(waiting: list[TokenDelta], delta: TokenDelta) -> None:
    """Add a delta to those of one choice that wait, few at any time: many are joined into one."""
    if len(waiting) >= MAX_WAITING_DELTAS - 1 and not delta.is_failure:
        waiting[:] = [join_deltas([*waiting, delta])]
    else:
        waiting.append(delta)


def join_deltas(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """One delta that says what consecutive deltas of a choice said."""
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    logprobs: tuple[TokenLogprob, ...] | None = None
    if any(delta.logprobs is not None for delta in deltas):
        logprobs = tuple(entry for delta in deltas for entry in delta.logprobs or ())
    return msgspec.structs.replace(
        last,
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        text="".join(delta.text for delta in deltas),
        logprobs=logprobs,
        queue_s=deltas[0].queue_s,
        prefill_s=deltas[0].prefill_s,
        drafts=tuple(draft for delta in deltas for draft in delta.drafts),
    )
