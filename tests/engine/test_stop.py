"""Stop strings: found across pieces, never shown, nothing shown that might begin one."""

from hypothesis import given
from hypothesis import strategies as st

from specdec.stop import first_stop, num_held_back

texts = st.text(alphabet="abc", max_size=20)
stop_lists = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


@given(texts, stop_lists)
def test_the_first_stop_is_the_earliest_and_there_the_longest(text, stops):
    expected = min(
        ((i, -len(stop), stop) for stop in stops for i in range(len(text)) if text[i:].startswith(stop)), default=None
    )
    assert first_stop(text, stops) == (None if expected is None else (expected[0], expected[2]))


@given(texts, stop_lists)
def test_what_is_held_back_is_the_longest_end_that_begins_a_stop(text, stops):
    beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
    assert num_held_back(text, stops) == max((len(b) for b in beginnings if text.endswith(b)), default=0)


@given(st.lists(texts, max_size=8), stop_lists)
def test_text_shown_piece_by_piece_is_the_text_before_the_first_stop(pieces, stops):
    shown, held = "", ""
    for piece in pieces:
        text = held + piece
        found = first_stop(text, stops)
        if found:
            shown, held = shown + text[: found[0]], ""
            break
        num_held = num_held_back(text, stops)
        shown, held = shown + text[: len(text) - num_held], text[len(text) - num_held :]
    whole = "".join(pieces)
    found = first_stop(whole, stops)
    # A longer stop that begins later in the same piece loses to a shorter one that was complete before it arrived.
    expected = whole if found is None else whole[: found[0]]
    assert shown + held == expected
