"""Asking an OpenAI-compatible server for streamed answers: when tokens come, and what the server says of drafts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from specdec.errors import EngineError
from specdec.evals.chat_client import TIMEOUT_S, base_url, first_model, minimum_tokens
from specdec.request import DraftTrace

_DATA = "data:"
_DONE = "[DONE]"
_REFUSALS = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)


class ReportedSpeculation(msgspec.Struct, frozen=True):
    """`metrics.speculative_decoding` of one answer, in vLLM's shape."""

    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    acceptance_histogram: tuple[int, ...] = ()


class StreamedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer; `error` says why there is none."""

    text: str = ""
    finish_reason: str = "none"
    num_tokens: int = 0
    """As the server's usage says."""
    pieces: tuple[bytes, ...] = ()
    """Of each token, where log-probabilities were asked for."""
    drafts: tuple[DraftTrace, ...] | None = None
    """What each pass of the target verified, where the server traces it."""
    speculation: ReportedSpeculation | None = None
    """Where the server reports it."""
    first_token_seconds: float = 0.0
    """From sending the request to the first text."""
    decoding_seconds: float = 0.0
    """From the first text to the last."""
    max_tokens: int = 0
    """What was asked for in the end."""
    error: str | None = None
    is_refused: bool = False
    """Whether the request itself was at fault, as the server sees it."""


class _Piece(msgspec.Struct):
    token: str
    bytes: list[int] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Piece] | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether it brings something of the answer, or of what the model thinks before it."""
        return bool(self.content or self.reasoning_content or self.reasoning)


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Metrics(msgspec.Struct):
    speculative_decoding: ReportedSpeculation | None = None


class _ChoiceTrace(msgspec.Struct):
    drafts: list[DraftTrace]


class _Extension(msgspec.Struct):
    trace: list[_ChoiceTrace] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    specdec: _Extension | None = None
    error: Any = None  # Any: only shown


class ChatServer:
    """A server, and the model that it is asked for."""

    def __init__(self, url: str, *, model: str | None, api_key: str | None) -> None:
        """`model` None takes the first that the server names. Raises EngineError where it names none."""
        self.url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.model, self.takes_speculative = asyncio.run(self._look(model))

    def ask_all(
        self,
        bodies: Sequence[Mapping[str, object]],
        *,
        concurrency: int,
        on_answer: Callable[[], None] = lambda: None,
    ) -> tuple[list[StreamedAnswer], float]:
        """One answer a body, in order, and the seconds that all took together."""

        async def ask_them() -> tuple[list[StreamedAnswer], float]:
            free = asyncio.Semaphore(concurrency)
            async with self._client(concurrency) as client:

                async def ask(body: Mapping[str, object]) -> StreamedAnswer:
                    async with free:
                        answer = await _ask(client, {"model": self.model, **body})
                    on_answer()
                    return answer

                start = time.perf_counter()
                answers = list(await asyncio.gather(*map(ask, bodies)))
                return answers, time.perf_counter() - start

        return asyncio.run(ask_them())

    def _client(self, concurrency: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=concurrency)
        return httpx.AsyncClient(base_url=base_url(self.url), headers=self._headers, limits=limits, timeout=TIMEOUT_S)

    async def _look(self, model: str | None) -> tuple[str, bool]:
        """The model, and whether requests may say how they are speculated on, and get a trace."""
        async with self._client(1) as client:
            name = model or await first_model(client)
            body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            extras = {"speculative": {"enabled": False}, "specdec_trace": True}
            if (answer := await _ask(client, body | extras)).error is None:
                return name, answer.drafts is not None
            # It may be the extras that are refused.
            if (answer := await _ask(client, body)).error is not None:
                raise EngineError(f"{client.base_url} does not answer: {answer.error}")
            return name, False


async def _ask(client: httpx.AsyncClient, body: Mapping[str, object]) -> StreamedAnswer:
    wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
    max_tokens = int(str(body["max_tokens"]))
    start = time.perf_counter()
    try:
        async with client.stream("POST", "chat/completions", json=wanted) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                enough = minimum_tokens(response)
                if enough is None or enough <= max_tokens:
                    return StreamedAnswer(
                        error=f"status {response.status_code}: {response.text[:500]}",
                        is_refused=response.status_code in _REFUSALS,
                    )
            else:
                return msgspec.structs.replace(await _read(response, start), max_tokens=max_tokens)
    except httpx.HTTPError as error:
        return StreamedAnswer(error=f"{type(error).__name__}: {error}")
    # As in process (driver.request_of): an answer gets the tokens that it needs.
    return await _ask(client, {**body, "max_tokens": enough})


async def _read(response: httpx.Response, start: float) -> StreamedAnswer:
    texts: list[str] = []
    pieces: list[bytes] = []
    drafts: tuple[DraftTrace, ...] | None = None
    speculation, usage, finish_reason = None, _Usage(), "none"
    first = last = None
    try:
        async for chunk in _chunks(response):
            if chunk.error is not None:
                return StreamedAnswer(error=f"the stream ended with {str(chunk.error)[:500]}")
            usage = chunk.usage or usage
            if chunk.metrics is not None:
                speculation = chunk.metrics.speculative_decoding
            if chunk.specdec is not None and chunk.specdec.trace is not None:
                drafts = tuple(draft for choice in chunk.specdec.trace for draft in choice.drafts)
            for choice in chunk.choices:
                if choice.delta.has_tokens:
                    last = time.perf_counter()
                    first = first or last
                texts.append(choice.delta.content or "")
                if choice.logprobs is not None:
                    pieces += [_bytes_of(piece) for piece in choice.logprobs.content or ()]
                finish_reason = choice.finish_reason or finish_reason
    except msgspec.DecodeError as error:
        return StreamedAnswer(error=f"no chunk of a chat completion: {error}")
    return StreamedAnswer(
        text="".join(texts),
        finish_reason=finish_reason,
        num_tokens=usage.completion_tokens,
        pieces=tuple(pieces),
        drafts=drafts,
        speculation=speculation,
        first_token_seconds=(first or time.perf_counter()) - start,
        decoding_seconds=0.0 if first is None or last is None else last - first,
    )


async def _chunks(response: httpx.Response) -> AsyncIterator[_Chunk]:
    """Raises msgspec.DecodeError."""
    decoder = msgspec.json.Decoder(_Chunk)
    async for line in response.aiter_lines():
        content = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and content != _DONE:
            yield decoder.decode(content)


def _bytes_of(piece: _Piece) -> bytes:
    return piece.token.encode() if piece.bytes is None else bytes(piece.bytes)
