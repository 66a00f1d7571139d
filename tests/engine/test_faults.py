"""A fault in the work for one request ends that request; the others get what they would have got without it."""

import logging

import pytest

import specdec.engine
import specdec.sampler
import specdec.target_pass
from specdec import (
    Engine,
    EngineConfig,
    FinishReason,
    GenerationError,
    JsonSchema,
    Request,
    RequestFaultError,
    SamplingParams,
    SpeculativeConfig,
)
from specdec.grammars import BudgetedGrammar
from specdec.proposers.base import Draft, Guess
from specdec.request_output import OutputCollector
from specdec.sequence import Sequence, SpeculationCounts
from specdec.tokenizer import Detokenizer

BAD = "the-one-at-fault"
SCHEMA = (
    '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "size": {"type": "integer"}}, '
    '"required": ["name", "size"]}'
)
GOOD = {
    "greedy": ("hello hello hello hello", None, SamplingParams(temperature=0.0, max_tokens=14, logprobs=2)),
    "sampled": ("The quick brown fox", None, SamplingParams(seed=5, max_tokens=20, logprobs=0, frequency_penalty=0.5)),
    "schema": ('{"name": "Ada"}', SCHEMA, SamplingParams(seed=6, max_tokens=60)),
    "choices": ("a b c a b c a b c", None, SamplingParams(seed=7, n=2, max_tokens=12, top_k=40)),
}
BEGIN = 3
"""Tokens that the request at fault has when its fault begins."""


class Planted(Exception):
    """A bug that nobody foresaw."""


@pytest.fixture(scope="module")
def engine(tiny_model_folder, tiny_draft_folder):
    return Engine(
        EngineConfig(
            model=str(tiny_model_folder),
            exact=True,
            max_model_len=256,
            num_kv_blocks=200,
            speculative=SpeculativeConfig(model=str(tiny_draft_folder), num_speculative_tokens=5),
            check_outputs=True,
            num_compile_workers=0,
        )
    )


def request(engine, request_id, text, schema, params):
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(engine.tokenizer.encode(text)),
        sampling_params=params,
        constraint=None if schema is None else JsonSchema(schema=schema),
    )


def bad_request(engine, **params):
    fields = {"temperature": 1.0, "seed": 9, "max_tokens": 60, "frequency_penalty": 0.2} | params
    return request(engine, BAD, "x " * 40, SCHEMA.replace("size", "age"), SamplingParams(**fields))


def run(engine, *others):
    """What the good requests get, and the deltas of those beside them."""
    collectors = {}
    for request_id, (text, schema, params) in GOOD.items():
        good = request(engine, request_id, text, schema, params)
        collectors[request_id] = OutputCollector(good)
        engine.add_request(good)
    for other in others:
        engine.add_request(other)
    deltas = []
    while engine.has_unfinished_requests():
        for delta in engine.step():
            if delta.request_id in collectors:
                collectors[delta.request_id].add(delta)
            else:
                deltas.append(delta)
    outputs = {request_id: collector.output() for request_id, collector in collectors.items()}
    answers = {
        request_id: [
            (choice.token_ids, choice.text, choice.finish_reason, choice.logprobs) for choice in output.choices
        ]
        for request_id, output in outputs.items()
    }
    return answers, deltas


@pytest.fixture(scope="module")
def undisturbed(engine):
    return run(engine)[0]


def is_due(sequence, begin=BEGIN):
    return sequence.request_id == BAD and sequence.num_output_tokens >= begin


def raising(function, when):
    """The function, which raises from when its arguments say so."""

    def faulty(*args, **kwargs):
        if when(*args):
            raise Planted
        return function(*args, **kwargs)

    return faulty


def bad_sequence(engine):
    return next((each for each in engine.scheduler.running if each.request_id == BAD), None)


def is_bad_ones(engine, part):
    """Whether something belongs to the sequence at fault, once that has its first tokens."""
    sequence = bad_sequence(engine)
    return sequence is not None and is_due(sequence) and part in {id(sequence.detokenizer), id(sequence.grammar)}


def plant_hash(engine, monkeypatch):
    monkeypatch.setattr(Sequence, "hashes", raising(Sequence.hashes, lambda sequence, *_: is_due(sequence, 0)))


def plant_hash_of_answer(engine, monkeypatch):
    monkeypatch.setattr(Sequence, "hashes", raising(Sequence.hashes, lambda sequence, *_: is_due(sequence)))


def plant_guess(engine, monkeypatch):
    drafter = engine.proposer._drafters[0]
    monkeypatch.setattr(drafter, "guess", raising(drafter.guess, lambda draft: is_due(draft.sequence)))


def plant_wrong_tokens(engine, monkeypatch):
    drafter = engine.proposer._drafters[0]
    guess, push = drafter.guess, Draft.push

    def faulty_push(draft, token_id, *args):
        if token_id == 10**6:
            draft._add(token_id, *args, None)
            return True
        return push(draft, token_id, *args)

    monkeypatch.setattr(drafter, "guess", lambda draft: Guess([10**6]) if is_due(draft.sequence) else guess(draft))
    monkeypatch.setattr(Draft, "push", faulty_push)


def plant_chances(engine, monkeypatch):
    estimates = engine.proposer._lengths.estimates
    probability = raising(
        estimates.probability, lambda sequence, source: is_due(sequence) and source.proposer == "draft_model"
    )
    monkeypatch.setattr(estimates, "probability", probability)


def plant_draft_draw(engine, monkeypatch):
    sampler = engine.verifier._sampler
    draws = raising(sampler.sample_drafts, lambda _, rows: any(is_due(row.sequence) for row in rows))
    monkeypatch.setattr(sampler, "sample_drafts", draws)


def plant_masks(engine, monkeypatch):
    rows = raising(
        specdec.target_pass.draft_rows, lambda walks: any(is_bad_ones(engine, id(walk.grammar)) for walk in walks)
    )
    monkeypatch.setattr(specdec.target_pass, "draft_rows", rows)


def plant_penalty(engine, monkeypatch):
    penalise = raising(specdec.sampler._penalise, lambda _, row: is_due(row.sequence))
    monkeypatch.setattr(specdec.sampler, "_penalise", penalise)
    # So that the target's own draw is what fails first.
    monkeypatch.setattr(engine.proposer, "_draft_model", None)


def plant_impossible_token(engine, monkeypatch):
    advance = BudgetedGrammar.advance
    monkeypatch.setattr(
        BudgetedGrammar,
        "advance",
        lambda grammar, *args: None if is_bad_ones(engine, id(grammar)) else advance(grammar, *args),
    )


def plant_detokenizer(engine, monkeypatch):
    push = raising(Detokenizer.push, lambda detokenizer, _: is_bad_ones(engine, id(detokenizer)))
    monkeypatch.setattr(Detokenizer, "push", push)


def plant_end_of_text(engine, monkeypatch):
    flush = raising(Detokenizer.flush, lambda detokenizer: is_bad_ones(engine, id(detokenizer)))
    monkeypatch.setattr(Detokenizer, "flush", flush)


def plant_final_counts(engine, monkeypatch):
    def is_bad(counts):
        sequence = bad_sequence(engine)
        return sequence is not None and counts is sequence.speculation

    monkeypatch.setattr(SpeculationCounts, "freeze", raising(SpeculationCounts.freeze, is_bad))


def plant_estimates(engine, monkeypatch):
    estimates = engine.proposer._lengths.estimates
    monkeypatch.setattr(estimates, "observe", raising(estimates.observe, lambda sequence, *_: is_due(sequence)))


@pytest.mark.parametrize(
    ("plant", "stage"),
    [
        (plant_hash, "schedule"),
        (plant_hash_of_answer, "commit"),
        (plant_guess, "draft"),
        (plant_wrong_tokens, "draft"),
        (plant_chances, "draft"),
        (plant_draft_draw, "draft"),
        (plant_masks, "mask"),
        (plant_penalty, "sample"),
        (plant_impossible_token, "commit"),
        (plant_detokenizer, "commit"),
        (plant_end_of_text, "commit"),
        (plant_final_counts, "commit"),
        (plant_estimates, "learn"),
    ],
)
def test_a_fault_ends_its_own_request_and_no_other_differs(engine, undisturbed, monkeypatch, caplog, plant, stage):
    counts_before = engine.stats().num_faults
    plant(engine, monkeypatch)
    with caplog.at_level(logging.ERROR, logger="specdec"):
        answers, deltas = run(engine, bad_request(engine))
    assert answers == undisturbed
    assert deltas[-1].finish_reason is FinishReason.ERROR
    assert deltas[-1].error is None, "what went wrong is for the log"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    stats = engine.stats()
    assert stats.num_kv_blocks_in_use == 0
    assert stats.num_requests_running == stats.num_requests_waiting == 0
    assert {
        each: n - counts_before.get(each, 0) for each, n in stats.num_faults.items() if n != counts_before.get(each)
    } == {stage: 1}
    (record,) = [each for each in caplog.records if each.message == "the engine failed on a request"]
    assert record.specdec_fields == {"answer_id": BAD, "choice": 0, "stage": stage}
    assert record.exc_info is not None
    monkeypatch.undo()
    assert run(engine)[0] == undisturbed
    _, again = run(engine, bad_request(engine))
    assert again[-1].finish_reason is FinishReason.STOP, "its id and its blocks can be used again"


def test_an_answer_that_was_whole_before_its_fault_is_given(engine, undisturbed, monkeypatch):
    drafter = engine.proposer._drafters[2]
    finished = raising(drafter.finished, lambda sequence: sequence.request_id == BAD)
    monkeypatch.setattr(drafter, "finished", finished)
    num_before = engine.stats().num_faults.get("learn", 0)
    answers, deltas = run(engine, bad_request(engine))
    assert answers == undisturbed
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert engine.stats().num_faults["learn"] == num_before + 1


@pytest.mark.parametrize("where", ["admit", "add"])
def test_a_request_that_cannot_be_begun_is_refused_whole(engine, undisturbed, monkeypatch, where):
    if where == "admit":
        when = lambda request: request.request_id == BAD  # noqa: E731
        monkeypatch.setattr(specdec.engine, "admit", raising(specdec.engine.admit, when))
    else:
        second = lambda sequence: sequence.request_id == BAD and sequence.choice_index == 1  # noqa: E731
        monkeypatch.setattr(engine.scheduler, "add", raising(engine.scheduler.add, second))
    with pytest.raises(RequestFaultError, match="its log says why") as failed:
        engine.add_request(bad_request(engine, n=2))
    assert isinstance(failed.value.__cause__, Planted)
    assert not engine.has_unfinished_requests()
    assert engine.stats().num_faults["prepare"] >= 1
    monkeypatch.undo()
    answers, deltas = run(engine, bad_request(engine, n=2))
    assert answers == undisturbed
    assert {delta.choice_index for delta in deltas if delta.finish_reason is FinishReason.STOP} == {0, 1}


def test_generate_says_which_prompt_failed_and_keeps_the_others(engine, monkeypatch):
    params = SamplingParams(temperature=0.0, max_tokens=6)
    expected = engine.generate("hello", params)[0].choices
    accept = engine.scheduler._stop_checker.accept
    long = raising(accept, lambda sequence, _: sequence.num_prompt_tokens > 50)
    monkeypatch.setattr(engine.scheduler._stop_checker, "accept", long)
    with pytest.raises(GenerationError, match="its log says why") as failed:
        engine.generate(["hello", "x " * 80], params)
    good, bad = failed.value.outputs
    assert [each.token_ids for each in good.choices] == [each.token_ids for each in expected]
    assert bad.choices[0].finish_reason is FinishReason.ERROR


def test_a_fault_that_is_nobodys_still_ends_the_engine(engine, monkeypatch):
    engine.add_request(bad_request(engine))
    monkeypatch.setattr(engine.runner, "forward", raising(engine.runner.forward, lambda *_: True))
    with pytest.raises(Planted):
        engine.step()
    monkeypatch.undo()
    monkeypatch.setattr(engine.scheduler.block_pool, "allocate", raising(lambda _: None, lambda _: True))
    with pytest.raises(Planted):
        run(engine)
    monkeypatch.undo()
    for request_id in (BAD, *GOOD):
        engine.abort_request(request_id)
    assert engine.stats().num_kv_blocks_in_use == 0
