"""Rates: the field's definitions, on counts worked out by hand and on any counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evals.acceptance_rates import acceptance_rates, broken_sum_rule, sum_stats
from specdec.request import SpeculationStats
from specdec.sequence import SpeculationCounts


def counts_of(passes):
    counts = SpeculationCounts()
    for num_drafted, num_accepted, num_rejected in passes:
        counts.record(num_drafted=num_drafted, num_accepted=num_accepted, num_rejected=num_rejected)
    return counts.freeze()


# A pass drafts some tokens, accepts a first part, and rejects the next unless the answer ended there.
passes = st.lists(
    st.integers(0, 6).flatmap(
        lambda drafted: st.integers(0, drafted).flatmap(
            lambda accepted: st.tuples(st.just(drafted), st.just(accepted), st.integers(0, int(accepted < drafted)))
        )
    ),
    max_size=20,
)


def test_rates_follow_their_definitions_on_a_case_worked_out_by_hand():
    # Three drafts of four tokens: all accepted; two, then a rejection; a rejection at once. One pass without a draft.
    stats = counts_of([(4, 4, 0), (4, 2, 1), (4, 0, 1), (0, 0, 0)])
    rates = acceptance_rates(stats, num_generated_tokens=10)
    assert rates.acceptance_rate == 6 / 8
    assert rates.mean_acceptance_length == 1 + 6 / 3
    assert rates.tokens_per_target_pass == 10 / 4
    assert rates.num_discarded_tokens == 4
    assert rates.unconditional_rates == (2 / 3, 2 / 3, 1 / 3, 1 / 3)
    assert rates.conditional_rates == (2 / 3, 1.0, 1 / 2, 1.0)


def test_a_position_is_held_against_the_drafts_that_were_long_enough():
    rates = acceptance_rates(counts_of([(1, 1, 0), (3, 3, 0), (1, 0, 1)]), num_generated_tokens=7)
    assert rates.num_drafted_per_position == (3, 1, 1)
    assert rates.unconditional_rates == (2 / 3, 1.0, 1.0)
    assert rates.conditional_rates == (2 / 3, 1.0, 1.0)


def test_without_drafts_there_are_no_rates():
    rates = acceptance_rates(counts_of([(0, 0, 0)] * 3), num_generated_tokens=3)
    assert rates.acceptance_rate is None
    assert rates.mean_acceptance_length is None
    assert rates.tokens_per_target_pass == 1.0
    assert rates.unconditional_rates == rates.conditional_rates == ()


@given(passes)
def test_whatever_is_recorded_keeps_the_sum_rule_and_gives_rates_between_0_and_1(recorded):
    stats = counts_of(recorded)
    assert broken_sum_rule(stats) is None
    rates = acceptance_rates(stats, num_generated_tokens=len(recorded))
    reported = [*rates.unconditional_rates, *rates.conditional_rates, rates.acceptance_rate]
    assert all(0.0 <= rate <= 1.0 for rate in reported if rate is not None)


@given(st.lists(passes, max_size=5))
def test_the_sum_of_answers_is_the_count_of_all_their_passes(answers):
    assert sum_stats(map(counts_of, answers)) == counts_of([each for answer in answers for each in answer])


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_accepted_tokens": 5},
        {"num_discarded_tokens": -1, "num_rejected_tokens": 3},
        {"num_drafted_per_position": (2, 1)},
        {"num_accepted_per_position": (1, 1)},
        {"num_accepted_per_position": (0, 1)},
        {"num_drafted_per_position": (1, 2, 1)},
        {"num_rejected_tokens": 3, "num_discarded_tokens": 0},
    ],
)
def test_counts_that_contradict_each_other_are_named(wrong):
    right = {
        "num_drafts": 2, "num_draft_tokens": 4, "num_accepted_tokens": 1, "num_rejected_tokens": 2,
        "num_discarded_tokens": 1, "num_drafted_per_position": (2, 2), "num_accepted_per_position": (1, 0),
    }  # fmt: skip
    assert broken_sum_rule(SpeculationStats(**right)) is None
    assert broken_sum_rule(SpeculationStats(**(right | wrong))) is not None
