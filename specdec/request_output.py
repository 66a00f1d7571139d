"""OutputCollector: deltas of one request, joined to its output."""

from __future__ import annotations

from specdec.request import (
    CompletionOutput,
    DraftTrace,
    FinishReason,
    Request,
    RequestOutput,
    SpeculationStats,
    TokenDelta,
    TokenLogprob,
)


class _Choice:
    """One choice as it grows."""

    __slots__ = ("drafts", "last", "logprobs", "texts", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.drafts: list[DraftTrace] = []
        self.last: TokenDelta | None = None


class OutputCollector:
    """Takes a request's deltas in any order of choices."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._choices = [_Choice() for _ in range(request.sampling_params.n)]
        self._num_cached_tokens = 0

    @property
    def is_finished(self) -> bool:
        return all(choice.last is not None for choice in self._choices)

    def add(self, delta: TokenDelta) -> None:
        choice = self._choices[delta.choice_index]
        choice.token_ids += delta.token_ids
        choice.texts.append(delta.text)
        choice.logprobs += delta.logprobs or ()
        choice.drafts += delta.drafts
        if delta.choice_index == 0:
            self._num_cached_tokens = delta.num_cached_tokens
        if delta.finish_reason is not None:
            choice.last = delta

    def output(self) -> RequestOutput:
        """The finished request; only once `is_finished`."""
        outputs = []
        for index, choice in enumerate(self._choices):
            assert choice.last is not None, "output is taken of finished requests"
            outputs.append(
                CompletionOutput(
                    index=index,
                    text="".join(choice.texts),
                    token_ids=tuple(choice.token_ids),
                    finish_reason=choice.last.finish_reason or FinishReason.ERROR,
                    stop_reason=choice.last.stop_reason,
                    logprobs=tuple(choice.logprobs) if self._request.sampling_params.logprobs is not None else None,
                    seed=choice.last.seed,
                    speculation=choice.last.speculation or SpeculationStats(),
                    drafts=tuple(choice.drafts),
                    error=choice.last.error,
                )
            )
        return RequestOutput(
            request_id=self._request.request_id,
            prompt_token_ids=self._request.prompt_token_ids,
            num_cached_tokens=self._num_cached_tokens,
            choices=tuple(outputs),
            enforcement=self._choices[0].last.enforcement if self._choices[0].last else None,
        )
