"""Exchange: one request and all that came of it, timed chunk by chunk."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
import msgspec

from specdec.evals.bench_events import EventParser
from specdec.evals.bench_metrics import SpeculationCounts
from specdec.evals.bench_traffic import Planned

Outcome = Literal["completed", "aborted", "refused", "turned away", "failed"]
"""Refused is what a malformed request has to be; turned away is a server that says it is full, with 429 or 503."""

_FULL: Final = frozenset({429, 503})
_MAX_ERROR_CHARS: Final = 300


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Proposer(msgspec.Struct, frozen=True):
    num_discarded_tokens: int = 0


class _Speculation(msgspec.Struct, frozen=True):
    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    by_proposer: dict[str, _Proposer] = {}

    def counts(self) -> SpeculationCounts:
        return SpeculationCounts(
            num_drafts=self.num_spec_steps,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_draft_tokens,
            num_discarded_tokens=sum(each.num_discarded_tokens for each in self.by_proposer.values()),
        )


class _Metrics(msgspec.Struct, frozen=True):
    speculative_decoding: _Speculation | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    # Any: an error frame is OpenAI's object, or whatever a server makes of it.
    error: Any = None


class _RefusalError(msgspec.Struct, frozen=True):
    minimum_tokens: int | None = None


class _Refusal(msgspec.Struct, frozen=True):
    error: _RefusalError


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Exchange:
    """A request as it went. Times are those of `time.perf_counter`."""

    planned: Planned
    expected: tuple[int, ...]
    """The statuses that are right."""
    sent_at: float
    ended_at: float = 0.0
    status: int | None = None
    """None where no response came."""
    error: str | None = None
    chunk_times: array[float] = field(default_factory=lambda: array("d"))
    """Arrivals of the chunks that held text."""
    chunk_tokens: array[int] = field(default_factory=lambda: array("l"))
    """What each of them brought, where the server counts as it goes."""
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int | None = None
    """As the server counts them; None where it does not."""
    speculation: SpeculationCounts | None = None
    has_left: bool = False
    minimum_tokens: int | None = None
    """Of a refusal because max_tokens is too small for the schema: what would do."""

    @property
    def outcome(self) -> Outcome:
        if self.planned.malformed is not None:
            return "refused" if self.status in self.expected else "failed"
        if self.status in _FULL:
            return "turned away"
        if self.error is not None or self.status not in self.expected:
            return "failed"
        return "aborted" if self.has_left else "completed"

    @property
    def text(self) -> str:
        """Of a constrained answer; others are not kept."""
        return "".join(self.texts)

    @property
    def first_token_s(self) -> float | None:
        return self.chunk_times[0] - self.sent_at if self.chunk_times else None

    @property
    def total_s(self) -> float:
        return self.ended_at - self.sent_at

    @property
    def per_token_s(self) -> float | None:
        """Of the tokens after the first chunk's first; None for an answer of one."""
        if not self.num_output_tokens or self.num_output_tokens < 2 or len(self.chunk_times) < 2:
            return None
        return (self.chunk_times[-1] - self.chunk_times[0]) / (self.num_output_tokens - 1)


async def exchange(client: httpx.AsyncClient, planned: Planned, path: str, *, is_specdec: bool) -> Exchange:
    """Send a request and read its answer, or as much of it as its client stays for. Whatever fails is in the result."""
    malformed = planned.malformed
    method, content_type = "POST", "application/json"
    expected: tuple[int, ...] = (200,)
    if malformed is None:
        content = msgspec.json.encode(planned.body)
    else:
        content = malformed.content(planned.body)
        method, content_type, path = malformed.method, malformed.content_type, malformed.path or path
        expected = malformed.expected(is_specdec=is_specdec)
    record = Exchange(planned, expected, sent_at=time.perf_counter())
    try:
        async with client.stream(method, path, content=content, headers={"content-type": content_type}) as response:
            record.status = response.status_code
            if response.status_code == httpx.codes.OK:
                await _read_stream(response, record)
            else:
                _read_refusal(await response.aread(), record)
    except (httpx.HTTPError, httpx.StreamError, ValueError, OSError) as error:
        record.error = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
    record.ended_at = time.perf_counter()
    # A load may go on for hours: what no figure is made of is not kept.
    record.planned = msgspec.structs.replace(planned, body={})
    record.texts = [record.text] if planned.is_constrained else []
    return record


async def _read_stream(response: httpx.Response, record: Exchange) -> None:
    parser, num_counted, is_done = EventParser(), 0, False
    leaves_after = record.planned.leaves_after
    if leaves_after == 0:
        record.has_left = True
        return
    async for piece in response.aiter_bytes():
        now = time.perf_counter()
        for event in parser.feed(piece):
            if event.data == b"[DONE]":
                is_done = True
                continue
            chunk = _decode_chunk(event.data)
            if chunk.error is not None:
                record.error = f"error frame: {_message_of(chunk.error)}"[:_MAX_ERROR_CHARS]
            if chunk.metrics is not None and chunk.metrics.speculative_decoding is not None:
                record.speculation = chunk.metrics.speculative_decoding.counts()
            if chunk.usage is not None:
                record.num_prompt_tokens = chunk.usage.prompt_tokens
                record.num_output_tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                text = choice.text or choice.delta.content
                if text:
                    record.texts.append(text)
                if text or choice.delta.reasoning_content or choice.delta.reasoning:
                    num_tokens = (record.num_output_tokens or 0) - num_counted
                    record.chunk_times.append(now)
                    record.chunk_tokens.append(num_tokens)
                    num_counted += num_tokens
                record.finish_reason = choice.finish_reason or record.finish_reason
            if leaves_after is not None and len(record.chunk_times) >= leaves_after and not is_done:
                record.has_left = True
                return
    if not is_done:
        record.error = record.error or "the stream ended without [DONE]"
    elif record.finish_reason is None:
        record.error = record.error or "the stream gave no finish_reason"


def _read_refusal(content: bytes, record: Exchange) -> None:
    record.error = content.decode(errors="replace")[:_MAX_ERROR_CHARS]
    try:
        record.minimum_tokens = msgspec.json.decode(content, type=_Refusal).error.minimum_tokens
    except msgspec.DecodeError:
        record.minimum_tokens = None


def _message_of(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)
