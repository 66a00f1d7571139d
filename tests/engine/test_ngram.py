"""The n-gram drafter against a scan of the whole text."""

import pytest
from drafts import draft_of, sequence_of
from hypothesis import given
from hypothesis import strategies as st

from specdec.proposers.base import NO_GUESS, Guess
from specdec.proposers.ngram import NgramDrafter


def guess_by_scan(token_ids, draft_token_ids, num_tokens, min_n, max_n):
    """The definition: only verified text is searched, and something verified must follow."""
    text = [*token_ids, *draft_token_ids]
    for n in range(max_n, min_n - 1, -1):
        for end in range(len(token_ids) - 1, n - 1, -1):
            if n <= len(text) and token_ids[end - n : end] == text[-n:]:
                copied = list(text)
                while len(copied) < len(text) + num_tokens:
                    copied.append(copied[len(copied) - (len(text) - end)])
                return Guess(copied[len(text) :], min(n, 8))
    return NO_GUESS


tokens = st.lists(st.integers(1, 3), max_size=6)


@given(
    pieces=st.lists(st.tuples(tokens, tokens, st.integers(1, 8)), min_size=1, max_size=6),
    min_n=st.integers(1, 3),
    more=st.integers(0, 3),
)
def test_guesses_are_what_a_scan_finds_as_the_text_grows_and_whatever_was_drafted(pieces, min_n, more):
    drafter = NgramDrafter(prompt_lookup_min=min_n, prompt_lookup_max=min_n + more)
    sequence = sequence_of([1])
    for new, draft_token_ids, num_free in pieces:
        sequence.token_ids += new
        expected = guess_by_scan(sequence.token_ids, draft_token_ids, num_free, min_n, min_n + more)
        assert drafter.guess(draft_of(sequence, draft_token_ids, num_free=num_free)) == expected


def test_a_repeated_phrase_is_continued_at_any_length():
    drafter = NgramDrafter(prompt_lookup_min=1, prompt_lookup_max=4)
    assert drafter.guess(draft_of(sequence_of([1, 2, 3, 1, 2, 3]), num_free=8)) == Guess([1, 2, 3, 1, 2, 3, 1, 2], 3)


def test_the_draft_is_continued_but_never_found():
    drafter = NgramDrafter(prompt_lookup_min=2, prompt_lookup_max=4)
    sequence = sequence_of([1, 2, 3, 4, 5, 6, 1])
    assert drafter.guess(draft_of(sequence, [2, 3], num_free=2)) == Guess([4, 5], 3)
    assert drafter.guess(draft_of(sequence, [8, 9, 8, 9], num_free=2)) == NO_GUESS
    sequence.token_ids += [8, 9]
    assert drafter.guess(draft_of(sequence, [8, 9], num_free=2)) == NO_GUESS, "nothing verified has followed 8, 9"


@pytest.mark.parametrize("num_free", [0, 1, 5])
def test_a_guess_fits_the_draft(num_free):
    drafter = NgramDrafter(prompt_lookup_min=1, prompt_lookup_max=2)
    assert len(drafter.guess(draft_of(sequence_of([1, 1, 1]), [1], num_free=num_free)).token_ids) == num_free


def test_what_a_finished_sequence_left_is_forgotten():
    drafter = NgramDrafter(prompt_lookup_min=1, prompt_lookup_max=2)
    sequence = sequence_of([1, 2, 1])
    drafter.guess(draft_of(sequence, num_free=1))
    drafter.finished(sequence)
    drafter.finished(sequence_of([1]))
    assert not drafter._indexes
