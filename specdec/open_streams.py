"""OpenStreams: the requests in flight of one engine, by id, and how they end together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from specdec.delta_stream import DeltaObserver, DeltaStream
from specdec.errors import EngineError, RequestError
from specdec.request import Request


class OpenStreams:
    """Belongs to one event loop. `on_abort` is told of a stream that was left before all its choices ended."""

    def __init__(self, on_abort: Callable[[DeltaStream], None]) -> None:
        self._streams: dict[str, DeltaStream] = {}
        self._drained = asyncio.Event()
        self._on_abort = on_abort

    def __len__(self) -> int:
        """Requests submitted and neither finished nor closed."""
        return len(self._streams)

    def open(self, *requests: Request, observer: DeltaObserver | None = None, is_read: bool = True) -> DeltaStream:
        """A stream for requests that are about to be submitted. Raises RequestError for an id that is in flight."""
        for index, request in enumerate(requests):
            if request.request_id in self._streams or any(
                request.request_id == other.request_id for other in requests[:index]
            ):
                raise RequestError(
                    f"request id {request.request_id!r} is in use by a request in flight; choose another",
                    param="request_id",
                )
        stream = DeltaStream(requests, self._release, observer, is_read=is_read)
        self._streams.update((request.request_id, stream) for request in requests)
        return stream

    async def drain(self, grace_s: float) -> None:
        """Return once nothing is in flight, or after `grace_s` seconds."""
        self._drained.clear()
        if self._streams:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), grace_s)

    def fail_all(self, error: EngineError) -> None:
        """End every stream with an error like this one."""
        for stream in set(self._streams.values()):
            stream.fail(again(error))

    def _release(self, stream: DeltaStream, *, abort: bool) -> None:
        """Called by a stream when it finished, failed or was closed."""
        is_open = False
        for request in stream.requests:
            if self._streams.get(request.request_id) is stream:
                del self._streams[request.request_id]
                is_open = True
        if is_open and abort:
            self._on_abort(stream)
        if not self._streams:
            self._drained.set()


def again(error: EngineError) -> EngineError:
    """The same error as a new object: one that is raised twice drags the first traceback along."""
    return type(error)(*error.args)
