"""An engine that launches passes ahead gives the answers of one that does not, whoever comes, goes, ends or fails."""

import pytest
from ahead_requests import AHEAD, LONG_REQUESTS, run, watch_chunks
from kernel_engines import kernel_engine

from specdec import FinishReason, Request, SamplingParams, device_verifier, target_pass
from specdec.device_sampler import DeviceSampler
from specdec.sequence import Sequence
from specdec.tokenizer import Detokenizer

NARROW = {"max_num_batched_tokens": 16}
"""So that the long requests' prompts take several steps."""


@pytest.fixture(scope="module")
def make(device, config_of):
    return lambda **changes: kernel_engine(device, config_of(**(AHEAD | {"device": device.type} | changes)))


@pytest.fixture(scope="module")
def ahead(make):
    return make()


@pytest.fixture(scope="module")
def waiting(make):
    """The engine that waits for each step's tokens before it launches the next pass."""
    return make(async_scheduling=False)


@pytest.fixture(scope="module")
def expected(waiting):
    answers = run(waiting)
    assert waiting.stats().num_passes_ahead == 0
    return answers


def num_used(engine):
    return engine.stats().num_passes_ahead_used


def num_dropped(before, after):
    """Of two snapshots: passes that came to nothing, without one that was left over before."""
    left = before.num_passes_ahead - before.num_passes_ahead_used - before.num_passes_ahead_dropped
    return after.num_passes_ahead_dropped - before.num_passes_ahead_dropped - left


def test_answers_are_those_of_an_engine_that_waits(ahead, expected):
    before = ahead.stats()
    answers = run(ahead)
    assert answers == expected
    reasons = {name: answer.finish_reason for (name, _), answer in answers.items()}
    assert {name for name, reason in reasons.items() if reason is FinishReason.STOP} >= {"schema", "held", "ended"}
    assert len({len(answer.token_ids) for answer in answers.values()}) > 6, "they end at different steps"
    stats = ahead.stats()
    num_steps = stats.num_steps - before.num_steps
    assert num_steps - 5 < stats.num_passes_ahead_used - before.num_passes_ahead_used < num_steps
    assert num_dropped(before, stats) == 0
    assert stats.num_faults == before.num_faults


def test_eager_passes_are_launched_ahead_as_well(make, expected):
    engine = make(enforce_eager=True)
    assert run(engine) == expected
    assert num_used(engine) > 10


@pytest.mark.parametrize("name", ["greedy", "schema", "penalised", "ended", "choices"])
def test_alone_as_among_others(ahead, expected, name):
    for (request_id, choice), answer in run(ahead, (name,)).items():
        assert answer == expected[request_id, choice]


@pytest.mark.parametrize("num_steps", range(16))
def test_whoever_comes_at_any_step_changes_nobodys_answer(ahead, expected, num_steps):
    names = ("sampled", "schema", "ended", "short")
    before = num_used(ahead)
    answers = run(ahead, names, arrivals={num_steps: "explained", num_steps + 1: "choices", num_steps + 3: "greedy"})
    assert len(answers) == 8
    assert all(answer == expected[key] for key, answer in answers.items())
    assert num_used(ahead) > before + 5


@pytest.mark.parametrize("num_steps", range(14))
def test_whoever_is_aborted_at_any_step_changes_nobodys_answer(ahead, expected, num_steps):
    names = ("greedy", "choices", "schema", "sampled")
    answers = run(ahead, names, aborts={num_steps: "greedy"}, arrivals={num_steps: "penalised"})
    aborted = answers.pop(("greedy", 0), None)
    assert all(answer == expected[key] for key, answer in answers.items())
    assert len(answers) == 5
    if aborted is not None:
        whole = expected["greedy", 0].token_ids
        assert aborted.token_ids == whole[:num_steps] or aborted == expected["greedy", 0]


def test_all_may_be_aborted_and_others_come_at_once(ahead, expected):
    before = ahead.stats()
    answers = run(ahead, ("greedy",), aborts={4: "greedy"}, arrivals={4: "sampled"})
    assert answers["sampled", 0] == expected["sampled", 0]
    assert num_dropped(before, ahead.stats()) == 1, "nobody was left for the one that was under way"


def test_preempted_answers_go_on(make, expected):
    names = ("greedy", "schema", "penalised", "sampled", "ended")
    engine = make(num_kv_blocks=9)
    answers = run(engine, names)
    assert all(answer == expected[key] for key, answer in answers.items())
    assert engine.stats().num_preemptions > 0
    assert num_used(engine) > 5


def test_what_the_prefix_cache_finds_was_not_overwritten(make, waiting):
    """Each answer is the next prompt: its blocks were full while passes were under way for what came after it."""
    engine = make(num_kv_blocks=14)
    prompts, answers = ([1, 7, 9, 12, 5], [1, 8]), {}
    for each in (engine, waiting):
        texts, answers[each] = list(prompts), []
        params = [SamplingParams(max_tokens=12, seed=i, ignore_eos=True) for i in range(2)]
        for _ in range(5):
            outputs = each.generate(texts, params)
            texts = [[*text, *output.choices[0].token_ids] for text, output in zip(texts, outputs, strict=True)]
            answers[each].append(texts)
    assert answers[engine] == answers[waiting]
    assert engine.stats().prefix_cache_hits >= 8 * 8
    assert num_used(engine) >= 50


@pytest.fixture(scope="module", params=[False, True], ids=["computed", "found"])
def narrow(make, request):
    """An engine, and the chunks of prompts that it took from passes launched ahead, some found by prefix."""
    engine = make(**NARROW, enable_prefix_caching=request.param)
    return engine, watch_chunks(engine)


@pytest.fixture(scope="module")
def expected_of_long(make):
    """By whole prompts, one request after the other."""
    engine, answers = make(async_scheduling=False), {}
    for name in LONG_REQUESTS:
        answers |= run(engine, (name,))
    return answers


@pytest.mark.parametrize("changes", [{}, {"enforce_eager": True}, {"enable_prefix_caching": False}])
def test_prompts_in_chunks_are_computed_ahead_beside_answers(make, expected, expected_of_long, changes):
    engine = make(**NARROW, **changes)
    chunks = watch_chunks(engine)
    answers = run(engine, ("greedy", "schema", *LONG_REQUESTS, "penalised", "ended"))
    assert all(answer == (expected | expected_of_long)[key] for key, answer in answers.items())
    assert len(answers) == 4 + len(expected_of_long)
    stats = engine.stats()
    assert len(chunks) >= 8
    assert max(chunks) >= 12
    assert stats.num_passes_ahead_used > 0.7 * stats.num_steps
    assert stats.num_passes_ahead_dropped == 0


def test_a_chunk_waits_for_those_that_launch_no_pass_ahead_as_well(make, expected_of_long):
    assert run(make(**NARROW, async_scheduling=False), tuple(LONG_REQUESTS)) == expected_of_long


@pytest.mark.parametrize("num_steps", range(12))
def test_prompts_that_come_in_every_step_change_nobodys_answer(narrow, expected, expected_of_long, num_steps):
    engine, chunks = narrow
    before, num_before = engine.stats(), len(chunks)
    arrivals = {num_steps + i: name for i, name in enumerate(("long", "long schema", "short", "alike", "long choices"))}
    answers = run(engine, ("sampled", "schema"), arrivals=arrivals)
    assert all(answer == (expected | expected_of_long)[key] for key, answer in answers.items())
    assert len(answers) == 8
    assert len(chunks) > num_before or engine.config.enable_prefix_caching
    assert num_dropped(before, engine.stats()) == 0


@pytest.mark.parametrize("name", ["long", "sampled", "alike"])
@pytest.mark.parametrize("num_steps", range(1, 12, 2))
def test_whoever_is_aborted_beside_or_in_a_chunk_changes_nobodys_answer(
    narrow, expected, expected_of_long, name, num_steps
):
    engine, chunks = narrow
    before, num_before = engine.stats(), len(chunks)
    names = ("sampled", "greedy", "long", "alike", "long stopped")
    answers = run(engine, names, aborts={num_steps: name}, arrivals={num_steps: "one token"})
    answers.pop((name, 0), None)
    assert all(answer == (expected | expected_of_long)[key] for key, answer in answers.items())
    assert len(answers) == 5
    assert len(chunks) > num_before or engine.config.enable_prefix_caching
    assert num_dropped(before, engine.stats()) == 0


@pytest.mark.parametrize("num_kv_blocks", [10, 13, 16])
def test_preempted_prompts_are_computed_again_ahead(make, expected, expected_of_long, num_kv_blocks):
    engine = make(**NARROW, num_kv_blocks=num_kv_blocks)
    chunks = watch_chunks(engine)
    answers = run(engine, ("greedy", "long", "schema", "alike", "long choices", "penalised"))
    assert all(answer == (expected | expected_of_long)[key] for key, answer in answers.items())
    assert len(answers) == 7
    assert engine.stats().num_preemptions > 0
    assert len(chunks) >= 2


def test_a_block_of_a_chunk_is_found_once_its_step_has_ended_and_not_before(make):
    """Of a prompt that is aborted while a pass over its next chunk is under way."""
    engine, whole = make(**NARROW), make(async_scheduling=False)
    prompt = list(range(5, 69))
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    expected = whole.generate(prompt, params)[0].choices[0].token_ids
    for num_steps in range(1, 4):
        engine.add_request(Request(request_id="left", prompt_token_ids=(num_steps + 100, *prompt[1:])))
        for _ in range(num_steps):
            engine.step()
        assert engine.scheduler.running[0].num_computed_tokens == 16 * num_steps
        num_cached = engine.scheduler.block_pool.num_cached
        engine.abort_request("left")
        assert engine.scheduler.block_pool.num_cached == num_cached
        hits = engine.stats().prefix_cache_hits
        again = Request(request_id="again", prompt_token_ids=(num_steps + 100, *prompt[1:]))
        engine.add_request(again)
        engine.step()
        assert engine.stats().prefix_cache_hits == hits + 16 * num_steps
        engine.abort_request("again")
    assert engine.generate(prompt, params)[0].choices[0].token_ids == expected


class Planted(Exception):
    """A bug that nobody foresaw."""


def plant(monkeypatch, kind, name, is_due):
    function = getattr(kind, name)

    def faulty(*args, **kwargs):
        if is_due(*args):
            raise Planted
        return function(*args, **kwargs)

    monkeypatch.setattr(kind, name, faulty)


@pytest.mark.parametrize("stage", ["mask", "sample", "wait", "commit", "hash", "learn"])
def test_a_fault_of_one_changes_nobody_elses_answer(ahead, expected, monkeypatch, stage):
    """Also one that comes out once the next pass has overwritten the logits by which it is traced."""
    before = ahead.stats()
    bad = "explained" if stage == "wait" else "schema"

    def is_bad(sequence):
        return sequence.request_id == bad and sequence.num_output_tokens >= 4

    def running():
        return next((each for each in ahead.scheduler.running if is_bad(each)), None)

    def has_bad(groups):
        return any(is_bad(group.sequence) for group in groups)

    faults = {
        "mask": (target_pass, "draft_rows", lambda _: running() is not None),
        "sample": (DeviceSampler, "edit", lambda _, logits, rows, given: has_bad(rows.groups)),
        "wait": (device_verifier, "explain", lambda _, groups, *__: has_bad(groups)),
        "commit": (Detokenizer, "push", lambda own, _: running() is not None and own is running().detokenizer),
        "hash": (Sequence, "hashes", lambda own, *_: is_bad(own)),
        "learn": (ahead.proposer, "_learn", lambda own, *_: is_bad(own)),
    }
    plant(monkeypatch, *faults[stage])
    answers = run(ahead, ("greedy", "sampled", "schema", "explained", "choices"))
    assert answers.pop((bad, 0)).finish_reason is FinishReason.ERROR
    assert len(answers) == 5
    assert all(answer == expected[key] for key, answer in answers.items())
    stats = ahead.stats()
    assert sum(stats.num_faults.values()) == sum(before.num_faults.values()) + 1
    assert stats.num_passes_ahead_used > before.num_passes_ahead_used + 5
    assert num_dropped(before, stats) == (1 if stage == "wait" else 0)
