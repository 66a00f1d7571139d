"""An answer as it grows: the engine's deltas, numbered by choice, counted and timed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from specdec import DraftTrace, EnforcementReport, FinishReason, Request, SpeculationStats, TokenDelta, TokenLogprob
from specdec.server.errors import of_delta_error
from specdec.server.usage import (
    Extension,
    RequestMetrics,
    TracedChoice,
    Usage,
    prediction_details,
    speculative_decoding,
    usage,
)


@dataclass(slots=True)
class Choice:
    """One choice, as far as it has come."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.texts)


class Answer:
    """All choices of a call: `n` for each of its prompts, numbered through.

    `keeps_content` is False for a stream, which sends what it gets and keeps only the counts;
    with `has_report` the extension says what was enforced.
    """

    def __init__(self, requests: Sequence[Request], *, keeps_content: bool, has_report: bool = False) -> None:
        self.created = int(time.time())
        self.choices = [Choice(index) for index in range(sum(request.sampling_params.n for request in requests))]
        self._keeps_content = keeps_content
        self._first_choice: dict[str, int] = {}
        num_choices = 0
        for request in requests:
            self._first_choice[request.request_id] = num_choices
            num_choices += request.sampling_params.n
        self._num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self._num_cached_tokens: dict[str, int] = {}
        self._seeds: dict[str, int] = {}
        self._speculation: dict[int, SpeculationStats] = {}
        """By choice, once it has ended."""
        self._is_predicted = any(request.prediction for request in requests)
        self._drafts: dict[int, list[DraftTrace]] = {}
        self._has_report = has_report
        self._enforcement: EnforcementReport | None = None
        self._start = time.monotonic()
        self._first_token: float | None = None
        self._last_token: float | None = None

    def add(self, delta: TokenDelta) -> Choice:
        """Take a delta in, and say whose it is. Raises ApiError if the engine gave that choice up."""
        if delta.finish_reason in {FinishReason.ERROR, FinishReason.ABORT}:
            raise of_delta_error(delta.error)
        choice = self.choices[self._first_choice[delta.request_id] + delta.choice_index]
        choice.num_tokens += len(delta.token_ids)
        choice.finish_reason = delta.finish_reason
        if self._keeps_content:
            choice.texts.append(delta.text)
            choice.logprobs.extend(delta.logprobs or ())
        self._num_cached_tokens[delta.request_id] = delta.num_cached_tokens
        self._seeds[delta.request_id] = delta.seed
        if delta.speculation is not None:
            self._speculation[choice.index] = delta.speculation
        if delta.draft is not None:
            self._drafts.setdefault(choice.index, []).append(delta.draft)
        if self._has_report and delta.enforcement is not None:
            self._enforcement = delta.enforcement
        if delta.token_ids:
            self._last_token = time.monotonic()
            self._first_token = self._first_token or self._last_token
        return choice

    def usage(self) -> Usage:
        """The counts so far. A prompt counts once, however many choices it has."""
        return usage(
            self._num_prompt_tokens,
            sum(choice.num_tokens for choice in self.choices),
            sum(self._num_cached_tokens.values()),
            prediction_details(self._speculation.values()) if self._is_predicted else None,
        )

    def extension(self) -> Extension:
        """The seeds, in the order of the prompts, and the report where it was asked for."""
        seeds = [self._seeds.get(request_id, 0) for request_id in self._first_choice]
        extension = Extension(
            enforcement=self._enforcement,
            trace=[TracedChoice(index, drafts) for index, drafts in sorted(self._drafts.items())] or None,
        )
        if len(seeds) == 1:
            return msgspec.structs.replace(extension, seed=seeds[0])
        return msgspec.structs.replace(extension, seeds=seeds)

    def metrics(self, num_speculative_tokens: int) -> RequestMetrics | None:
        """Timing and speculation, of an answer with one choice."""
        if len(self.choices) != 1:
            return None
        num_tokens = self.choices[0].num_tokens
        first, last = self._first_token, self._last_token
        generation_s = last - first if first is not None and last is not None else None
        return RequestMetrics(
            time_to_first_token_ms=None if first is None else 1e3 * (first - self._start),
            generation_time_ms=None if generation_s is None else 1e3 * generation_s,
            queue_time_ms=None,
            mean_itl_ms=None if generation_s is None or num_tokens < 2 else 1e3 * generation_s / (num_tokens - 1),
            tokens_per_second=num_tokens / (last - self._start) if last is not None else None,
            speculative_decoding=None
            if not self._speculation or not num_speculative_tokens
            else speculative_decoding(self._speculation[0], num_speculative_tokens),
        )


def new_id(prefix: str) -> str:
    """An unguessable id in OpenAI's form."""
    return f"{prefix}-{secrets.token_hex(16)}"
