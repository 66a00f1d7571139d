"""EventParser against the standard's grammar: whatever the pieces, line ends, comments and names."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evals import bench_events
from specdec.evals.bench_events import Event, EventParser


def events_of(pieces):
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def plainly_read(stream):
    """The standard's algorithm on a whole stream, line by line; what follows the last blank line is no event."""
    text = stream.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(rb"\r\n|\n|\r", text)[:-1]
    events, kind, data = [], "", []
    for line in lines:
        if not line:
            if data:
                events.append(Event(kind, b"\n".join(data)))
            kind, data = "", []
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            value = value[1:] if value.startswith(b" ") else value
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value.decode(errors="replace")
    return events


def cut(stream, places):
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(bounds)]


PARTS = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"data",
        b"event",
        b"id",
        b":",
        b" ",
        b"x",
        b"data: [DONE]\n\n",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
    ]
)
STREAMS = st.lists(PARTS | st.binary(max_size=3), max_size=40).map(b"".join)


@given(STREAMS, st.lists(st.integers(0, 10**6), max_size=12))
def test_a_stream_in_any_pieces_has_the_events_of_the_whole(stream, places):
    expected = plainly_read(stream)
    assert events_of(cut(stream, places)) == expected
    assert events_of([stream[i : i + 1] for i in range(len(stream))]) == expected


LINES = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20)


@given(
    st.lists(st.tuples(LINES, st.lists(LINES, min_size=1, max_size=3)), max_size=5),
    st.sampled_from(["\r", "\n", "\r\n"]),
)
def test_what_is_written_as_events_is_read_as_those_events(written, end):
    stream = "".join(
        "".join(f"{line}{end}" for line in (": a comment", f"event: {kind}", *(f"data: {each}" for each in data), ""))
        for kind, data in written
    )
    assert events_of([stream.encode()]) == [Event(kind, "\n".join(data).encode()) for kind, data in written]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\ndata: b\ndata:  c\n\n", [b"a\nb\n c"]),
        (b": keep-alive\n\n: again\n\ndata: a\n\n", [b"a"]),
        (b"event: ping\n\ndata: a\n\n", [b"a"]),
        (b"data\n\n", [b""]),
        (b"id: 3\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"data: cut off\n", []),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    ],
)
def test_events_by_example(stream, events):
    assert [event.data for event in events_of([stream])] == events
    assert all(not event.kind for event in events_of([stream]))


def test_an_event_is_out_with_the_last_byte_that_completes_it():
    parser = EventParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\r") == [Event("", b"a")]
    assert parser.feed(b"\n") == []
    assert parser.feed(b"data: b\r\n\r") == [Event("", b"b")]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(bench_events, "MAX_LINE_BYTES", 100)
    parser = EventParser()
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(ValueError, match="100 bytes"):
        parser.feed(b"x" * 10)
