"""An answer as it grows: the engine's deltas, numbered by choice, counted and timed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec import EnforcementReport, FinishReason, Request, SpeculationStats, TokenDelta, TokenLogprob
from specdec.request import DraftTrace
from specdec.server.errors import of_delta_error
from specdec.server.usage import (
    ChoiceTrace,
    Extension,
    PredictionTokens,
    RequestMetrics,
    Usage,
    speculative_decoding,
    usage,
)


@dataclass(slots=True)
class Choice:
    """One choice, as far as it has come."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_reasoning_tokens: int = 0
    drafts: list[DraftTrace] = field(default_factory=list)
    """One a target pass, where the request is traced."""
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        """Its tokens so far."""
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.texts)


class Answer:
    """All choices of a call: `n` for each of its prompts, numbered through.

    `keeps_content` is False for a stream, which sends what it gets and keeps only the counts;
    with `has_report` the extension says what was enforced, with `has_trace` what was drafted, with `has_prediction` the
    usage says what became of the prediction, with `has_steps` the metrics what each pass of the target drafted.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        keeps_content: bool,
        has_report: bool = False,
        has_prediction: bool = False,
        has_trace: bool = False,
        has_steps: bool = False,
    ) -> None:
        self.created = int(time.time())
        self.choices = [Choice(index) for index in range(sum(request.sampling_params.n for request in requests))]
        self.has_reasoning = False
        """Whether the usage says how many tokens are reasoning."""
        self._keeps_content = keeps_content
        self._first_choice: dict[str, int] = {}
        num_choices = 0
        for request in requests:
            self._first_choice[request.request_id] = num_choices
            num_choices += request.sampling_params.n
        self._num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self._num_cached_tokens: dict[str, int] = {}
        self._seeds: dict[str, int] = {}
        self._speculation: SpeculationStats | None = None
        self._prediction_tokens = PredictionTokens() if has_prediction else None
        self._has_trace = has_trace
        self._has_steps = has_steps
        self._has_report = has_report
        self._enforcement: EnforcementReport | None = None
        self._start = time.monotonic()
        self._queue_s: float | None = None
        self._first_token: float | None = None
        self._last_token: float | None = None

    def add(self, delta: TokenDelta) -> Choice:
        """Take a delta in, and say whose it is. Raises ApiError if the engine gave that choice up."""
        if delta.is_failure:
            raise of_delta_error(delta.request_id, delta.error)
        choice = self._choice_of(delta)
        choice.token_ids += delta.token_ids
        choice.drafts += delta.drafts
        choice.finish_reason = delta.finish_reason
        if self._keeps_content:
            choice.texts.append(delta.text)
            choice.logprobs.extend(delta.logprobs or ())
        self._num_cached_tokens[delta.request_id] = delta.num_cached_tokens
        self._seeds[delta.request_id] = delta.seed
        if delta.speculation is not None:
            self._speculation = delta.speculation
            if self._prediction_tokens is not None:
                self._prediction_tokens = self._prediction_tokens.plus(delta.speculation)
        if self._has_report and delta.enforcement is not None:
            self._enforcement = delta.enforcement
        if delta.queue_s is not None:
            self._queue_s = delta.queue_s
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
            self._prediction_tokens,
            sum(choice.num_reasoning_tokens for choice in self.choices) if self.has_reasoning else None,
        )

    def extension(self, last: Choice | None = None) -> Extension:
        """The seeds, in the order of the prompts; on request the report, and the trace of all choices or of `last`."""
        traced = self.choices if last is None else [last]
        trace = [ChoiceTrace(choice.index, choice.drafts) for choice in traced] if self._has_trace else None
        seeds = [self._seeds.get(request_id, 0) for request_id in self._first_choice]
        if len(seeds) == 1:
            return Extension(seed=seeds[0], enforcement=self._enforcement, trace=trace)
        return Extension(seeds=seeds, enforcement=self._enforcement, trace=trace)

    def metrics(self, max_draft_tokens: int) -> RequestMetrics | None:
        """Timing and speculation, of an answer with one choice, whose drafts have at most so many tokens."""
        if len(self.choices) != 1:
            return None
        num_tokens = self.choices[0].num_tokens
        first, last = self._first_token, self._last_token
        generation_s = last - first if first is not None and last is not None else None
        return RequestMetrics(
            time_to_first_token_ms=None if first is None else 1e3 * (first - self._start),
            generation_time_ms=None if generation_s is None else 1e3 * generation_s,
            queue_time_ms=None if self._queue_s is None else 1e3 * self._queue_s,
            mean_itl_ms=None if generation_s is None or num_tokens < 2 else 1e3 * generation_s / (num_tokens - 1),
            tokens_per_second=num_tokens / (last - self._start) if last is not None else None,
            speculative_decoding=None
            if self._speculation is None or not max_draft_tokens
            else speculative_decoding(
                self._speculation, max_draft_tokens, self.choices[0].drafts if self._has_steps else None
            ),
        )

    def account(self) -> dict[str, object]:
        """What the log says of the answer: how much, and why it ended. None for a choice that did not."""
        counts = self.usage()
        reasons = [None if choice.finish_reason is None else choice.finish_reason.value for choice in self.choices]
        return {
            "prompt_tokens": counts.prompt_tokens,
            "completion_tokens": counts.completion_tokens,
            "finish_reasons": reasons,
        }

    def _choice_of(self, delta: TokenDelta) -> Choice:
        return self.choices[self._first_choice[delta.request_id] + delta.choice_index]


def new_id(prefix: str) -> str:
    """An unguessable id in OpenAI's form."""
    return f"{prefix}-{secrets.token_hex(16)}"
