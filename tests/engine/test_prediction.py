"""The prediction drafter against scans of the prediction, and over edits of it."""

import random

import pytest
from drafts import draft_of, sequence_of
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_scan import guess_by_scan, num_predicted_by_scan

from specdec import Engine, EngineConfig, Request, SamplingParams, SpeculativeConfig
from specdec.proposers.base import NO_GUESS, Guess
from specdec.proposers.prediction import PredictionDrafter

tokens = st.lists(st.integers(1, 4), max_size=10)


@st.composite
def answers(draw, prediction):
    """Pieces of a prediction and of anything else."""
    pieces = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(prediction)))
        pieces.append(draw(tokens) if draw(st.booleans()) else prediction[start : start + draw(st.integers(0, 40))])
    return pieces


@settings(deadline=None)
@given(data=st.data(), prompt=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_guesses_are_what_scans_find_as_the_text_grows_and_whatever_was_drafted(data, prompt):
    prediction = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=60))
    sequence = sequence_of(prompt, num_prompt_tokens=len(prompt), prediction=prediction)
    drafter = PredictionDrafter()
    for new in data.draw(answers(prediction)):
        sequence.token_ids += new
        draft_token_ids, num_free = data.draw(tokens), data.draw(st.integers(1, 12))
        expected = guess_by_scan(prediction, [*sequence.token_ids, *draft_token_ids], len(prompt), num_free)
        assert drafter.guess(draft_of(sequence, draft_token_ids, num_free=num_free)) == expected


def whole_guess(drafter, sequence, num_free):
    """All that is guessed, one class after the other."""
    token_ids = []
    while guess := drafter.guess(draft_of(sequence, token_ids, num_free=num_free - len(token_ids))).token_ids:
        token_ids += guess
    return token_ids


def num_passes(prediction, answer, num_free=1000):
    """Target passes until the answer is written, each of which adds one token to what it accepts."""
    sequence = sequence_of([0], prediction=prediction)
    drafter = PredictionDrafter()
    passes = 0
    while len(sequence.token_ids) <= len(answer):
        rest = answer[len(sequence.token_ids) - 1 :]
        guess = whole_guess(drafter, sequence, num_free)
        num_accepted = 0
        while num_accepted < min(len(guess), len(rest) - 1) and guess[num_accepted] == rest[num_accepted]:
            num_accepted += 1
        sequence.token_ids += rest[: num_accepted + 1]
        passes += 1
    return passes


PREDICTION = list(range(1, 301))


def test_an_answer_as_predicted_takes_one_pass():
    assert num_passes(PREDICTION, PREDICTION) == 1


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 20])
@pytest.mark.parametrize("place", [0, 1, 150, 280])
def test_an_insertion_costs_its_tokens_and_two_more(place, num_tokens):
    answer = PREDICTION[:place] + list(range(1001, 1001 + num_tokens)) + PREDICTION[place:]
    assert num_passes(PREDICTION, answer) <= num_tokens + 3


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 20])
@pytest.mark.parametrize("place", [0, 1, 150, 270])
def test_a_deletion_costs_two_tokens(place, num_tokens):
    assert num_passes(PREDICTION, PREDICTION[:place] + PREDICTION[place + num_tokens :]) <= 3


@pytest.mark.parametrize("num_old", [1, 2, 20])
@pytest.mark.parametrize("num_new", [1, 2, 20])
@pytest.mark.parametrize("place", [0, 1, 150, 270])
def test_a_replacement_costs_its_tokens_and_two_more(place, num_old, num_new):
    answer = PREDICTION[:place] + list(range(1001, 1001 + num_new)) + PREDICTION[place + num_old :]
    assert num_passes(PREDICTION, answer) <= num_new + 3


def test_one_token_in_place_of_another_costs_nothing_more():
    answer = [1000 + token_id if token_id % 50 == 0 else token_id for token_id in PREDICTION]
    assert num_passes(PREDICTION, answer) == len(PREDICTION) // 50


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 20])
def test_a_preamble_costs_its_own_tokens_alone(num_tokens):
    assert num_passes(PREDICTION, [*range(1001, 1001 + num_tokens), *PREDICTION]) == num_tokens + 1


def test_one_token_that_is_found_again_brings_the_answer_back():
    answer = [*PREDICTION[:100], 1001, 1002, 1003, *PREDICTION[120:]]
    # After each of the three, and after the first token of what follows, which was not expected.
    assert num_passes(PREDICTION, answer) <= 5


def test_each_class_ends_where_the_tokens_before_make_the_next_one_likelier():
    drafter = PredictionDrafter()
    sequence = sequence_of([0, 9], prediction=PREDICTION)
    drafted, classes = [], []
    while len(drafted) < 50:
        guess = drafter.guess(draft_of(sequence, drafted, num_free=50 - len(drafted)))
        drafted += guess.token_ids
        classes.append((guess.confidence, len(guess.token_ids)))
    assert drafted == PREDICTION[:50]
    assert classes == [(0, 1), (1, 3), (2, 4), (3, 24), (4, 18)]


def test_moved_text_is_followed():
    assert num_passes(PREDICTION, PREDICTION[200:] + PREDICTION[:200]) <= 6


def test_the_nearest_place_ahead_is_taken_before_one_behind():
    prediction = [1, 2, 11, 1, 2, 12, 1, 2, 13]
    sequence = sequence_of([0, 1, 2, 11, 9, 9, 1, 2], prediction=prediction)
    assert PredictionDrafter().guess(draft_of(sequence, num_free=1)) == Guess((12,), 1)
    sequence = sequence_of([0, *prediction, 9, 9, 1, 2], prediction=prediction)
    assert PredictionDrafter().guess(draft_of(sequence, num_free=1)) == Guess((13,), 1)


def test_the_more_tokens_agree_the_better():
    prediction = [1, 2, 11, 3, 1, 2, 12]
    sequence = sequence_of([0, 9, 9, 3, 1, 2], prediction=prediction)
    assert PredictionDrafter().guess(draft_of(sequence, num_free=1)) == Guess((12,), 1)


def test_no_prediction_is_no_guess():
    drafter = PredictionDrafter()
    assert drafter.guess(draft_of(sequence_of([0]), num_free=5)) == NO_GUESS
    sequence = sequence_of([0], prediction=[1])
    assert drafter.guess(draft_of(sequence, num_free=0)) == NO_GUESS
    assert drafter.guess(draft_of(sequence, [1], num_free=5)) == NO_GUESS


def test_a_draft_leaves_no_trace():
    drafter = PredictionDrafter()
    sequence = sequence_of([0, 1, 2], prediction=PREDICTION)
    assert drafter.guess(draft_of(sequence, [200, 201], num_free=2)) == Guess((202, 203), 1)
    assert drafter.guess(draft_of(sequence, num_free=2)) == Guess((3, 4), 1)


def test_a_preempted_sequence_goes_on_where_it_was():
    drafter = PredictionDrafter()
    sequence = sequence_of([0, *PREDICTION[:100]], prediction=PREDICTION)
    before = drafter.guess(draft_of(sequence, num_free=9))
    sequence.drop_blocks()
    assert drafter.guess(draft_of(sequence, num_free=9)) == before == Guess(tuple(PREDICTION[100:109]), 4)


def test_how_the_text_came_in_does_not_matter():
    generator = random.Random(0)
    prediction = [generator.randrange(4) for _ in range(100)]
    answer = [generator.randrange(4) for _ in range(50)] + prediction[30:60]
    one_by_one, at_once = PredictionDrafter(), PredictionDrafter()
    sequence = sequence_of([0], prediction=prediction)
    for token_id in answer:
        sequence.token_ids.append(token_id)
        guess = one_by_one.guess(draft_of(sequence, num_free=9))
    assert at_once.guess(draft_of(sequence, num_free=9)) == guess


# Which tokens of drafts are the prediction's


@settings(deadline=None)
@given(data=st.data(), prompt=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_token_agrees_with_the_prediction_where_scans_say_that_it_goes_on_so(data, prompt):
    prediction = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=60))
    sequence = sequence_of(prompt, num_prompt_tokens=len(prompt), prediction=prediction)
    for new in data.draw(answers(prediction)):
        draft_token_ids = data.draw(tokens | st.just(list(new)))
        agreement = sequence.prediction_follower.agreement(sequence.token_ids, draft_token_ids)
        assert agreement == [
            guess_by_scan(prediction, [*sequence.token_ids, *draft_token_ids[:i]], len(prompt), 1).token_ids
            == (token_id,)
            for i, token_id in enumerate(draft_token_ids)
        ]
        sequence.token_ids += new


@settings(deadline=None)
@given(data=st.data())
def test_all_that_is_drafted_from_a_prediction_agrees_with_it(data):
    prediction = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=60))
    sequence = sequence_of([0], prediction=prediction)
    drafter = PredictionDrafter()
    for new in data.draw(answers(prediction)):
        sequence.token_ids += new
        guess = whole_guess(drafter, sequence, data.draw(st.integers(1, 40)))
        assert sequence.prediction_follower.agreement(sequence.token_ids, guess) == [True] * len(guess)


TEXT = "The quick brown fox jumps over the lazy dog. The quick red fox sleeps."


@pytest.mark.parametrize("num_kv_blocks", [None, 11], ids=["roomy", "preempting"])
def test_what_is_counted_of_a_prediction_is_what_prompt_prediction_and_answer_say(tiny_model_folder, num_kv_blocks):
    config = EngineConfig(
        model=str(tiny_model_folder),
        speculative=SpeculativeConfig(num_speculative_tokens=5),
        max_num_seqs=8,
        num_kv_blocks=num_kv_blocks,
        kv_cache_memory=None if num_kv_blocks else 2**22,
        num_compile_workers=0,
    )
    engine = Engine(config)
    params = SamplingParams(temperature=1.0, seed=7, n=3, max_tokens=60, ignore_eos=True)
    prompt = tuple(engine.tokenizer.encode(TEXT, add_special_tokens=True))

    def answered(prediction, trace=True):
        request = Request(
            request_id="r", prompt_token_ids=prompt, sampling_params=params, prediction=prediction, trace=trace
        )
        engine.add_request(request)
        deltas = []
        while engine.has_unfinished_requests():
            deltas += engine.step()
        return [[delta for delta in deltas if delta.choice_index == i] for i in range(params.n)]

    by_others = 0
    written = answered("")
    # What the prompt says already, what an answer says and the prompt does not, both, and nothing of either.
    texts = ["".join(delta.text for delta in choice) for choice in written]
    for prediction in (TEXT, texts[0], f"{texts[1][:40]} {TEXT} {texts[2]}", "zzz"):
        predicted = engine.tokenizer.encode(prediction, add_special_tokens=False)
        choices = answered(prediction)
        for choice in choices:
            token_ids = [token_id for delta in choice for token_id in delta.token_ids]
            drafts = [draft for delta in choice for draft in delta.drafts]
            counts = choice[-1].speculation
            expected = num_predicted_by_scan(predicted, prompt, token_ids, drafts)
            assert (counts.num_accepted_prediction_tokens, counts.num_rejected_prediction_tokens) == expected
            own = counts.by_proposer.get("prediction")
            if own is not None:
                by_others += expected[0] - own.num_accepted_tokens
                assert own.num_accepted_tokens <= expected[0]
    assert by_others > 0, "the test needs tokens of the prediction that another proposer drafted"
    for choice in written:
        assert choice[-1].speculation.num_accepted_prediction_tokens == 0
        assert choice[-1].speculation.num_rejected_prediction_tokens == 0
    assert (engine.stats().num_preemptions > 0) == (num_kv_blocks is not None)
