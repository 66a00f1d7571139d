"""Several tokens a draft without the host between them: sequences that come and go, grammars, waits, faults."""

import functools

import numpy as np
import pytest
import torch
from device_watch import DEVICE, DeviceWatch
from drawn_ahead import drafting_config, drafts_of, one_by_one, queue
from kernel_engines import kernel_engine, kernels_on

from specdec import Engine, Request, SamplingParams, mask_mirror
from specdec.captured_drafting import CapturedDrafting
from specdec.launched_drafting import DrawnLoop
from specdec.proposers.stretch_lengths import StretchLengths
from specdec.speculative import MAX_DRAFT_TOKENS
from specdec.transition_mirror import TransitionMirror


@pytest.fixture(scope="module")
def config_of(tiny_model_folder, tiny_draft_folder):
    return functools.partial(drafting_config, tiny_model_folder, tiny_draft_folder)


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


def test_drafts_are_the_same_while_the_mirror_of_masks_grows(config_of, monkeypatch):
    """Graphs read masks where the mirror has them, and are captured anew, between a loop and the next."""
    engines = [kernel_engine(torch.device("cpu"), config_of()) for _ in range(2)]
    monkeypatch.setattr(mask_mirror, "_MIN_ROWS", 1)
    passes = engines[0].proposer._draft_model._passes
    passes.transitions = TransitionMirror(engines[0]._compiler.mask_table, passes._runner.device)
    captured = []
    capture = CapturedDrafting.capture
    monkeypatch.setattr(
        CapturedDrafting, "capture", lambda drafting, *given: captured.append(given) or capture(drafting, *given)
    )
    ahead, answers = drafts_of(engines[0])
    assert len({transitions.mask_rows.shape[0] for _, transitions in captured}) > 2
    single, expected = drafts_of(one_by_one(engines[1]))
    assert ahead == single
    assert answers == expected


@pytest.mark.parametrize(
    ("num_buckets", "num_states", "max_rows"),
    [(1, 64, None), (16, 20, None), (4, 20, 100), (1024, 4096, None)],
    ids=str,
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
        for stretch, (tokens, is_lost) in zip(stretches, drawn, strict=True):
            assert 1 <= len(tokens) <= stretch.num_tokens
            grammar, state = stretch.row.sequence.grammar, stretch.draft.state
            for token_id, _ in tokens if grammar is not None else ():
                assert state is not None
                assert table.allows(grammar.mask_row(state), token_id)
                state = grammar.advance(state, token_id)
                num_checked += 1
            if len(tokens) < stretch.num_tokens:
                assert is_lost or grammar.is_terminated(state), "else it would be asked for as many the next time"
        return drawn

    monkeypatch.setattr(passes, "draw", checked)
    monkeypatch.setattr(StretchLengths, "num_tokens", lambda *_: MAX_DRAFT_TOKENS)
    queue(engine)
    while engine.has_unfinished_requests():
        engine.step()
    assert num_checked > 100
    assert (table.num_overwritten > 0) == (max_rows is not None)


def test_passes_behind_a_prompt_s_are_not_said_to_take_their_share_of_its_time(config_of, monkeypatch):
    """Passes in a row are timed together, and how long one of a token a sequence takes is what lengths depend on."""
    engine = kernel_engine(torch.device("cpu"), config_of())
    told, drawn = [], []
    monkeypatch.setattr(engine.proposer._lengths, "observe_draft_pass", lambda num_tokens, _: told.append(num_tokens))
    draw = engine.proposer._draft_model.draw

    def watched(drafts, *given):
        loop = draw(drafts, *given)
        drawn.append((len(drafts), loop.pass_tokens))
        return loop

    monkeypatch.setattr(engine.proposer._draft_model, "draw", watched)
    monkeypatch.setattr(StretchLengths, "num_tokens", lambda *_: MAX_DRAFT_TOKENS)
    queue(engine, ("free", "greedy schema"))
    for _ in range(4):
        engine.step()
    prompt = tuple(5 + i % 40 for i in range(60))
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    engine.add_request(Request(request_id="long", prompt_token_ids=prompt, sampling_params=params))
    while engine.has_unfinished_requests():
        engine.step()
    beside_prompt = [tokens for num_drafts, tokens in drawn if len(tokens) > 1 and tokens[0] > 2 * num_drafts]
    assert any(tokens[0] >= 60 for tokens in beside_prompt)
    others = [tokens for _, tokens in drawn if tokens not in beside_prompt]
    assert any(len(tokens) > 1 for tokens in others)
    assert told == [num_tokens for tokens in others for num_tokens in tokens]


def test_the_device_learns_where_texts_have_gone(config_of):
    engine = kernel_engine(torch.device("cpu"), config_of())
    queue(engine, ("greedy schema",))
    engine.step()
    [sequence] = engine.scheduler.running
    drafted_at = []
    propose = engine.proposer.propose
    engine.proposer.propose = lambda *given: drafted_at.append(sequence.num_tokens) or propose(*given)
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
        single = "specdec.device_sampler.DeviceSampler.sample_drafts"
        assert set(watch.waits) <= {"specdec.device_tensors.HostCopy.arrays", single}
        # Each step waits for what it emits.
        num_drafting = len(watch.waits) - num_steps
        num_lacking = after.num_draft_tokens_unfollowed - before.num_draft_tokens_unfollowed
        num_guarded = after.num_draft_tokens_guarded - before.num_draft_tokens_guarded
        # Once a step, and once more behind a token that led where the device knew nothing.
        assert 0 < num_drafting <= num_steps + num_lacking + num_guarded
        assert (num_lacking == 0) == is_known
    assert engine.stats().num_faults == {}


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

        def failing(loop):
            raise RuntimeError("of nobody in particular")

        monkeypatch.setattr(sampler, "sample_drafts", faulty)
        monkeypatch.setattr(DrawnLoop, "joined", failing)
    queue(engine, ("tight",) if fault == "draw" else ("schema", "tight"))
    faults = []
    while engine.has_unfinished_requests():
        faults += [delta.request_id for delta in engine.step() if delta.finish_reason == "error"]
    assert faults == ["tight"]
    assert engine.stats().num_faults == {"draft": 1}
