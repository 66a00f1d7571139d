"""A bounded cache is bounded, remembers what was used last, and frees what it drops bit by bit."""

import weakref

from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.grammars.bounded_cache import BoundedCache


class Kept:
    pass


@settings(max_examples=30)
@given(max_entries=st.integers(3, 60), num_puts=st.integers(0, 300))
def test_a_cache_never_holds_more_than_it_may_nor_frees_much_at_once(max_entries, num_puts):
    cache = BoundedCache(max_entries)
    alive = weakref.WeakSet()
    for number in range(num_puts):
        before = len(alive)
        kept = Kept()
        alive.add(kept)
        cache.put(number, kept)
        assert cache.get(number) is kept
        del kept
        assert before - 2 < len(alive) <= max_entries


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), max_size=200))
def test_values_of_many_bytes_are_forgotten_sooner(puts: list[tuple[int, int]]) -> None:
    cache: BoundedCache[int, int] = BoundedCache(1000, max_bytes=90, num_bytes_of=lambda value: value)
    for key, value in puts:
        cache.put(key, value)
        assert cache.get(key) == value
        kept = [*cache._young.values(), *cache._old.values(), *cache._dropped.values()]
        assert sum(kept) <= 90 + 3 * 40
