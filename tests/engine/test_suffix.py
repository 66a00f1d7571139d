"""The suffix drafter against scans of the text and of the finished answers."""

import random

import pytest
from drafts import draft_of, sequence_of
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.proposers import suffix
from specdec.proposers.base import NO_GUESS, Guess
from specdec.proposers.suffix import SuffixDrafter
from specdec.request import FinishReason


def make_drafter(max_tree_depth=24, max_cached_requests=1000, max_spec_factor=2.0, min_token_prob=0.1):
    return SuffixDrafter(
        max_tree_depth=max_tree_depth,
        max_cached_requests=max_cached_requests,
        max_spec_factor=max_spec_factor,
        min_token_prob=min_token_prob,
    )


def finish(drafter, output, *, salt="", reason=FinishReason.STOP, prompt=(1,)):
    sequence = sequence_of([*prompt, *output], num_prompt_tokens=len(prompt), cache_salt=salt)
    sequence.finish_reason = reason
    drafter.finished(sequence)


def count(texts, run, *, followed=False):
    return sum(
        text[start : start + len(run)] == run
        for text in texts
        for start in range(len(text) - len(run) + (0 if followed else 1))
    )


def continued_by_scan(texts, tail, num_free, max_depth, factor, min_prob, *, followed):
    """The definition: token ids, score and length of the match."""
    num_matched = max((n for n in range(1, len(tail) + 1) if count(texts, tail[-n:], followed=followed)), default=0)
    limit = min(num_free, int(factor * num_matched))
    run, token_ids, score = tail[len(tail) - num_matched :], [], 0.0
    prob = prob_before = 1.0
    total = count(texts, run, followed=followed)
    while len(token_ids) < limit:
        if len(run) == max_depth:
            run, prob_before = run[-(max_depth // 2) :], prob
            total = count(texts, run, followed=followed)
            if total == 0:
                break
        best = min((-count(texts, [*run, token_id]), token_id) for token_id in range(1, 5))
        share = -best[0] / total
        if share == 0 or share < min_prob / prob_before:
            break
        run = [*run, best[1]]
        prob = prob_before * share
        token_ids.append(best[1])
        score += prob
    return token_ids, score, num_matched


tokens = st.lists(st.integers(1, 3), max_size=8)


@settings(deadline=None)
@given(
    pieces=st.lists(st.tuples(tokens, tokens, st.integers(1, 12)), min_size=1, max_size=6),
    answers=st.lists(tokens, max_size=4),
    max_depth=st.integers(2, 8),
    factor=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    min_prob=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    max_answers=st.integers(0, 3),
)
def test_guesses_are_what_scans_find_as_the_text_grows_and_whatever_was_drafted(
    pieces, answers, max_depth, factor, min_prob, max_answers
):
    drafter = make_drafter(max_depth, max_answers, factor, min_prob)
    for answer in answers:
        finish(drafter, answer)
    kept = [answer for answer in answers if answer][::-1][:max_answers]
    sequence = sequence_of([1])
    for new, draft_token_ids, num_free in pieces:
        sequence.token_ids += new
        tail = [*sequence.token_ids, *draft_token_ids][1 - max_depth :]
        arguments = tail, num_free, max_depth, factor, min_prob
        own = continued_by_scan([sequence.token_ids], *arguments, followed=True)
        others = continued_by_scan(kept, *arguments, followed=False)
        guess = drafter.guess(draft_of(sequence, draft_token_ids, num_free=num_free))
        token_ids, score, num_matched = others if others[1] > own[1] + 1e-9 else own
        if others[1] == pytest.approx(own[1]):
            assert list(guess.token_ids) in (own[0], others[0])
            continue
        assert list(guess.token_ids) == token_ids
        if token_ids:
            length_class = sum(num_matched > longest for longest in (1, 2, 4, 8))
            assert guess.confidence - length_class in {0, 1}
            if abs(score / len(token_ids) - 0.5) > 1e-9:
                assert guess.confidence - length_class == (score / len(token_ids) > 0.5)


def test_a_copied_text_is_continued_beyond_the_depth_of_the_tree():
    text = list(range(1, 200))
    sequence = sequence_of([*text, 500, *text[50:73]])
    assert make_drafter().guess(draft_of(sequence, num_free=32)) == Guess(text[73:105], 5)


def test_the_most_frequent_continuation_is_taken_and_equals_go_by_token():
    drafter = make_drafter(min_token_prob=0.0)
    sequence = sequence_of([5, 9, 6, 5, 8, 7, 5, 9, 4, 5])
    assert drafter.guess(draft_of(sequence, num_free=1)).token_ids == [9]
    sequence = sequence_of([5, 9, 6, 5, 8, 7, 5])
    assert drafter.guess(draft_of(sequence, num_free=1)).token_ids == [8]


def test_rare_continuations_are_left_out():
    text = [5, 1, 5, 2, 5, 3, 5, 4, 5]
    assert make_drafter(min_token_prob=0.25).guess(draft_of(sequence_of(text), num_free=4)).token_ids[0] == 1
    assert make_drafter(min_token_prob=0.26).guess(draft_of(sequence_of(text), num_free=4)) == NO_GUESS


def test_a_short_match_is_not_followed_where_the_factor_gives_it_no_token():
    text = [5, 1, 2, 5]
    assert make_drafter(max_spec_factor=0.5).guess(draft_of(sequence_of(text), num_free=4)) == NO_GUESS
    text = [5, 1, 2, 5, 1]
    assert make_drafter(max_spec_factor=0.5).guess(draft_of(sequence_of(text), num_free=4)).token_ids == [2]


def test_the_draft_is_continued_but_not_learned():
    drafter = make_drafter()
    sequence = sequence_of([1, 2, 3, 4, 5, 9])
    assert drafter.guess(draft_of(sequence, [1, 2], num_free=2)).token_ids == [3, 4]
    assert drafter.guess(draft_of(sequence, [7, 8, 7], num_free=2)) == NO_GUESS
    assert drafter.guess(draft_of(sequence, [7], num_free=2)) == NO_GUESS


def test_finished_answers_help_others_of_their_salt_only():
    drafter = make_drafter()
    finish(drafter, [11, 12, 13, 14], salt="a")
    assert drafter.guess(draft_of(sequence_of([11, 12], cache_salt="a"), num_free=9)).token_ids == [13, 14]
    assert drafter.guess(draft_of(sequence_of([11, 12], cache_salt="b"), num_free=9)) == NO_GUESS
    assert drafter.guess(draft_of(sequence_of([11, 12]), num_free=9)) == NO_GUESS


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR, None])
def test_answers_that_broke_off_are_not_learned(reason):
    drafter = make_drafter()
    finish(drafter, [11, 12, 13, 14], reason=reason)
    assert drafter.guess(draft_of(sequence_of([11, 12]), num_free=9)) == NO_GUESS


def test_prompts_are_not_shown_to_others():
    drafter = make_drafter()
    finish(drafter, [13, 14], prompt=(11, 12))
    assert drafter.guess(draft_of(sequence_of([11, 12]), num_free=9)) == NO_GUESS


def test_the_oldest_answer_is_forgotten_and_empty_salts_with_it():
    drafter = make_drafter(max_cached_requests=2)
    finish(drafter, [11, 12, 13], salt="a")
    finish(drafter, [21, 22, 23], salt="b")
    finish(drafter, [31, 32, 33], salt="b")
    assert set(drafter._answers._trees) == {("b",)}
    finish(drafter, [41, 42, 43], salt="b")
    assert drafter.guess(draft_of(sequence_of([21, 22], cache_salt="b"), num_free=9)) == NO_GUESS
    assert drafter.guess(draft_of(sequence_of([31, 32], cache_salt="b"), num_free=9)).token_ids == [33]


@pytest.mark.parametrize("max_nodes", [0, 5, 40])
def test_nodes_are_bounded_over_all_salts(monkeypatch, max_nodes):
    monkeypatch.setattr(suffix, "_MAX_NODES", max_nodes)
    drafter = make_drafter()
    generator = random.Random(0)
    for i in range(50):
        finish(drafter, [generator.randrange(6) for _ in range(generator.randrange(20))], salt=str(i % 3))
        trees = drafter._answers._trees
        assert drafter._answers._num_nodes == sum(tree.num_nodes for tree in trees.values()) <= max_nodes
        assert all(tree.num_nodes for tree in trees.values())
    assert len(drafter._answers._answers) < 15


def test_a_preempted_sequence_goes_on_where_it_was():
    interrupted, undisturbed = make_drafter(), make_drafter()
    generator = random.Random(0)
    text = [generator.randrange(3) for _ in range(200)]
    sequence, twin = sequence_of(text[:1]), sequence_of(text[:1])
    for i, token_id in enumerate(text[1:]):
        if i % 20 == 10:
            sequence.drop_blocks()
        sequence.token_ids.append(token_id)
        twin.token_ids.append(token_id)
        if not 10 < i % 20 < 15:
            assert interrupted.guess(draft_of(sequence, num_free=9)) == undisturbed.guess(draft_of(twin, num_free=9))
        else:
            undisturbed.guess(draft_of(twin, num_free=9))


def test_a_finished_sequence_is_forgotten():
    drafter = make_drafter()
    sequence = sequence_of([1, 2, 1])
    drafter.guess(draft_of(sequence, num_free=1))
    drafter.finished(sequence)
    assert not drafter._texts


def test_nothing_is_guessed_into_no_slots():
    assert make_drafter().guess(draft_of(sequence_of([1, 1, 1]), [1], num_free=0)) == NO_GUESS
