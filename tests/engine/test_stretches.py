"""Tokens that a draft model draws in a row: how many, and what of them is taken."""

import pytest
from drafts import draft_of, sequence_of

from specdec.batch import Batch, ScheduledSequence
from specdec.proposers.base import Draft, Source
from specdec.proposers.draft_model import SOURCE, DraftModel
from specdec.proposers.length import DraftLengths
from specdec.proposers.stretch_lengths import StretchLengths
from specdec.speculative import MAX_DRAFT_TOKENS, SpeculationPlan
from specdec.step_time import StepTime

OTHER = Source("ngram", 8)


def knowing(token_ids_by_length):
    """Drafts for nothing what it knows to follow a draft of so many tokens."""

    def fill(draft):
        for token_id in token_ids_by_length.pop(len(draft.token_ids), ()):
            assert draft.push(token_id, OTHER)

    return fill


def taken(drawn, known, *, num_tokens=None, num_free=8, before=(9,)):
    """The draft and how many tokens of text and draft its model has computed."""
    draft = draft_of(sequence_of([1, 2, 3]), before, num_free=num_free)
    DraftModel.take(draft, num_tokens or len(drawn), [(token_id, None) for token_id in drawn], knowing(known))
    return draft, draft.sequence.num_draft_computed_tokens


def test_what_nobody_else_knows_is_taken_as_it_was_drawn():
    draft, num_computed = taken([5, 6, 7], {})
    assert draft.token_ids == [9, 5, 6, 7]
    assert draft.sources[1:] == [SOURCE] * 3
    # All but the last, which no pass was fed.
    assert num_computed == 3 + 3


def test_what_is_known_goes_before_what_was_drawn_behind_it():
    draft, num_computed = taken([5, 6, 7], {2: [8, 4]})
    assert draft.token_ids == [9, 5, 8, 4]
    assert [source.proposer for source in draft.sources[1:]] == ["draft_model", "ngram", "ngram"]
    assert num_computed == 3 + 2, "the keys behind it are those of other tokens"


def test_behind_what_was_known_and_drawn_alike_the_rest_is_taken():
    draft, num_computed = taken([5, 6, 7, 4], {2: [6, 7]})
    assert draft.token_ids == [9, 5, 6, 7, 4]
    assert [source.proposer for source in draft.sources[1:]] == ["draft_model", "ngram", "ngram", "draft_model"]
    assert num_computed == 3 + 4


def test_more_that_is_known_than_was_drawn_is_still_to_be_computed():
    draft, num_computed = taken([5, 6], {2: [6, 7, 8]})
    assert draft.token_ids == [9, 5, 6, 7, 8]
    assert num_computed == 3 + 2


@pytest.mark.parametrize("num_known", [0, 2])
def test_of_a_stretch_that_ended_early_the_last_token_is_fed_again(num_known):
    """Its logits are needed for the next, though its keys are there."""
    draft, num_computed = taken([5, 6], {3: [7] * num_known}, num_tokens=4)
    assert len(draft.token_ids) == 3 + num_known
    assert num_computed == 3 + (2 if num_known == 0 else 3)


def test_nothing_is_taken_behind_the_end():
    sequence = sequence_of([1, 2, 3])
    sequence.eos_token_ids = frozenset({6})
    draft = Draft.of(sequence, 8)
    DraftModel.take(draft, 4, [(token_id, None) for token_id in (5, 6, 7, 8)], knowing({}))
    assert draft.token_ids == [5, 6]
    assert sequence.num_draft_computed_tokens == 3 + 1


def test_a_full_draft_takes_no_more():
    draft, _ = taken([5, 6, 7], {2: [4] * 5}, num_free=3)
    assert draft.token_ids == [9, 5, 4, 4] or draft.num_free <= 0


def test_as_many_are_drawn_in_a_row_as_are_likelier_than_not_of_use():
    lengths = StretchLengths()
    own, other = sequence_of([1]), sequence_of([1])
    assert lengths.num_tokens(own) == MAX_DRAFT_TOKENS
    for _ in range(200):
        lengths.observe(own, went_on=False)
    assert lengths.num_tokens(own) == 1
    assert lengths.num_tokens(other) == 1, "what holds for one is a start for another"
    for went_on in [True, True, True, False] * 100:
        lengths.observe(own, went_on=went_on)
    assert 2 <= lengths.num_tokens(own) <= 5
    before = lengths.num_tokens(own)
    for _ in range(100):
        lengths.observe(own, went_on=True)
    assert lengths.num_tokens(own) > before


def test_a_token_is_drawn_ahead_while_it_is_likelier_than_not_of_use():
    lengths, own, numbers = StretchLengths(), sequence_of([1]), []
    for _ in range(8):
        numbers.append(lengths.num_tokens(own))
        lengths.observe(own, went_on=False)
    # By chances of 1, 0.9, 0.81 and so on: the n-th is of use with the chance to the power of n - 1.
    assert numbers == [MAX_DRAFT_TOKENS, 7, 4, 3, 2, 2, 2, 1]


def drafting(num_tokens=None):
    sequence = sequence_of([1, 2, 3])
    sequence.plan = SpeculationPlan(frozenset({"ngram", "draft_model"}), num_tokens)
    sequence.num_computed_tokens = 2
    return sequence


@pytest.mark.parametrize("seconds", [0.0002, 0.001, 0.004, 0.02])
@pytest.mark.parametrize("limits", [(8, 8, 8), (1, 8, 3)], ids=str)
def test_as_many_in_a_row_as_pass_after_pass_would_be_asked_for(seconds, limits):
    lengths = DraftLengths(StepTime([(1, 0.02), (8, 0.024), (64, 0.2)]), StepTime([(1, seconds), (64, 4 * seconds)]))
    drafts = []
    for num_before in (0, 1, 3):
        draft = draft_of(drafting(), num_free=16)
        for _ in range(num_before):
            draft.push(7, OTHER)
        drafts.append(draft)
    batch = Batch([ScheduledSequence(draft.sequence, 1, 16, 0) for draft in drafts])
    chosen = lengths.worth_drafting(batch, drafts)
    own_limits = [limits[drafts.index(draft)] for draft in chosen]
    counts = lengths.num_in_a_row(batch, chosen, own_limits)
    # By the definition.
    expected = [0] * len(chosen)
    going = list(chosen)
    while going:
        for draft in going:
            draft.push(7, SOURCE)
            expected[chosen.index(draft)] += 1
        going = [each for each in going if expected[chosen.index(each)] < own_limits[chosen.index(each)]]
        going = [draft for draft in lengths.worth_drafting(batch, going) if draft in going]
    assert counts == expected
    # Where drafting costs next to nothing and no limit forbids it.
    assert sum(counts) > len(counts) or seconds > 0.0002 or limits[0] == 1


def test_a_fixed_length_is_drawn_whole():
    lengths = DraftLengths(StepTime([(1, 0.02), (64, 2.0)]), StepTime([(1, 1.0), (64, 1.0)]))
    draft = draft_of(drafting(num_tokens=6), num_free=6)
    batch = Batch([ScheduledSequence(draft.sequence, 1, 6, 0)])
    assert lengths.num_in_a_row(batch, [draft], [6]) == [6]
