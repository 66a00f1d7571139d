"""Server-sent events: a growing answer as frames of bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Protocol

import msgspec
from litestar.response import Stream

from specdec import SpecdecError, TokenDelta
from specdec.server.answer import Answer, Choice
from specdec.server.errors import ApiError, ErrorObject, of_exception

logger = logging.getLogger(__name__)

DONE_FRAME = b"data: [DONE]\n\n"
KEEP_ALIVE_FRAME = b": keep-alive\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_LINE_BREAKS = tuple((char.encode(), b"\\u%04x" % ord(char)) for char in "\x85\u2028\u2029")
"""Many clients split text into lines at these, which JSON need not escape."""

_encoder = msgspec.json.Encoder()


class NamedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event whose name is its type."""

    type: str


class Chunks(Protocol):
    """How one endpoint spells a stream."""

    def begin(self) -> Iterable[msgspec.Struct]:
        """What comes before the first token."""

    def add(self, choice: Choice, delta: TokenDelta) -> Iterable[msgspec.Struct]:
        """What a delta adds; the choice already counts it."""

    def end(self) -> Iterable[msgspec.Struct]:
        """What comes after every choice has finished."""

    def fail(self, error: ErrorObject) -> Iterable[msgspec.Struct]:
        """What ends a stream that cannot go on."""


async def event_frames(
    deltas: AsyncIterator[TokenDelta], answer: Answer, chunks: Chunks, keep_alive_s: float
) -> AsyncGenerator[bytes]:
    """The frames of a stream. A failure is a frame of its own, then, as ever, [DONE].

    A slow client suspends this generator; the deltas that arrive meanwhile come as one.
    """
    try:
        has_begun = False
        while True:
            try:
                async with asyncio.timeout(keep_alive_s):
                    delta = await anext(deltas, None)
            except TimeoutError:
                yield KEEP_ALIVE_FRAME
                continue
            if delta is None:
                break
            choice = answer.add(delta)
            frames = [] if has_begun else [frame(chunk) for chunk in chunks.begin()]
            has_begun = True
            frames += [frame(chunk) for chunk in chunks.add(choice, delta)]
            if frames:
                yield b"".join(frames)
                # A generator that never suspends is never told that its client has gone.
                await asyncio.sleep(0)
        yield b"".join(frame(chunk) for chunk in chunks.end())
    except Exception as error:  # the status line is sent: all that is left is to say it in the stream
        if not isinstance(error, (ApiError, SpecdecError)):
            logger.exception("a stream failed")
        yield b"".join(frame(chunk) for chunk in chunks.fail(of_exception(error).error))
    yield DONE_FRAME


def frame(content: msgspec.Struct) -> bytes:
    """One event, on one line for every client's idea of a line."""
    data = _encoder.encode(content)
    for character, escape in _LINE_BREAKS:
        data = data.replace(character, escape)
    name = f"event: {content.type}\n".encode() if isinstance(content, NamedEvent) else b""
    return name + b"data: " + data + b"\n\n"


def event_stream(frames: AsyncGenerator[bytes], headers: dict[str, str]) -> Stream:
    """The response that sends the frames."""
    return Stream(frames, status_code=200, media_type="text/event-stream", headers={**HEADERS, **headers})


async def gather_answer(deltas: AsyncIterator[TokenDelta], answer: Answer) -> None:
    """Read a whole answer."""
    async for delta in deltas:
        answer.add(delta)
