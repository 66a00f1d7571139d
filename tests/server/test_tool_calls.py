"""CallReader: whatever the pieces in which an answer comes, it says the calls that were written."""

from __future__ import annotations

import itertools
import json

import pytest
from call_pieces import read
from hypothesis import given
from hypothesis import strategies as st

from specdec import HERMES, LLAMA_JSON, MISTRAL, MISTRAL_ARGS, ToolCallFormat
from specdec.server.tool_calls import ArgumentsPiece, CallBegin, CallReader, TextPiece

FORMATS = {"hermes": HERMES, "mistral": MISTRAL, "mistral_args": MISTRAL_ARGS, "llama": LLAMA_JSON}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a{}[]"\\é😀 <tool_call>\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"{}\\', max_size=3), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text('ab"{}\\', max_size=3), json_values, max_size=3)
calls = st.tuples(st.text(alphabet="ab_-é", min_size=1, max_size=5), arguments)


def written(form: ToolCallFormat, said: list[tuple[str, dict]]) -> tuple[str, list[str]]:
    texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for _, value in said]
    bodies = [
        f'{{"{form.name_key}":{json.dumps(name, ensure_ascii=False)},"{form.arguments_key}":{text}}}'
        for (name, _), text in zip(said, texts, strict=True)
    ]
    if form.name_end is not None:
        bodies = [name + form.name_end + text for (name, _), text in zip(said, texts, strict=True)]
    if form.is_list:
        return form.begin + form.separator.join(bodies) + form.end, texts
    return form.separator.join(form.begin + body + form.end for body in bodies), texts


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_the_calls_that_were_written_are_read(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    said = data.draw(st.lists(calls, min_size=1, max_size=1 if form is LLAMA_JSON else 3))
    before = "" if form is LLAMA_JSON else data.draw(st.text(alphabet='a<tol_c>[TOOL \n{}"', max_size=12))
    before = before.split(form.text_end)[0] if form.text_end else before
    text, expected = written(form, said)
    if form.text_end and (before + text).index(form.text_end) != len(before):
        before = ""
    has_text = data.draw(st.booleans()) or bool(before)
    pieces = cut(before + text, data.draw(st.lists(st.integers(0, 500), max_size=8)))
    reader = CallReader(form, text="before" if has_text else "none")
    assert read(reader, pieces) == (before, [(name, one) for (name, _), one in zip(said, expected, strict=True)])
    assert reader.has_whole_calls


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(alphabet="<tol_ca>[TOOL_CALS] {x}", max_size=30), places=st.lists(st.integers(0, 40), max_size=5))
def test_text_without_calls_is_shown_whole(name: str, text: str, places: list[int]) -> None:
    form = FORMATS[name]
    text = text.split(form.text_end)[0] if form.text_end else text.lstrip("{")
    reader = CallReader(form, text="before")
    assert read(reader, cut(text, places)) == (text, [])
    assert not reader.has_whole_calls


def test_text_that_cannot_be_a_marker_any_more_is_shown_at_once() -> None:
    reader = CallReader(HERMES, text="before")
    assert list(reader.read("I <tool")) == [TextPiece("I ")]
    assert list(reader.read("box")) == [TextPiece("<toolbox")]


@pytest.mark.parametrize("cuts", [[], [1], [3, 9], list(range(60))])
def test_an_object_instead_of_calls_may_hold_the_marker(cuts: list[int]) -> None:
    text = '{"a":"<tool_call>\\n{"}'
    reader = CallReader(HERMES, text="instead")
    assert read(reader, cut(text, cuts)) == (text, [])
    assert not reader.has_whole_calls
    text, expected = written(HERMES, [("f", {"a": 1})])
    reader = CallReader(HERMES, text="instead")
    assert read(reader, cut(text, cuts)) == ("", [("f", expected[0])])


def test_arguments_are_passed_on_as_they_come() -> None:
    reader = CallReader(HERMES, text="none", id_length=9)
    [begin] = reader.read('<tool_call>\n{"name":"f","argu')
    assert isinstance(begin, CallBegin)
    assert len(begin.id) == 9
    assert list(reader.read('ments":{"a":"}')) == [ArgumentsPiece(0, '{"a":"}')]
    assert not reader.has_whole_calls
    assert list(reader.read('"}}\n')) == [ArgumentsPiece(0, '"}')]
    assert reader.has_whole_calls
