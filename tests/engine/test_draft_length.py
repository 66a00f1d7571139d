"""DraftLengths: as many draft tokens as pay, chosen by who drafted them, all sequences together."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.batch import Batch, ScheduledSequence
from specdec.proposers.acceptance import AcceptanceEstimates
from specdec.proposers.base import Draft, DraftDistribution, Source
from specdec.proposers.length import DraftLengths
from specdec.request import SamplingParams
from specdec.sequence import Sequence
from specdec.speculative import SpeculationPlan
from specdec.step_time import StepTime
from specdec.verification_time import VerificationTime

LIKELY, UNLIKELY = Source("grammar", 1), Source("ngram", 4)
FLAT = [(1, 0.020), (8, 0.021), (64, 0.022)]
STEEP = [(1, 0.020), (2, 0.040), (64, 1.280)]


def sequence(num_tokens=None):
    return Sequence(
        request_id="r",
        choice_index=0,
        params=SamplingParams(),
        seed=0,
        max_tokens=100,
        eos_token_ids=frozenset({0}),
        num_prompt_tokens=3,
        token_ids=[1, 2, 3],
        detokenizer=None,
        plan=SpeculationPlan(frozenset({"grammar", "ngram", "draft_model"}), num_tokens),
    )


def draft_of(sources, num_tokens=None):
    draft = Draft.of(sequence(num_tokens), 32)
    for i, source in enumerate(sources):
        assert draft.push(i + 1, source)
    return draft


def batch_of(drafts):
    return Batch([ScheduledSequence(draft.sequence, 1, 32, 0) for draft in drafts])


def reaching_end(drafts):
    for draft in drafts:
        draft.sequence.num_computed_tokens = draft.sequence.num_tokens - 1
    return drafts


def cut(lengths, drafts):
    return [len(proposal.token_ids) for proposal in lengths.cut(batch_of(drafts), drafts)]


def goodput(estimates, time, drafts, counts):
    """By the definition."""
    expected = float(len(drafts))
    for draft, count in zip(drafts, counts, strict=True):
        chance = 1.0
        for source in draft.sources[:count]:
            chance *= estimates.probability(draft.sequence, source)
            expected += chance
    return expected / time.seconds(len(drafts) + sum(counts))


def test_where_a_pass_costs_the_same_everything_is_verified():
    drafts = reaching_end([draft_of([LIKELY] * 8)])
    assert cut(DraftLengths(StepTime(FLAT), None), drafts) == [8]


def test_where_every_token_costs_a_pass_nothing_is_verified():
    drafts = reaching_end([draft_of([LIKELY] * 8), draft_of([UNLIKELY] * 3)])
    assert cut(DraftLengths(StepTime(STEEP), None), drafts) == [0, 0]


def test_a_fixed_length_is_never_cut():
    drafts = reaching_end([draft_of([UNLIKELY] * 8, num_tokens=8), draft_of([UNLIKELY] * 3)])
    assert cut(DraftLengths(StepTime(STEEP), None), drafts)[0] == 8


def test_a_token_that_was_drawn_from_a_distribution_is_never_dropped_for_what_it_led_to():
    distribution = DraftDistribution(torch.tensor([1, 2]), torch.tensor([0.5, 0.5], dtype=torch.float64))
    draft = Draft.of(sequence(), 32)
    for source, drawn_from in ((LIKELY, None), (Source("draft_model"), distribution), (LIKELY, None)):
        assert draft.push(1, source, drawn_from)
    drafts = reaching_end([draft, draft_of([UNLIKELY])])
    assert cut(DraftLengths(StepTime(STEEP), None), drafts)[0] == 2


@given(
    st.lists(st.lists(st.sampled_from([LIKELY, UNLIKELY]), max_size=4), min_size=1, max_size=3),
    st.floats(0.0001, 0.02),
)
def test_no_other_lengths_have_a_better_goodput(sources, slope):
    drafts = reaching_end([draft_of(each) for each in sources])
    time = StepTime([(1, 0.02), (64, 0.02 + 63 * slope)])
    lengths = DraftLengths(time, None)
    # So that the margin that drafting needs to begin does not count.
    lengths._has_drafted = True
    chosen = [len(proposal.token_ids) for proposal in lengths.cut(batch_of(drafts), drafts)]
    estimates = AcceptanceEstimates()
    best = max(
        goodput(estimates, time, drafts, counts)
        for counts in itertools.product(*(range(len(each) + 1) for each in sources))
    )
    assert goodput(estimates, time, drafts, chosen) == pytest.approx(best)


def test_drafting_that_barely_pays_does_not_begin_but_goes_on():
    # The token adds 0.5 of a token to one, for a little less than half as much time again.
    time = [(1, 0.0200), (2, 0.0298), (64, 2.0)]
    drafts = reaching_end([draft_of([UNLIKELY])])
    lengths = DraftLengths(StepTime(time), None)
    assert cut(lengths, drafts) == [0]
    lengths._has_drafted = True
    assert cut(lengths, drafts) == [1]
    assert cut(lengths, drafts) == [1]


def test_what_is_rejected_is_drafted_no_more_and_after_a_while_tried_again():
    lengths = DraftLengths(StepTime([(1, 0.02), (2, 0.026), (64, 0.4)]), None)
    [draft] = reaching_end([draft_of([LIKELY] * 4)])
    assert cut(lengths, [draft]) != [0]
    for _ in range(60):
        lengths.estimates.observe(draft.sequence, [LIKELY], 0)
    assert cut(lengths, [draft]) == [0]
    num_steps = next(i for i in range(10_000) if cut(lengths, [draft]) != [0])
    assert num_steps > 10


def test_an_estimate_follows_what_is_observed():
    estimates = AcceptanceEstimates()
    own, other = sequence(), sequence()
    before = estimates.probability(own, UNLIKELY)
    for _ in range(100):
        estimates.observe(own, [UNLIKELY, UNLIKELY], 2)
    assert estimates.probability(own, UNLIKELY) > 0.9
    # What holds for one is a better start for another, and other sources are other sources.
    assert before < estimates.probability(other, UNLIKELY)
    assert estimates.probability(own, Source("ngram", 5)) == pytest.approx(0.6)


def test_what_came_after_a_rejected_token_says_nothing():
    one, two = AcceptanceEstimates(), AcceptanceEstimates()
    first, second = sequence(), sequence()
    one.observe(first, [LIKELY, UNLIKELY, LIKELY, LIKELY], 1)
    two.observe(second, [LIKELY, UNLIKELY], 1)
    for source in (LIKELY, UNLIKELY):
        assert one.probability(first, source) == two.probability(second, source)


@pytest.mark.parametrize(("seconds", "goes_on"), [(0.001, True), (0.1, False)])
def test_the_draft_model_runs_where_its_pass_pays(seconds, goes_on):
    lengths = DraftLengths(StepTime(FLAT), StepTime([(1, seconds), (64, 2 * seconds)]))
    drafts = reaching_end([draft_of([])])
    assert bool(lengths.worth_drafting(batch_of(drafts), drafts)) is goes_on


def test_the_draft_model_is_not_run_for_drafts_that_are_unlikely_to_stand():
    lengths = DraftLengths(StepTime(FLAT), StepTime([(1, 0.004), (64, 0.1)]))
    drafts = reaching_end([draft_of([UNLIKELY] * 8), draft_of([])])
    assert lengths.worth_drafting(batch_of(drafts), drafts) == [drafts[1]]


def test_a_draft_model_that_did_badly_is_tried_again_after_a_while():
    lengths = DraftLengths(StepTime(FLAT), StepTime([(1, 0.004), (64, 0.1)]))
    [draft] = reaching_end([draft_of([])])
    assert lengths.worth_drafting(batch_of([draft]), [draft])
    for _ in range(60):
        lengths.estimates.observe(draft.sequence, [Source("draft_model")], 0)
    assert not lengths.worth_drafting(batch_of([draft]), [draft])
    num_steps = next(i for i in range(10_000) if lengths.worth_drafting(batch_of([draft]), [draft]))
    assert num_steps > 10


def test_a_sequence_whose_drafts_never_pay_is_looked_at_less_and_less():
    lengths = DraftLengths(StepTime(STEEP), None)
    looks = []
    [draft] = reaching_end([draft_of([UNLIKELY])])
    for _ in range(40):
        is_looked_at = lengths.is_worth_a_look(draft)
        looks.append(is_looked_at)
        if is_looked_at:
            assert cut(lengths, [draft]) == [0]
    assert looks[0]
    assert 8 <= sum(looks) <= 14
    # Pauses end, and what pays ends them.
    lengths._time = VerificationTime(StepTime(FLAT))
    while not lengths.is_worth_a_look(draft):
        pass
    assert cut(lengths, [draft]) == [1]
    assert all(lengths.is_worth_a_look(draft) for _ in range(5))


def test_steps_with_drafts_and_without_learn_their_own_times():
    lengths = DraftLengths(StepTime([(1, 0.02), (64, 0.02)]), None)
    [draft] = reaching_end([draft_of([LIKELY])])
    batch = batch_of([draft])
    for _ in range(100):
        lengths.observe(batch, [draft.cut(1)], 0.06)
    assert cut(lengths, [draft]) == [0]
    # What is not met is forgotten.
    for _ in range(1000):
        lengths.observe(batch, [draft.cut(0)], 0.02)
    assert cut(lengths, [draft]) == [1]


def test_on_a_machine_that_has_become_faster_no_draft_pays_that_did_not_before():
    seconds = [(1, 0.040), (2, 0.080), (64, 1.7)]
    lengths = DraftLengths(StepTime(seconds), None)
    [draft] = reaching_end([draft_of([UNLIKELY])])
    batch = batch_of([draft])
    lengths._has_drafted = True
    assert cut(lengths, [draft]) == [0]
    for _ in range(100):
        lengths.observe(batch, [draft.cut(1)], 0.039)
    assert lengths._time.seconds(1, 0) <= lengths._time.seconds(1, 1)
    # It would seem to: a step with the draft takes less than one without did.
    assert cut(lengths, [draft]) == [0]


def test_what_a_step_without_drafts_takes_is_expected_of_steps_with_drafts_too():
    lengths = DraftLengths(StepTime([(1, 0.020), (2, 0.026), (64, 0.4)]), None)
    [draft] = reaching_end([draft_of([LIKELY])])
    for _ in range(100):
        lengths.observe(batch_of([draft]), [draft.cut(0)], 0.040)
    assert lengths._time.seconds(1, 0) == pytest.approx(0.040, rel=0.05)
    assert lengths._time.seconds(1, 1) == pytest.approx(0.052, rel=0.1)
