"""Who is served when: no caller waits for another's many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specdec.grammars.fair_queue import FairQueue


def test_one_that_comes_late_is_served_before_another_callers_second() -> None:
    queue: FairQueue[str] = FairQueue()
    many = [f"many {i}" for i in range(5)]
    for item in many:
        queue.add("many", item)
    queue.add("one", "only")
    assert list(queue) == ["many 0", "only", "many 1", "many 2", "many 3", "many 4"]
    queue.remove(many[0], is_served=True)
    queue.remove("only", is_served=True)
    queue.remove(many[1], is_served=True)
    queue.add("one", "again")
    assert list(queue) == ["again", "many 2", "many 3", "many 4"]


def test_what_another_caller_waits_for_too_has_the_sooner_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    shared = "shared"
    queue.add("many", "first")
    queue.add("many", "second")
    queue.add("many", shared)
    queue.add("one", shared)
    queue.add("many", shared)
    assert list(queue) == ["first", shared, "second"]
    queue.remove(shared)
    queue.remove(shared)
    assert len(queue) == 2


@given(st.lists(st.sampled_from("abcd"), max_size=60))
def test_nobody_is_served_more_than_one_turn_ahead_of_whoever_waits(callers: list[str]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    items = [(caller, i) for i, caller in enumerate(callers)]
    for item in items:
        queue.add(item[0], item)
    served: list[tuple[str, int]] = []
    while len(queue):
        first = next(iter(queue))
        queue.remove(first, is_served=True)
        served.append(first)
        waiting = {caller for caller, _ in queue}
        for caller in waiting:
            counts = [sum(each[0] == name for each in served) for name in waiting | {first[0]}]
            own = sum(each[0] == caller for each in served)
            assert max(counts) - own <= 1, "all came at once, so that none is two ahead"
    assert sorted(served, key=lambda item: item[1]) == items
    for caller in set(callers):
        own = [item for item in served if item[0] == caller]
        assert own == sorted(own, key=lambda item: item[1]), "each caller's own in order"
