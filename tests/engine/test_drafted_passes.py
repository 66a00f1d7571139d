"""Passes of the target launched behind the draft model's: the answers are those of an engine that waits for drafts."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ahead_requests import LONG_REQUESTS, run
from device_watch import DEVICE, DeviceWatch
from drawn_ahead import drafting_config, drafts_of
from kernel_engines import kernel_engine, kernels_on

from specdec import Engine, FinishReason, Request, SamplingParams, SpeculativeConfig, overlapped_passes
from specdec.faults import attributed_to
from specdec.launched_drafting import DrawnLoop
from specdec.proposers import chain as proposers_chain
from specdec.proposers.length import DraftLengths
from specdec.speculative import SpeculativeParams, Verification
from specdec.verifier import PendingOutcomes

FREE = ("greedy", "sampled", "explained", "choices", "short")
OTHERS = ("schema", "greedy schema", "penalised", "held", "stopped", "ended")
"""For which the host looks at each token that the model draws, or at each stretch; some only at first."""
LONG = ("long", "alike", "long choices", "one token")
CHAIN = "draft_model+grammar+ngram"


@pytest.fixture(scope="module")
def make(device, tiny_model_folder, tiny_draft_folder):
    def make(method="draft_model", num_tokens=4, **changes):
        own = {"device": device.type, "async_scheduling": True, "max_num_seqs": 12} | changes
        return kernel_engine(device, drafting_config(tiny_model_folder, tiny_draft_folder, method, num_tokens, **own))

    return make


@pytest.fixture(scope="module")
def ahead(make):
    """By the method's name an engine that launches passes behind their drafts."""
    return functools.cache(make)


@pytest.fixture(scope="module")
def expected(make):
    """Of an engine that waits for drafts: whoever drafts, coupled drafts change no answer."""
    waiting = make(async_scheduling=False)
    answers = run(waiting, (*FREE, *OTHERS, *LONG_REQUESTS))
    assert passes_of(waiting) == (0, 0, 0)
    assert waiting.stats().speculation.num_accepted_tokens > 0
    return answers


def passes_of(engine):
    """Launched ahead, of these used, and dropped."""
    stats = engine.stats()
    return stats.num_passes_ahead, stats.num_passes_ahead_used, stats.num_passes_ahead_dropped


def assert_expected(engine, expected, names, *, least_used, **changes):
    """That the answers are, and that so many passes were launched ahead, and each used."""
    before = passes_of(engine)
    answers = run(engine, names, **changes)
    assert answers == {key: expected[key] for key in answers}
    assert {name for name, _ in answers} >= set(names) - set(changes.get("aborts", {}).values())
    num_launched, num_used, num_dropped = (
        now - earlier for now, earlier in zip(passes_of(engine), before, strict=True)
    )
    assert num_launched == num_used >= least_used
    assert num_dropped == 0
    assert engine.stats().num_faults == {}


@pytest.mark.parametrize("method", ["draft_model", CHAIN])
@pytest.mark.parametrize(("names", "least_used"), [(FREE, 5), ((*FREE, *OTHERS), 0), (("sampled", *LONG), 5)], ids=str)
def test_answers_are_those_of_an_engine_that_waits_for_drafts(ahead, expected, method, names, least_used):
    assert_expected(ahead(method), expected, names, least_used=least_used)


def test_prompts_that_take_several_steps_are_computed_beside(make, expected):
    engine = make(max_num_batched_tokens=24)
    assert_expected(engine, expected, ("sampled", *LONG), least_used=5)


def test_eager_passes_are_launched_behind_drafts_as_well(make, expected):
    assert_expected(make(enforce_eager=True), expected, FREE, least_used=8)


@pytest.mark.parametrize("num_steps", range(1, 7))
def test_whoever_comes_at_any_step_changes_nobodys_answer(ahead, expected, num_steps):
    arrivals = {num_steps: "explained", num_steps + 1: "choices", num_steps + 3: "schema"}
    assert_expected(ahead("draft_model"), expected, ("greedy", "sampled", "short"), least_used=1, arrivals=arrivals)


@pytest.mark.parametrize("num_steps", range(1, 5))
def test_whoever_is_aborted_at_any_step_changes_nobodys_answer(ahead, expected, num_steps):
    engine = ahead("draft_model")
    answers = run(engine, ("greedy", "sampled", "explained"), aborts={num_steps: "sampled"})
    gone = answers.pop(("sampled", 0))
    assert gone.token_ids == expected["sampled", 0].token_ids[: len(gone.token_ids)]
    assert answers == {key: expected[key] for key in (("greedy", 0), ("explained", 0))}


def test_preempted_answers_go_on(make, expected):
    engine = make(block_size=8, num_kv_blocks=13)
    assert_expected(engine, expected, ("greedy", "sampled", "explained", "choices", "long"), least_used=3)
    assert engine.stats().num_preemptions > 0


def test_drafts_of_a_model_alone_are_those_that_are_waited_for(make):
    engines = [make(async_scheduling=wanted) for wanted in (True, False)]
    drafts = [drafts_of(engine) for engine in engines]
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("verification", [*Verification])
def test_every_verification(ahead, make, verification):
    """Where drafts are verified by what they were drawn from nothing is launched ahead; at temperature 0 it is."""
    for temperature, launches in ((0.0, True), (0.9, verification is Verification.COUPLED)):
        params = SamplingParams(temperature=temperature, seed=5, max_tokens=12, ignore_eos=True)
        engine, plain = ahead("draft_model"), SpeculativeParams(enabled=False)
        num_before = passes_of(engine)[1]
        own = engine.generate("a b c", params, speculative=SpeculativeParams(verification=verification))
        assert (passes_of(engine)[1] > num_before) == launches
        if launches:
            expected = engine.generate("a b c", params, speculative=plain)
            assert own[0].choices[0].token_ids == expected[0].choices[0].token_ids


@pytest.mark.parametrize("seed", range(3))
def test_lengths_that_are_chosen_are_chosen_before_anything_is_drawn(make, expected, seed, monkeypatch):
    """Drafts of any length, none at all for some, cut where the host knows their tokens or where the device draws."""
    engine = make(CHAIN, num_tokens=None)
    generator = torch.Generator().manual_seed(seed)
    launched, cut = [], []
    launch = engine.proposer._draft_model.launch

    def paying(lengths, batch, drafts):
        counts = [int(torch.randint(len(each.token_ids) + 1, (), generator=generator)) for each in drafts]
        cut.extend(count < len(each.token_ids) for count, each in zip(counts, drafts, strict=True))
        return counts

    def watched(drafts, num_tokens, lagging):
        launched.extend(num_tokens)
        return launch(drafts, num_tokens, lagging)

    monkeypatch.setattr(DraftLengths, "paying", paying)
    monkeypatch.setattr(DraftLengths, "worth_drafting", lambda lengths, batch, drafts: [*drafts])
    monkeypatch.setattr(engine.proposer._draft_model, "launch", watched)
    assert_expected(engine, expected, FREE, least_used=5)
    assert {1, 2, 3} <= set(launched)
    assert 0 not in launched, "what is to be cut is not drawn"
    assert any(cut)


def test_the_host_waits_for_no_draft_before_the_target_has_its_pass(tiny_model_folder, tiny_draft_folder, monkeypatch):
    with pytest.MonkeyPatch.context() as patch, DeviceWatch() as watch, kernels_on(DEVICE):
        patch.setattr(torch, "from_numpy", None)
        engine = Engine(
            drafting_config(tiny_model_folder, tiny_draft_folder, CHAIN, async_scheduling=True, max_num_seqs=12)
        )
    events = []

    def noting(owner, name, event):
        function = getattr(owner, name)

        def noted(*args, **kwargs):
            events.append((event, len(watch.waits)))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    noting(DrawnLoop, "joined", "drawn")
    noting(engine.runner, "forward_drawn", "launched")
    monkeypatch.setattr(torch, "from_numpy", None)
    monkeypatch.setattr(watch, "is_strict", True)
    watch.waits.clear()
    with watch:
        run(engine, FREE)
    stats = engine.stats()
    assert stats.num_passes_ahead_used > 8
    assert [event for event, _ in events] == ["drawn", "launched"] * stats.num_passes_ahead
    assert all(drawn[1] == launched[1] for drawn, launched in zip(events[::2], events[1::2], strict=True))
    # For the drafts, and for what became of them.
    assert watch.waits == ["specdec.device_tensors.HostCopy.arrays"] * (stats.num_steps + stats.num_passes_ahead)
    assert stats.num_faults == {}


@pytest.mark.parametrize("stage", ["wait", "take"])
def test_a_pass_whose_step_failed_is_not_taken_for_the_next_one(make, expected, stage, monkeypatch):
    engine = make()
    model, faulty = engine.proposer._draft_model, ["greedy"]
    take, launch = model.take, model.launch

    def fail_for(draft):
        with attributed_to(draft.sequence, "draft"):
            if draft.sequence.request_id in faulty:
                faulty.clear()
                raise RuntimeError("planted")

    def taking(draft, *args):
        fail_for(draft)
        return take(draft, *args)

    def launching(drafts, *args):
        drawing = launch(drafts, *args)
        return replace(drawing, wait=lambda: [fail_for(draft) for draft in drafts] and drawing.wait())

    if stage == "take":
        monkeypatch.setattr(model, "take", taking)
    else:
        monkeypatch.setattr(model, "launch", launching)
    answers = run(engine, ("sampled", "greedy"))
    assert answers["sampled", 0] == expected["sampled", 0]
    assert answers["greedy", 0].finish_reason is FinishReason.ERROR
    assert engine.stats().num_faults == {"draft": 1}
    launched, used, dropped = passes_of(engine)
    assert (launched - used, dropped) == (1, 1)
    assert used > 1


def test_what_was_drafted_otherwise_after_all_is_computed_again(make, expected, monkeypatch):
    """Whoever wraps a proposer and changes its tokens has the pass that belongs to them."""
    engine = make()
    propose = engine.proposer.propose

    def spoil(batch, begin_pass):
        return [
            replace(each, token_ids=[token_id ^ 1 for token_id in each.token_ids])
            for each in propose(batch, begin_pass)
        ]

    monkeypatch.setattr(engine.proposer, "propose", spoil)
    answers = run(engine, FREE)
    assert answers == {key: expected[key] for key in answers}
    launched, used, dropped = passes_of(engine)
    assert used == 0
    assert launched == dropped > 5


def test_synthetic_acceptance_keeps_its_rates(device, tiny_model_folder, tiny_draft_folder):
    speculative = SpeculativeConfig(
        method="draft_model+synthetic",
        model=str(tiny_draft_folder),
        num_speculative_tokens=3,
        synthetic_acceptance_rates=(1.0, 1.0, 0.0),
    )
    own = {"device": device.type, "async_scheduling": True, "speculative": speculative, "check_outputs": False}
    engine = kernel_engine(device, drafting_config(tiny_model_folder, tiny_draft_folder, **own))
    params = SamplingParams(max_tokens=13, ignore_eos=True, temperature=0.0)
    [output] = engine.generate("a b c", params)
    assert len(output.choices[0].token_ids) == 13
    assert passes_of(engine) == (4, 4, 0), "three tokens a pass, after the prompt's one"
    stats = engine.stats().speculation
    assert stats.num_drafted_per_position == (4, 4, 4)
    assert stats.num_accepted_per_position[:2] == (4, 4)


class Clocked:
    """A device whose draft loop takes 6 seconds and its target 10, beside a host that takes as long to launch that."""

    LOOP_S, PASS_S = 6.0, 10.0

    def __init__(self, engine, launch_s, monkeypatch):
        self.now = self.done = 0.0
        self.steps, self.loops = [], []
        model, lengths, proposer = engine.proposer._draft_model, engine.proposer._lengths, engine.proposer
        runner, verifier = engine.runner, engine.verifier
        launch, verify, forward_drawn, learn = model.launch, verifier.launch, runner.forward_drawn, proposer.learn

        def waited(at):
            self.now = max(self.now, at)

        def launching(drafts, counts, lagging):
            drawing = launch(drafts, counts, lagging)
            self.done = at = max(self.done, self.now) + self.LOOP_S
            return replace(drawing, has_arrived=lambda: self.now >= at, wait=lambda: waited(at) or drawing.wait())

        def forward(*args):
            self.now += launch_s
            self.done = max(self.done, self.now) + self.PASS_S
            return forward_drawn(*args)

        def verifying(*args):
            given, at = verify(*args), self.done
            return PendingOutcomes(lambda: waited(at) or given.wait(), given.emitted_ids)

        def learning(batch, proposals, outcomes, seconds):
            self.steps.append(seconds)
            return learn(batch, proposals, outcomes, seconds)

        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(overlapped_passes, "time", clock)
        monkeypatch.setattr(proposers_chain, "time", clock)
        monkeypatch.setattr(model, "launch", launching)
        monkeypatch.setattr(runner, "forward_drawn", forward)
        monkeypatch.setattr(verifier, "launch", verifying)
        monkeypatch.setattr(proposer, "learn", learning)
        monkeypatch.setattr(lengths, "observe_draft_pass", lambda *given: self.loops.append(given))


@pytest.mark.parametrize(
    ("launch_s", "loops", "step"),
    [(1.0, [(1, 2.0)] * 3, 10.0), (6.5, [], 10.0)],
    ids=["the device is slower", "the host is slower"],
)
def test_what_the_device_took_is_told_of_drafts_and_of_the_target(make, launch_s, loops, step, monkeypatch):
    engine = make(num_tokens=3)
    engine.add_request(
        Request(request_id="a", prompt_token_ids=(7,), sampling_params=SamplingParams(max_tokens=40, ignore_eos=True))
    )
    for _ in range(3):
        engine.step()
    clocked = Clocked(engine, launch_s, monkeypatch)
    engine.step()
    assert clocked.steps == [step]
    assert [seconds for _, seconds in clocked.loops] == [seconds for _, seconds in loops]
