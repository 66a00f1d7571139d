"""Requests whose drafts several tokens long can be drawn ahead, or cannot, and what is drafted for them."""

from __future__ import annotations

from pathlib import Path

import kernel_engines

from specdec import Engine, EngineConfig, JsonSchema, Request, SamplingParams, SpeculativeConfig
from specdec.batch import Batch
from specdec.kernels.dispatch import INTERPRETED
from specdec.proposers.base import BeginPass, Proposal, Source

SCHEMA = (
    '{"type": "object", "properties": {"kind": {"enum": ["one", "two"]}, "sizes": {"type": "array", "items": '
    '{"type": "integer"}}, "name": {"type": "string", "maxLength": 8}}, "required": ["kind", "sizes", "name"]}'
)
LIST = '{"type": "array", "items": {"type": "array", "items": {"enum": ["a", "b", 1]}}, "minItems": 2}'
REQUESTS = {
    "free": ("The quick brown fox jumps over", None, SamplingParams(temperature=0.8, seed=1, max_tokens=14)),
    "greedy": ("a b c a b c a b c", None, SamplingParams(temperature=0.0, max_tokens=9)),
    "schema": ("x", SCHEMA, SamplingParams(temperature=0.8, seed=3, max_tokens=60)),
    "greedy schema": ("y", SCHEMA, SamplingParams(temperature=0.0, max_tokens=40)),
    "tight": ("z", LIST, SamplingParams(temperature=0.9, seed=4, max_tokens=14)),
    "choices": ("z", LIST, SamplingParams(temperature=0.8, seed=6, n=2, top_k=3, top_p=0.6, max_tokens=30)),
    "penalised": ("x", SCHEMA, SamplingParams(seed=5, frequency_penalty=0.6, temperature=0.8, max_tokens=50)),
    "held": (
        "x",
        None,
        SamplingParams(seed=8, min_tokens=5, stop_token_ids=tuple(range(3, 200)), temperature=0.9, max_tokens=9),
    ),
    "biased": ("x", None, SamplingParams(seed=7, logit_bias={40: 3.0}, min_tokens=4, temperature=0.8, max_tokens=9)),
}
if INTERPRETED:
    REQUESTS = {name: REQUESTS[name] for name in ("free", "tight")}


def drafting_config(
    target: Path, draft: Path, method: str = "draft_model", num_tokens: int = 4, **changes: object
) -> EngineConfig:
    speculative = SpeculativeConfig(method=method, model=str(draft), num_speculative_tokens=num_tokens)
    # Room for all prompts and drafts in one step: who gets the last of it is another's draft when they are drawn ahead.
    # Launched ahead, the target's passes would keep others than the model out of free text's drafts.
    sizes = {"max_model_len": 100, "max_num_batched_tokens": 128, "async_scheduling": False}
    return kernel_engines.config_of(target, draft, **({"speculative": speculative} | sizes | changes))


def one_by_one(engine: Engine) -> Engine:
    """The engine, held to a token with every call."""
    engine.proposer._draft_model._passes.max_tokens = lambda sequence: 1
    return engine


def queue(engine: Engine, names: tuple[str, ...] = tuple(REQUESTS)) -> None:
    for name in names:
        text, schema, params = REQUESTS[name]
        engine.add_request(
            Request(
                request_id=name,
                prompt_token_ids=tuple(engine.tokenizer.encode(text)),
                sampling_params=params,
                constraint=None if schema is None else JsonSchema(schema=schema),
            )
        )


def drafts_of(
    engine: Engine, *, abort_after: int | None = None
) -> tuple[dict[tuple[str, int, int], tuple[list[int], list[Source]]], dict[tuple[str, int], list[int]]]:
    """Every draft by choice and length of the text before it, and the answers."""
    propose, drafts, answers = engine.proposer.propose, {}, {}

    def recording(batch: Batch, begin_pass: BeginPass) -> list[Proposal]:
        proposals = propose(batch, begin_pass)
        for scheduled, proposal in zip(batch.scheduled, proposals, strict=True):
            sequence = scheduled.sequence
            key = sequence.request_id, sequence.choice_index, sequence.num_tokens
            drafts[key] = list(proposal.token_ids), list(proposal.sources)
            assert sequence.num_draft_computed_tokens <= sequence.num_tokens + len(proposal.token_ids)
            assert not proposal.is_last_forbidden
        return proposals

    engine.proposer.propose = recording
    queue(engine)
    num_steps = 0
    while engine.has_unfinished_requests():
        for delta in engine.step():
            answers.setdefault((delta.request_id, delta.choice_index), []).extend(delta.token_ids)
        num_steps += 1
        if num_steps == abort_after:
            engine.abort_request("schema")
    assert engine.stats().num_faults == {}
    assert engine.stats().num_kv_blocks_in_use == 0
    return drafts, answers
