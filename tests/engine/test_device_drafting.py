"""Several tokens a draft without the host between them: the drafts are those that are drawn one by one.

Both engines run by the kernels' references; one of them is held to a token with every call.
"""

import kernel_engines
import numpy as np
import pytest
import torch
from device_watch import DEVICE, DeviceWatch
from kernel_engines import kernel_engine, kernels_on

from specdec import Engine, JsonSchema, Request, SamplingParams, SpeculativeConfig
from specdec.kernels.dispatch import INTERPRETED
from specdec.proposers.device_passes import DevicePasses
from specdec.proposers.stretch_lengths import StretchLengths
from specdec.speculative import MAX_DRAFT_TOKENS
from specdec.transition_mirror import TransitionMirror

PLACES = [pytest.param("cpu", id="interpreter" if INTERPRETED else "cpu")]
if not INTERPRETED:
    PLACES.append(pytest.param("cuda", id="gpu", marks=pytest.mark.gpu))
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
    "choices": ("z", LIST, SamplingParams(temperature=0.8, seed=6, n=2, top_k=50, top_p=0.95, max_tokens=30)),
    "penalised": ("x", SCHEMA, SamplingParams(seed=5, frequency_penalty=0.6, temperature=0.8, max_tokens=50)),
    "biased": ("x", None, SamplingParams(seed=7, logit_bias={40: 3.0}, min_tokens=4, temperature=0.8, max_tokens=9)),
}
if INTERPRETED:
    REQUESTS = {name: REQUESTS[name] for name in ("free", "tight")}


@pytest.fixture(scope="module", params=PLACES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def config_of(tiny_model_folder, tiny_draft_folder):
    def config(method="draft_model", num_tokens=4, **changes):
        speculative = SpeculativeConfig(method=method, model=str(tiny_draft_folder), num_speculative_tokens=num_tokens)
        return kernel_engines.config_of(
            tiny_model_folder, tiny_draft_folder, speculative=speculative, max_model_len=100, **changes
        )

    return config


def one_by_one(engine):
    """The engine, held to a token with every call."""
    engine.proposer._draft_model._passes.max_tokens = lambda sequence: 1
    return engine


def queue(engine, names=tuple(REQUESTS)):
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


def drafts_of(engine, *, abort_after=None):
    """Every draft by choice and length of the text before it, and the answers."""
    propose, drafts, answers = engine.proposer.propose, {}, {}

    def recording(batch):
        proposals = propose(batch)
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


@pytest.mark.parametrize(
    ("method", "num_tokens", "is_learnt"),
    [("draft_model", 3, False)]
    if INTERPRETED
    else [("draft_model", 4, False), ("draft_model", 5, True), ("draft_model+grammar+ngram", 5, False)],
)
def test_drafts_are_those_that_are_drawn_one_by_one(device, config_of, method, num_tokens, is_learnt, monkeypatch):
    """Stretches of learnt lengths, and of all that a draft has room for."""
    if not is_learnt:
        monkeypatch.setattr(StretchLengths, "num_tokens", lambda *_: MAX_DRAFT_TOKENS)
    engines = [kernel_engine(device, config_of(method, num_tokens)) for _ in range(2)]
    ahead, answers = drafts_of(engines[0])
    single, expected = drafts_of(one_by_one(engines[1]))
    assert ahead == single
    assert answers == expected
    assert any(len(token_ids) > 2 for token_ids, _ in ahead.values())
    stats = engines[0].stats()
    assert stats.num_draft_tokens_followed > 0
    assert stats.num_draft_tokens_unfollowed > 0
    assert engines[1].stats().num_draft_tokens_followed == 0


@pytest.mark.skipif(INTERPRETED, reason="nothing here is a kernel's own")
@pytest.mark.parametrize(
    ("limits", "abort_after"), [({"num_kv_blocks": 8}, None), ({}, 4)], ids=["preempted", "aborted"]
)
def test_drafts_are_the_same_where_sequences_come_and_go(config_of, limits, abort_after):
    engines = [kernel_engine(torch.device("cpu"), config_of(**limits)) for _ in range(2)]
    ahead, answers = drafts_of(engines[0], abort_after=abort_after)
    single, expected = drafts_of(one_by_one(engines[1]), abort_after=abort_after)
    assert (engines[0].stats().num_preemptions > 0) == (abort_after is None)
    assert ahead == single
    assert answers == expected


@pytest.mark.skipif(INTERPRETED, reason="nothing here is a kernel's own")
@pytest.mark.parametrize(
    ("num_buckets", "num_states", "max_rows"), [(1, 64, None), (16, 20, None), (4, 20, 100)], ids=str
)
def test_what_is_drawn_is_what_the_host_allows_however_little_the_device_can_know(
    config_of, num_buckets, num_states, max_rows, monkeypatch
):
    engine = kernel_engine(torch.device("cpu"), config_of(num_tokens=6))
    table = engine._compiler.mask_table
    if max_rows is not None:
        table.max_rows = max_rows
    passes = engine.proposer._draft_model._passes
    passes.transitions = TransitionMirror(
        table, passes.transitions._device, num_buckets=num_buckets, num_states=num_states
    )
    draw, num_checked, others = passes.draw, 0, iter(range(3, 10_000))

    def checked(stretches, silent):
        nonlocal num_checked
        for _ in range(10):
            # What other requests ask for meanwhile.
            table.intern(np.full_like(table.rows[0], next(others)))
        drawn = draw(stretches, silent)
        for stretch, (tokens, _) in zip(stretches, drawn, strict=True):
            assert 1 <= len(tokens) <= stretch.num_tokens
            grammar, state = stretch.row.sequence.grammar, stretch.draft.state
            for token_id, _ in tokens if grammar is not None else ():
                assert state is not None
                assert table.allows(grammar.mask_row(state), token_id)
                state = grammar.advance(state, token_id)
                num_checked += 1
        return drawn

    monkeypatch.setattr(passes, "draw", checked)
    monkeypatch.setattr(StretchLengths, "num_tokens", lambda *_: MAX_DRAFT_TOKENS)
    queue(engine)
    while engine.has_unfinished_requests():
        engine.step()
    assert num_checked > 100
    assert (table.num_overwritten > 0) == (max_rows is not None)


@pytest.mark.skipif(INTERPRETED, reason="nothing here is a kernel's own")
def test_the_device_learns_where_texts_have_gone(config_of):
    engine = kernel_engine(torch.device("cpu"), config_of())
    queue(engine, ("greedy schema",))
    engine.step()
    [sequence] = engine.scheduler.running
    drafted_at = []
    propose = engine.proposer.propose
    engine.proposer.propose = lambda batch: drafted_at.append(sequence.num_tokens) or propose(batch)
    while engine.has_unfinished_requests():
        engine.step()
    mirror = engine.proposer._draft_model._passes.transitions
    grammar = sequence.grammar.grammar
    state = grammar.initial_state
    num_known = 0
    for i, token_id in enumerate(sequence.output_token_ids[:-1]):
        successor = grammar.advance(state, token_id)
        # Behind the first draft and before the last: put already, or to be left out.
        if drafted_at[0] <= sequence.num_prompt_tokens + i < drafted_at[-1] - 5:
            num_known += 1
            assert not mirror.put(grammar, state, token_id, successor) or grammar.unguarded_from(successor) is None
        state = successor
    assert num_known > 5


@pytest.fixture(scope="module")
def watched(config_of):
    with pytest.MonkeyPatch.context() as patch, DeviceWatch() as watch, kernels_on(DEVICE):
        patch.setattr(torch, "from_numpy", None)
        engine = Engine(config_of())
    return watch, engine


@pytest.mark.skipif(INTERPRETED, reason="nothing here is a kernel's own")
def test_a_draft_waits_for_the_device_once_however_many_tokens_it_has(watched, monkeypatch):
    watch, engine = watched
    # However often that is of no use.
    monkeypatch.setattr(StretchLengths, "num_tokens", lambda *_: MAX_DRAFT_TOKENS)
    # Each draws ahead.
    names = ("free", "greedy", "schema", "greedy schema", "choices")
    for is_known in (False, True):
        monkeypatch.setattr(watch, "waits", [])
        before = engine.stats()
        with monkeypatch.context() as patch, watch:
            patch.setattr(torch, "from_numpy", None)
            patch.setattr(watch, "is_strict", True)
            queue(engine, names)
            while engine.has_unfinished_requests():
                engine.step()
        after = engine.stats()
        num_steps = after.num_steps - before.num_steps
        drafting = [each for each in watch.waits if "DeviceVerifier" not in each]
        assert len(watch.waits) - len(drafting) == num_steps
        single = "specdec.device_sampler.DeviceSampler.sample_drafts"
        assert set(drafting) <= {"specdec.proposers.device_passes.DevicePasses._draw", single}
        num_lacking = after.num_draft_tokens_unfollowed - before.num_draft_tokens_unfollowed
        num_guarded = after.num_draft_tokens_guarded - before.num_draft_tokens_guarded
        # Once a step, and once more behind a token that led where the device knew nothing.
        assert 0 < len(drafting) <= num_steps + num_lacking + num_guarded
        assert (num_lacking == 0) == is_known
    assert engine.stats().num_faults == {}


@pytest.mark.skipif(INTERPRETED, reason="nothing here is a kernel's own")
@pytest.mark.parametrize("fault", ["put", "draw"])
def test_a_fault_in_a_stretch_ends_the_request_at_fault(config_of, fault, monkeypatch):
    engine = kernel_engine(torch.device("cpu"), config_of())
    if fault == "put":
        put = TransitionMirror.put

        def faulty(mirror, grammar, *args):
            if "minItems" in grammar.constraint.schema:
                raise RuntimeError("planted")
            return put(mirror, grammar, *args)

        monkeypatch.setattr(TransitionMirror, "put", faulty)
    else:
        sampler = engine.verifier._sampler
        sample_drafts = sampler.sample_drafts

        def faulty(logits, rows):
            if any(row.sequence.request_id == "tight" for row in rows):
                raise RuntimeError("planted")
            return sample_drafts(logits, rows)

        def failing(passes, *args):
            raise RuntimeError("of nobody in particular")

        monkeypatch.setattr(sampler, "sample_drafts", faulty)
        monkeypatch.setattr(DevicePasses, "_run", failing)
    queue(engine, ("tight",) if fault == "draw" else ("schema", "tight"))
    faults = []
    while engine.has_unfinished_requests():
        faults += [delta.request_id for delta in engine.step() if delta.finish_reason == "error"]
    assert faults == ["tight"]
    assert engine.stats().num_faults == {"draft": 1}
