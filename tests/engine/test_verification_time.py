"""VerificationTime: steps without drafts and what drafts add, learnt apart."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.step_time import StepTime
from specdec.verification_time import VerificationTime

MEASURED = [(1, 0.020), (4, 0.021), (16, 0.030), (64, 0.078)]


def test_until_something_is_observed_the_measured_curve_holds():
    time, curve = VerificationTime(StepTime(MEASURED)), StepTime(MEASURED)
    assert [time.seconds(8, n) for n in range(20)] == pytest.approx([curve.seconds(8 + n) for n in range(20)])


def test_many_sequences_that_take_longer_than_one_make_no_draft_cheaper():
    time = VerificationTime(StepTime(MEASURED))
    before = time.seconds(16, 16) - time.seconds(16, 0)
    for _ in range(300):
        time.observe(16, 0, 0.040)
    assert time.seconds(16, 0) == pytest.approx(0.040, rel=0.02)
    assert time.seconds(16, 16) - time.seconds(16, 0) >= before


@pytest.mark.parametrize("seconds_per_draft", [0.0002, 0.0005, 0.002])
@pytest.mark.parametrize("measured", [MEASURED, [(1, 0.03), (64, 0.03)]])
def test_what_drafts_add_is_learnt_whatever_was_measured(seconds_per_draft, measured):
    time = VerificationTime(StepTime(measured))
    drawn = random.Random(1)
    for _ in range(400):
        num_drafted = drawn.choice([0, 0, 4, 8, 16])
        taken = 0.030 + num_drafted * seconds_per_draft
        time.observe(16, num_drafted, taken * drawn.uniform(0.97, 1.03))
    assert time.seconds(16, 0) == pytest.approx(0.030, rel=0.03)
    for num_drafted in (4, 8, 16):
        assert time.seconds(16, num_drafted) == pytest.approx(0.030 + num_drafted * seconds_per_draft, rel=0.08)


def test_what_was_learnt_of_large_steps_says_nothing_about_small_ones():
    time = VerificationTime(StepTime(MEASURED))
    before = time.seconds(1, 8)
    for _ in range(100):
        time.observe(16, 8, 0.060)
    assert time.seconds(1, 8) == before
    assert time.seconds(16, 8) > 0.05


def test_one_step_that_met_something_else_changes_what_drafts_are_thought_to_take_by_a_step_at_most():
    time = VerificationTime(StepTime(MEASURED))
    for _ in range(50):
        time.observe(16, 8, 0.038)
    time.observe(16, 8, 10.0)
    assert time.seconds(16, 8) < 0.042


def test_a_machine_that_has_become_faster_is_faster_without_drafts_too():
    time = VerificationTime(StepTime(MEASURED))
    for _ in range(100):
        time.observe(16, 16, time.seconds(16, 16) if time.seconds(16, 0) <= 0.016 else 0.023)
    assert time.seconds(16, 0) < 0.018


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 64), st.floats(1e-4, 1.0)), max_size=60))
def test_a_step_with_drafts_is_never_expected_to_be_shorter_than_one_without(steps):
    time = VerificationTime(StepTime(MEASURED))
    for num_tokens, num_drafted, seconds in steps:
        time.observe(num_tokens, num_drafted, seconds)
        assert 0 < time.seconds(num_tokens, 0) <= time.seconds(num_tokens, num_drafted)
