"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from litestar import Request as HttpRequest
from litestar import Response, post

from specdec import Request, SamplingParams, TokenDelta, Tokenizer
from specdec.server.answer import Answer, Choice, new_id
from specdec.server.body import read_body
from specdec.server.completion_wire import Completion, CompletionChoice, CompletionRequest, TextOffsets
from specdec.server.config import RequestLimits
from specdec.server.constraint import refuse_conflicts, requested_constraint
from specdec.server.errors import ErrorBody, ErrorObject, bad_request
from specdec.server.exchange import exchange_of
from specdec.server.generation import respond
from specdec.server.sampling import sampling_params
from specdec.server.service import Service, service_of
from specdec.server.speculation import RequestedSpeculation, requested_speculation
from specdec.server.unsupported import COMPLETION_REFUSED, WITHOUT_EFFECT

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint alone."""


@post("/v1/completions", status_code=200)
async def completions(request: HttpRequest[Any, Any, Any]) -> Response[Any]:
    """Continue one or several prompts."""
    service = service_of(request)
    completion, ignored = await read_body(
        request, CompletionRequest, refused=COMPLETION_REFUSED, without_effect=WITHOUT_EFFECT | {"reasoning_effort"}
    )
    service.check_model(completion.model)
    params = _sampling_params(completion, service)
    requested = requested_constraint(
        completion.response_format,
        completion.structured_outputs,
        max_schema_bytes=service.config.limits.max_schema_bytes,
    )
    refuse_conflicts(params, requested.constraint, requested.param)
    speculation = requested_speculation(
        completion.prediction,
        completion.speculative,
        completion.specdec_trace,
        config=service.engine.config.speculative,
    )
    prompts = await asyncio.to_thread(
        _encode_prompts, _prompts(completion, service.config.limits), service.engine.tokenizer
    )
    spelling = _Spelling(service, completion, params, speculation)
    if completion.return_token_ids:
        spelling.prompts_shown = prompts
    if completion.echo:
        spelling.echoes = await asyncio.to_thread(_echoes, completion.prompt, prompts, service.engine.tokenizer)
    requests = [
        Request(
            request_id=f"{spelling.id}-{index}",
            prompt_token_ids=prompt,
            sampling_params=params
            if completion.max_tokens is not None or requested.constraint is not None
            else _with_default_max_tokens(params, service.engine.max_model_len - len(prompt)),
            constraint=requested.constraint,
            cache_salt=exchange_of(request).salted(completion.cache_salt),
            speculative=speculation.params,
            prediction=speculation.prediction,
            trace=speculation.trace or service.config.per_request_spec_decode_metrics == "detailed",
        )
        for index, prompt in enumerate(prompts)
    ]
    return await respond(
        request,
        requests,
        ignored=ignored,
        params=requested.params,
        has_report=requested.has_report,
        has_prediction=speculation.has_prediction,
        has_trace=speculation.trace,
        chunks=spelling.chunks if completion.stream else None,
        whole=spelling.whole,
    )


def _sampling_params(completion: CompletionRequest, service: Service) -> SamplingParams:
    if completion.echo and completion.logprobs is not None:
        raise bad_request(
            "echo cannot be combined with logprobs: a prompt has no log-probabilities here",
            param="echo",
            code="conflicting_fields",
        )
    if completion.stream_options is not None and not completion.stream:
        raise bad_request("stream_options needs stream to be true", param="stream_options")
    if completion.best_of is not None and completion.best_of != (completion.n or 1):
        raise bad_request(
            f"best_of is {completion.best_of}; only the value of n is accepted: every choice is returned",
            param="best_of",
            code="unsupported_field",
        )
    return sampling_params(
        completion,
        max_tokens=completion.max_tokens,
        logprobs=completion.logprobs,
        limits=service.config.limits,
        vocab_size=service.engine.tokenizer.vocab_size,
    )


def _with_default_max_tokens(params: SamplingParams, num_left: int) -> SamplingParams:
    """A prompt that leaves nothing is refused at admission, by the engine, in its own words."""
    default = max(params.min_tokens, min(DEFAULT_MAX_TOKENS, max(num_left, 1)))
    return msgspec.structs.replace(params, max_tokens=default)


def _prompts(completion: CompletionRequest, limits: RequestLimits) -> list[str | list[int]]:
    """The four forms of `prompt` as one. Raises ApiError for a list that is empty, too long or mixed."""
    prompt = completion.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("prompt is an empty list; it needs at least one prompt", param="prompt")
    token_ids = [item for item in prompt if isinstance(item, int)]
    if len(token_ids) == len(prompt):
        return [token_ids]
    if token_ids or len({type(item) for item in prompt}) > 1:
        raise bad_request(
            "prompt mixes text and token ids; send a text, a list of texts, a list of token ids, or a list of those",
            param="prompt",
        )
    if len(prompt) > limits.max_prompts:
        raise bad_request(
            f"prompt has {len(prompt)} entries; at most {limits.max_prompts} are accepted",
            param="prompt",
            code="limit_exceeded",
        )
    return [item for item in prompt if not isinstance(item, int)]


def _encode_prompts(prompts: Sequence[str | list[int]], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    return [
        tuple(tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt)
        for prompt in prompts
    ]


def _echoes(prompt: object, prompts: Sequence[tuple[int, ...]], tokenizer: Tokenizer) -> list[str]:
    """What `echo` puts before each answer: text as it was sent, token ids as text."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and all(isinstance(item, str) for item in prompt):
        return list(prompt)
    in_vocabulary = range(tokenizer.vocab_size)
    return [
        tokenizer.decode([token_id for token_id in token_ids if token_id in in_vocabulary]) for token_ids in prompts
    ]


class _Spelling:
    """What the answer and the chunks of one call have in common."""

    def __init__(
        self,
        service: Service,
        completion: CompletionRequest,
        params: SamplingParams,
        speculation: RequestedSpeculation,
    ) -> None:
        self.id = new_id("cmpl")
        self.model = completion.model
        self.fingerprint = service.fingerprint
        self.stream_options = completion.stream_options
        self.has_top_logprobs = bool(params.logprobs)
        self.has_logprobs = params.logprobs is not None
        self.has_metrics = service.config.per_request_spec_decode_metrics != "none"
        self.max_draft_tokens = speculation.max_draft_tokens
        self.choices_per_prompt = params.n
        self.echoes: list[str] = []
        self.prompts_shown: list[tuple[int, ...]] = []
        """Where token ids are returned."""

    def echo(self, choice: Choice) -> str:
        """The text before this choice's own."""
        return self.echoes[choice.index // self.choices_per_prompt] if self.echoes else ""

    def prompt_token_ids(self, choice: Choice) -> list[int] | msgspec.UnsetType:
        """Of this choice, where token ids are returned."""
        return (
            list(self.prompts_shown[choice.index // self.choices_per_prompt]) if self.prompts_shown else msgspec.UNSET
        )

    def whole(self, answer: Answer) -> Completion:
        """The answer to a request that does not stream."""
        choices = [
            CompletionChoice(
                index=choice.index,
                text=self.echo(choice) + choice.text,
                logprobs=TextOffsets().logprobs(choice.logprobs, has_top=self.has_top_logprobs)
                if self.has_logprobs
                else None,
                finish_reason=choice.finish_reason,
                token_ids=choice.token_ids if self.prompts_shown else msgspec.UNSET,
                prompt_token_ids=self.prompt_token_ids(choice),
            )
            for choice in answer.choices
        ]
        return msgspec.structs.replace(
            self.completion(answer, choices),
            usage=answer.usage(),
            specdec=answer.extension(),
            metrics=answer.metrics(self.max_draft_tokens) if self.has_metrics else msgspec.UNSET,
        )

    def chunks(self, answer: Answer) -> _CompletionChunks:
        """The chunks of a stream."""
        return _CompletionChunks(self, answer)

    def completion(self, answer: Answer, choices: list[CompletionChoice]) -> Completion:
        """These choices, and nothing that comes once."""
        return Completion(
            id=self.id,
            created=answer.created,
            model=self.model,
            choices=choices,
            system_fingerprint=self.fingerprint,
        )


class _CompletionChunks:
    """The echo, then text as it comes, with the reason in the last chunk of a choice, then what it cost."""

    def __init__(self, spelling: _Spelling, answer: Answer) -> None:
        options = spelling.stream_options
        self._spelling = spelling
        self._answer = answer
        self._has_usage = options is not None and bool(options.include_usage)
        self._has_running_usage = self._has_usage and bool(options and options.continuous_usage_stats)
        self._offsets = [TextOffsets() for _ in answer.choices]

    def begin(self) -> Iterator[Completion]:
        if self._spelling.echoes or self._spelling.prompts_shown:
            for choice in self._answer.choices:
                prompt_token_ids = self._spelling.prompt_token_ids(choice)
                echo = self._spelling.echo(choice)
                yield self._chunk(CompletionChoice(choice.index, echo, prompt_token_ids=prompt_token_ids))

    def add(self, choice: Choice, delta: TokenDelta) -> Iterator[Completion]:
        token_ids = list(delta.token_ids) if self._spelling.prompts_shown else msgspec.UNSET
        if delta.text or delta.logprobs or token_ids or delta.finish_reason is not None:
            logprobs = self._offsets[choice.index].logprobs(delta.logprobs, has_top=self._spelling.has_top_logprobs)
            last = choice if delta.finish_reason is not None else None
            added = CompletionChoice(choice.index, delta.text, logprobs, delta.finish_reason, token_ids)
            yield self._chunk(added, last=last)

    def end(self) -> Iterator[Completion]:
        if self._has_usage:
            metrics = self._answer.metrics(self._spelling.max_draft_tokens)
            yield msgspec.structs.replace(
                self._spelling.completion(self._answer, []),
                usage=self._answer.usage(),
                metrics=metrics if self._spelling.has_metrics else msgspec.UNSET,
            )

    def fail(self, error: ErrorObject) -> Iterator[ErrorBody]:
        yield ErrorBody(error)

    def _chunk(self, choice: CompletionChoice, *, last: Choice | None = None) -> Completion:
        usage = self._answer.usage() if self._has_running_usage else None
        return msgspec.structs.replace(
            self._spelling.completion(self._answer, [choice]),
            usage=usage if self._has_usage else msgspec.UNSET,
            specdec=msgspec.UNSET if last is None else self._answer.extension(last),
        )
