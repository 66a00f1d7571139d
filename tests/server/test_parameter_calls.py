"""ParameterCallReader: calls written parameter by parameter are read as JSON, whatever the pieces they come in."""

from __future__ import annotations

import itertools
import json

import pytest
from call_pieces import read
from hypothesis import given
from hypothesis import strategies as st

from specdec import QWEN_XML
from specdec.grammars import ParameterKind
from specdec.server.parameter_calls import ParameterCallReader
from specdec.server.tool_calls import ArgumentsPiece

END = "\n</parameter>"
KINDS = {"f": {"t": ParameterKind.TEXT, "o": ParameterKind.TEXT_OR_NULL, "j": ParameterKind.JSON}, "g": {}}
texts = st.text(alphabet='nul\n</parmet>"\\é😀 {}', max_size=18).filter(lambda text: END not in text)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner | st.just(END), max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
parameters = st.fixed_dictionaries(
    {}, optional={"t": texts, "o": texts.filter(lambda text: text != "null") | st.none(), "j": json_values, 'é"': texts}
)
calls = st.tuples(st.sampled_from(["f", "g"]), parameters).map(
    lambda call: call if call[0] == "f" else ("g", {name: text for name, text in call[1].items() if name in 'té"'})
)


def written(said: list[tuple[str, dict]]) -> str:
    spelt = []
    for name, values in said:
        body = ""
        for key, value in values.items():
            is_json = KINDS[name].get(key) is ParameterKind.JSON
            text = json.dumps(value) if is_json or value is None else value
            body += f"<parameter={key}>\n{text}{END}\n"
        spelt.append(f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>")
    return "\n".join(spelt)


def reader_of(text: str = "before") -> ParameterCallReader:
    return ParameterCallReader(QWEN_XML, QWEN_XML.parameters, KINDS, text=text)


@given(
    before=st.text(alphabet="a<tol_c>\n", max_size=9),
    said=st.lists(calls, min_size=1, max_size=3),
    places=st.lists(st.integers(0, 400), max_size=12),
    has_text=st.booleans(),
)
def test_the_calls_that_were_written_are_read(
    before: str, said: list[tuple[str, dict]], places: list[int], has_text: bool
) -> None:
    before = before.split("<tool_call>")[0] if has_text else ""
    text = before + written(said)
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    reader = reader_of("before" if has_text else "none")
    shown, found = read(reader, [text[start:end] for start, end in itertools.pairwise(bounds)])
    assert shown == before
    assert [(name, json.loads(arguments)) for name, arguments in found] == said
    assert reader.has_whole_calls


def test_a_call_is_open_until_its_end_is_read() -> None:
    text = written([("f", {"t": "a", "j": 1})])
    for end in range(len(text)):
        reader = reader_of()
        list(reader.read(text[:end]))
        assert not reader.has_whole_calls
    reader = reader_of()
    list(reader.read(text))
    assert reader.has_whole_calls


def test_values_are_passed_on_as_they_come() -> None:
    reader = reader_of("none")
    [begin] = reader.read("<tool_call>\n<function=f>\n<param")
    assert (begin.index, begin.name) == (0, "f")
    assert list(reader.read("eter=t>\nI say ")) == [ArgumentsPiece(0, '{"t": "'), ArgumentsPiece(0, "I say ")]
    assert list(reader.read('"hi"\n</par')) == [ArgumentsPiece(0, '\\"hi\\"')]
    assert list(reader.read("a\n")) == [ArgumentsPiece(0, "\\n</para")]
    assert list(reader.read("</parameter>\n<parameter=j>\n[1,")) == [
        ArgumentsPiece(0, '"'), ArgumentsPiece(0, ', "j": '), ArgumentsPiece(0, "[1,"),
    ]  # fmt: skip
    assert list(reader.read("2]\n</parameter>\n</function>\n</tool_call>")) == [
        ArgumentsPiece(0, "2]"), ArgumentsPiece(0, "}"),
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("null", None), ("nul", "nul"), ("nulls", "nulls"), ("", ""), ("n", "n")])
def test_null_is_null_only_as_a_whole(text: str, value: str | None) -> None:
    spelt = f"<tool_call>\n<function=f>\n<parameter=o>\n{text}{END}\n</function>\n</tool_call>"
    for pieces in ([spelt], list(spelt)):
        [(_, arguments)] = read(reader_of("none"), pieces)[1]
        assert json.loads(arguments) == {"o": value}
