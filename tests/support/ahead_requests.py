"""Requests that end in every way there is, and what an engine answers them, whoever comes and goes meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tiny_model import END_ID
from torch import Tensor

from specdec import Engine, FinishReason, JsonSchema, Request, SamplingParams
from specdec.attention import Span
from specdec.request import TokenLogprob

SCHEMA = (
    '{"type": "object", "properties": {"kind": {"enum": ["one", "two"]}, "size": {"type": "integer"}}, '
    '"required": ["kind", "size"]}'
)
_TOLERANCE = 1e-4
_PENALTIES = {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.2}
REQUESTS = {
    "greedy": ("The quick brown fox jumps over", None, SamplingParams(temperature=0.0, max_tokens=14)),
    "sampled": ("a b c a b c a b c", None, SamplingParams(temperature=0.8, seed=1, max_tokens=11)),
    "schema": ("x", SCHEMA, SamplingParams(temperature=0.8, seed=2, max_tokens=40)),
    "greedy schema": ("y", SCHEMA, SamplingParams(temperature=0.0, max_tokens=30)),
    "stopped": ("z", None, SamplingParams(seed=3, stop=("e", "a", "th"), min_tokens=3, max_tokens=30)),
    "held": ("x", None, SamplingParams(seed=4, min_tokens=5, stop_token_ids=tuple(range(3, 200)), max_tokens=20)),
    "explained": ("u", None, SamplingParams(seed=5, temperature=0.8, logprobs=3, max_tokens=9)),
    "penalised": ("x y x y", None, SamplingParams(seed=6, temperature=0.8, max_tokens=17, **_PENALTIES)),
    "choices": ("z z", None, SamplingParams(seed=7, n=2, top_k=40, top_p=0.9, max_tokens=8)),
    "ended": ("v", None, SamplingParams(seed=8, logit_bias={END_ID: 6.0}, max_tokens=40)),
    "short": ("w", None, SamplingParams(seed=9, max_tokens=2)),
}
_ALIKE = tuple(5 + i % 37 for i in range(40))
LONG_REQUESTS = {
    "long": ((*_ALIKE, 60, 61), None, SamplingParams(temperature=0.0, max_tokens=9)),
    "alike": ((*_ALIKE, 70), None, SamplingParams(temperature=0.8, seed=11, max_tokens=12)),
    "long schema": (_ALIKE[3:], SCHEMA, SamplingParams(temperature=0.8, seed=12, max_tokens=38)),
    "long choices": ((*_ALIKE[:25], 80, 81), None, SamplingParams(temperature=0.8, seed=13, n=2, max_tokens=6)),
    "long stopped": (
        (*_ALIKE[:20], 90),
        None,
        SamplingParams(seed=14, min_tokens=3, stop_token_ids=tuple(range(3, 200)), max_tokens=20),
    ),
    "one token": (_ALIKE[1:31], None, SamplingParams(temperature=0.0, max_tokens=1)),
}
"""Whose prompts take several steps where a step has few tokens."""


@dataclass(slots=True, eq=False)
class Answer:
    """Of one choice, as far as it came; equal to another of the same text, if about as likely."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Answer) or len(self.logprobs) != len(other.logprobs):
            return NotImplemented
        own, others = (
            (each.token_ids, each.text, each.finish_reason, [logprob.token_id for logprob in each.logprobs])
            for each in (self, other)
        )
        # The last bits depend on who else is computed.
        return own == others and all(
            abs(one.logprob - two.logprob) < _TOLERANCE
            for a, b in zip(self.logprobs, other.logprobs, strict=True)
            for one, two in zip((a, *a.top), (b, *b.top), strict=True)
        )


AHEAD: dict[str, object] = {
    "block_size": 8,
    "max_num_seqs": 12,
    "speculative": None,
    "async_scheduling": True,
    "check_outputs": False,
}
"""What an engine that drafts nothing, and so launches passes ahead, is told otherwise than `config_of` tells it."""


def watch_chunks(engine: Engine) -> list[int]:
    """Of each sequence in a pass that was launched ahead and used, the tokens, where they are more than one."""
    taken, chunks = engine._passes._taken, []

    def watched(spans: list[Span]) -> Tensor | None:
        logits = taken(spans)
        if logits is not None:
            chunks.extend(len(span.token_ids) for span in spans if len(span.token_ids) > 1)
        return logits

    engine._passes._taken = watched
    return chunks


def queue(engine: Engine, name: str) -> None:
    prompt, schema, params = (REQUESTS | LONG_REQUESTS)[name]
    engine.add_request(
        Request(
            request_id=name,
            prompt_token_ids=tuple(engine.tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt,
            sampling_params=params,
            constraint=None if schema is None else JsonSchema(schema=schema),
        )
    )


def run(
    engine: Engine,
    names: tuple[str, ...] = tuple(REQUESTS),
    *,
    arrivals: Mapping[int, str] = {},
    aborts: Mapping[int, str] = {},
) -> dict[tuple[str, int], Answer]:
    """Answers by request and choice; arrivals and aborts by the number of steps taken before them."""
    answers: dict[tuple[str, int], Answer] = {}
    for name in names:
        queue(engine, name)
    num_steps = 0
    while engine.has_unfinished_requests() or any(step >= num_steps for step in arrivals):
        if num_steps in arrivals:
            queue(engine, arrivals[num_steps])
        if num_steps in aborts:
            engine.abort_request(aborts[num_steps])
        for delta in engine.step():
            answer = answers.setdefault((delta.request_id, delta.choice_index), Answer())
            answer.token_ids += delta.token_ids
            answer.text += delta.text
            answer.logprobs += delta.logprobs or ()
            answer.finish_reason = delta.finish_reason
        num_steps += 1
    stats = engine.stats()
    assert stats.num_kv_blocks_in_use == stats.num_requests_running == stats.num_requests_waiting == 0
    under_way = stats.num_passes_ahead - stats.num_passes_ahead_used - stats.num_passes_ahead_dropped
    assert under_way in {0, 1}
    return answers
