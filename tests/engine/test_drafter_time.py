"""DrafterTime: drafters that take more than they save are asked less and less, all others in every step."""

import pytest

from specdec.proposers.drafter_time import DrafterTime


def steps(time, num_steps, *, seconds, num_accepted=0, seconds_per_token=0.003, name="suffix"):
    """Whether the drafter was asked, step by step."""
    asked = []
    for _ in range(num_steps):
        asked.append(time.is_worth_asking(name))
        if asked[-1]:
            time.spend(name, seconds)
            time.save(name, num_accepted, seconds_per_token)
        time.settle(seconds_per_token)
    return asked


def test_a_drafter_that_saves_what_it_takes_is_asked_in_every_step():
    assert all(steps(DrafterTime(), 500, seconds=0.002, num_accepted=1))


def test_one_that_saves_nothing_soon_takes_next_to_none_of_the_time():
    asked = steps(DrafterTime(), 1000, seconds=0.002)
    assert all(asked[:3])
    assert 20 < sum(asked) < 60
    assert any(asked[-40:]), "what does not pay now is tried again"


def test_a_drafter_that_is_right_again_is_asked_again():
    time = DrafterTime()
    steps(time, 300, seconds=0.002)
    later = steps(time, 600, seconds=0.002, num_accepted=3)
    assert all(later[-100:])


@pytest.mark.parametrize(("seconds_per_token", "is_worth_it"), [(0.020, True), (0.0005, False)])
def test_what_a_token_takes_decides(seconds_per_token, is_worth_it):
    """As with one sequence, and with many: each tenth step it saves a token."""
    time = DrafterTime()
    asked = []
    for i in range(400):
        asked += steps(time, 1, seconds=0.001, num_accepted=i % 10 == 0, seconds_per_token=seconds_per_token)
    assert all(asked) is is_worth_it


def test_each_has_an_account_of_its_own_and_one_that_was_not_asked_pays_nothing():
    time = DrafterTime()
    steps(time, 100, seconds=0.01)
    assert all(steps(time, 100, seconds=0.01, num_accepted=4, name="ngram"))
    assert time.is_worth_asking("grammar")
