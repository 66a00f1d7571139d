"""Rates: the field's definitions, on counts worked out by hand and on any counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evals.acceptance_rates import acceptance_rates, broken_sum_rule, passes_of, sum_stats
from specdec.request import CompletionOutput, DraftTrace, FinishReason, ProposerStats, SpeculationStats
from specdec.sequence import SpeculationCounts

NAMES = ("ngram", "grammar")


def answer_of(passes):
    """The answer that passes of (draft tokens, accepted, whether the answer ended with the accepted ones) give.

    Every second draft token is by another proposer.
    """
    counts, drafts, num_tokens = SpeculationCounts(), [], 0
    for num_drafted, num_accepted, was_cut in passes:
        proposers = tuple(NAMES[i % 2] for i in range(num_drafted))
        counts.record(proposers, num_accepted=num_accepted, was_cut=was_cut)
        drafts.append(DraftTrace(token_ids=(7,) * num_drafted, proposers=proposers, num_accepted=num_accepted))
        num_tokens += num_accepted + (not was_cut)
    return CompletionOutput(
        index=0, text="", token_ids=tuple(range(num_tokens)), finish_reason=FinishReason.STOP, stop_reason=None,
        logprobs=None, seed=0, speculation=counts.freeze(), drafts=tuple(drafts),
    )  # fmt: skip


# A pass accepts a first part of its draft; the last one of an answer may end with that.
passes = st.lists(
    st.integers(0, 6).flatmap(lambda drafted: st.tuples(st.just(drafted), st.integers(0, drafted), st.just(False))),
    max_size=20,
).flatmap(
    lambda whole: st.one_of(
        st.just(whole),
        st.integers(1, 6).flatmap(
            lambda drafted: st.integers(1, drafted).map(lambda accepted: [*whole, (drafted, accepted, True)])
        ),
    )
)


def test_rates_follow_their_definitions_on_a_case_worked_out_by_hand():
    # Three drafts of four tokens: all accepted; two, then a rejection; a rejection at once. One pass without a draft.
    rates = acceptance_rates([answer_of([(4, 4, False), (4, 2, False), (4, 0, False), (0, 0, False)])])
    assert rates.acceptance_rate == 6 / 8
    assert rates.mean_acceptance_length == 1 + 6 / 3
    assert rates.tokens_per_target_pass == 10 / 4
    assert rates.num_discarded_tokens == 4
    assert rates.unconditional_rates == rates.per_draft_rates == (2 / 3, 2 / 3, 1 / 3, 1 / 3)
    assert rates.num_compared_per_position == (3, 2, 2, 1)
    assert rates.conditional_rates == (2 / 3, 1.0, 1 / 2, 1.0)
    # Of positions 1 and 3, then of 2 and 4.
    assert rates.by_proposer["ngram"].num_accepted_tokens == 3
    assert rates.by_proposer["ngram"].acceptance_rate == 3 / 5
    assert rates.by_proposer["grammar"].acceptance_rate == 1.0
    assert rates.forced_share == rates.by_proposer["grammar"].share_of_tokens == 3 / 10


def test_a_position_is_held_against_the_drafts_that_reached_it():
    rates = acceptance_rates([answer_of([(1, 1, False), (3, 3, False), (1, 0, False)])])
    assert rates.num_drafted_per_position == (3, 1, 1)
    assert rates.unconditional_rates == (2 / 3, 1.0, 1.0)
    assert rates.conditional_rates == (2 / 3, 1.0, 1.0)
    assert rates.per_draft_rates == (2 / 3, 1 / 3, 1 / 3)


def test_what_came_after_the_end_of_an_answer_was_not_compared():
    rates = acceptance_rates([answer_of([(4, 2, True)])])
    assert rates.acceptance_rate == 1.0
    assert rates.num_discarded_tokens == 2
    assert rates.num_compared_per_position == (1, 1, 0, 0)
    assert rates.conditional_rates == (1.0, 1.0, None, None)


def test_without_drafts_there_are_no_rates():
    rates = acceptance_rates([answer_of([(0, 0, False)] * 3)])
    assert rates.acceptance_rate is None
    assert rates.mean_acceptance_length is None
    assert rates.tokens_per_target_pass == 1.0
    assert rates.unconditional_rates == rates.conditional_rates == ()
    assert rates.by_proposer == {}


def test_a_token_counts_where_it_is_written():
    # {" accepted, key accepted, then a rejected draft where the answer has a string.
    answer = answer_of([(3, 2, False), (0, 0, False)])
    regions = [[("structure", True), ("key", False), ("string", False), ("structure", False)]]
    by_region = acceptance_rates([answer], regions).by_region
    assert (by_region["key"].num_compared, by_region["key"].acceptance_rate) == (1, 1.0)
    assert (by_region["string"].num_compared, by_region["string"].acceptance_rate) == (1, 0.0)
    assert (by_region["structure"].num_tokens, by_region["structure"].num_crossing) == (2, 1)
    assert by_region["structure"].share_drafted == 0.5
    assert by_region["number"].acceptance_rate is None


@given(passes)
def test_whatever_is_recorded_keeps_the_sum_rule_and_gives_rates_between_0_and_1(recorded):
    answer = answer_of(recorded)
    assert broken_sum_rule(answer.speculation) is None
    assert [each.emitted for each in passes_of(answer)] == [
        answer.token_ids[each.first : each.first + len(each.emitted)] for each in passes_of(answer)
    ]
    rates = acceptance_rates([answer], [[("string", False)] * len(answer.token_ids)])
    reported = [*rates.unconditional_rates, *rates.conditional_rates, *rates.per_draft_rates, rates.acceptance_rate]
    assert all(0.0 <= rate <= 1.0 for rate in reported if rate is not None)
    assert sum(rates.num_compared_per_position) == rates.num_accepted_tokens + rates.num_rejected_tokens
    assert rates.by_region["string"].num_compared == sum(rates.num_compared_per_position)


@given(st.lists(passes, max_size=5))
def test_the_sum_of_answers_is_the_count_of_all_their_passes(answers):
    counts = SpeculationCounts()
    for num_drafted, num_accepted, was_cut in (each for answer in answers for each in answer):
        counts.record([NAMES[i % 2] for i in range(num_drafted)], num_accepted=num_accepted, was_cut=was_cut)
    assert sum_stats(answer_of(each).speculation for each in answers) == counts.freeze()


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
        {"by_proposer": {}},
    ],
)
def test_counts_that_contradict_each_other_are_named(wrong):
    right = {
        "num_drafts": 2, "num_draft_tokens": 4, "num_accepted_tokens": 1, "num_rejected_tokens": 2,
        "num_discarded_tokens": 1, "num_drafted_per_position": (2, 2), "num_accepted_per_position": (1, 0),
        "by_proposer": {
            "ngram": ProposerStats(
                num_draft_tokens=4, num_accepted_tokens=1, num_rejected_tokens=2, num_discarded_tokens=1
            )
        },
    }  # fmt: skip
    assert broken_sum_rule(SpeculationStats(**right)) is None
    assert broken_sum_rule(SpeculationStats(**(right | wrong))) is not None
