"""Stop strings: found across pieces, never shown, nothing shown that might begin one."""

from hypothesis import given
from hypothesis import strategies as st

from specdec.request import FinishReason, SamplingParams
from specdec.sequence import Sequence
from specdec.stop import StopChecker, first_stop, num_held_back

texts = st.text(alphabet="abc", max_size=20)
stop_lists = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


class Spelled:
    """A detokenizer of tokens that stand for given texts: token i for the one before index i."""

    def __init__(self, pieces):
        self.pieces = pieces

    def push(self, token_ids):
        return "".join(self.pieces[token_id - 1] for token_id in token_ids)

    def flush(self):
        return ""


def sequence_of(pieces, *, stop, **fields):
    """One that has yet to be given tokens 1, 2, ... of these texts."""
    return Sequence(
        request_id="a",
        choice_index=0,
        params=SamplingParams(stop=stop),
        seed=0,
        max_tokens=100,
        eos_token_ids=frozenset({0}),
        num_prompt_tokens=1,
        token_ids=[1],
        detokenizer=Spelled(pieces),
        **fields,
    )


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


CALL = '{"name": "f", "parameters": {"a": "b c"}}'


@given(st.sampled_from(["", "a", "a b"]), st.sampled_from(["", " ", "\n\n"]), st.data())
def test_no_stop_string_ends_a_call_that_comes_behind_its_marker(thought, blanks, data):
    text = thought + "</think>" + blanks + CALL
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=12)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    sequence = sequence_of(pieces, stop=("}", "c"), free_text_end="", calls_after="</think>")
    verdict = StopChecker().accept(sequence, range(1, len(pieces) + 1))
    assert (verdict.text + sequence.held_text, verdict.finish_reason) == (text, None)
    assert sequence.is_in_calls


def test_a_stop_string_ends_what_is_text_behind_the_marker():
    for text in ("a</think> b } " + CALL, "a</think>[}]"):
        sequence = sequence_of([text], stop=("}",), free_text_end="", calls_after="</think>")
        verdict = StopChecker().accept(sequence, [1])
        assert (verdict.text, verdict.finish_reason) == (text[: text.index("}")], FinishReason.STOP)
    sequence = sequence_of(["a</think>\n\n", CALL], stop=("\n\n",), free_text_end="", calls_after="</think>")
    verdict = StopChecker().accept(sequence, [1, 2])
    assert (verdict.text, verdict.num_emitted) == ("a</think>", 1)
