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
