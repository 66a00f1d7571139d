"""Arguments written one by one: what each may be spelt with, and what such calls cannot say."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from checks import accepts
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import small_vocabulary

from specdec.grammars import (
    QWEN_XML,
    Function,
    GrammarCompiler,
    GrammarError,
    LimitExceededError,
    ParameterKind,
    SchemaOptions,
    ToolCalls,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
    parameter_kinds,
)
from specdec.grammars.final_check import FinalCheck

CLOSED = {"type": "object", "additionalProperties": False}


def calls_of(properties: dict[str, Any], *required: str, **schema: Any) -> ToolCalls:
    parameters = json.dumps({**CLOSED, "properties": properties, "required": list(required), **schema})
    return ToolCalls(functions=(Function(name="f", parameters=parameters),), format=QWEN_XML)


def written(*parameters: tuple[str, str]) -> str:
    spelt = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in parameters)
    return f"<tool_call>\n<function=f>\n{spelt}</function>\n</tool_call>"


def taken(constraint: ToolCalls, texts: list[str]) -> list[bool]:
    """Which of the texts the grammar takes, each of which the check passes."""
    grammar = GrammarCompiler(small_vocabulary()).compile(constraint)
    check = FinalCheck(constraint)
    found = [accepts(grammar, text.encode()) for text in texts]
    assert [check.violation(text) for text, is_taken in zip(texts, found, strict=True) if is_taken] == [None] * sum(
        found
    )
    return found


def test_a_string_is_written_as_it_is_up_to_its_end() -> None:
    fine = [
        "",
        "a",
        "\n",
        "a\n\nb",
        '"',
        "null",
        "5",
        "</parameter>",
        "\n</par",
        "\n\n</parameter",
        "<tool_call>",
        "é{",
    ]
    broken = ["a\n</parameter>b", "\n</parameter>"]
    constraint = calls_of({"s": {"type": "string"}}, "s")
    assert taken(constraint, [written(("s", text)) for text in fine]) == [True] * len(fine)
    assert taken(constraint, [written(("s", text)) for text in broken]) == [False] * len(broken)


@pytest.mark.parametrize(
    ("schema", "fine", "broken"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 12}, ["1", "12"], ["0", "13", "1.5", "", '"1"', "1\n", "null"]),
        ({"type": "number"}, ["1", "-0.5"], ["", "a", ".5", "1 2"]),
        ({"type": "boolean"}, ["true", "false"], ["True", "", "null"]),
        ({"type": ["integer", "null"]}, ["1", "null"], ["", "None"]),
        ({"type": "null"}, ["null"], [""]),
        ({"type": "array", "items": {"type": "string"}}, ["[]", '["a\\n</parameter>"]'], ["", "a", "[a]"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"a":1}'], ["", '{"a":"1"}', "{}{}"]),
        ({"enum": ["a", "ab", "\n"]}, ["a", "ab", "\n"], ["", "b", "abc", '"a"']),
        ({"enum": [1, 2.5, True]}, ["1", "2.5", "true"], ["3", "a", ""]),
        ({"type": "string", "maxLength": 2}, ["", "ab", "\n\n", "é"], ["abc", "\n\na"]),
        ({"type": "string", "minLength": 2}, ["ab", "\n</parameter"], ["", "a"]),
        ({"type": "string", "pattern": "^a+\n?$"}, ["a", "aa", "aa\n"], ["", "b", "a\n\n", "a\n</parameter>"]),
        ({"type": "string", "maxLength": 5000}, ["", "ab", "</parameter>"], ["a\nb"]),
        ({"type": ["string", "null"], "maxLength": 4}, ["null", "", "nul", "ab"], ["nulls"]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["null", "", "5"], []),
        ({"type": ["string", "integer"]}, ["5", "a", '"a"'], []),
        ({}, ["5", "a", "null"], []),
        ({"$ref": "#/$defs/n"}, ["1"], ["a"]),
    ],
)  # fmt: skip
def test_a_value_is_spelt_by_its_kind(schema: dict[str, Any], fine: list[str], broken: list[str]) -> None:
    constraint = calls_of({"v": schema}, "v", **{"$defs": {"n": {"const": 1}}})
    assert taken(constraint, [written(("v", text)) for text in fine]) == [True] * len(fine)
    assert taken(constraint, [written(("v", text)) for text in broken]) == [False] * len(broken)


def test_null_beside_strings_is_null_and_the_string_of_that_name_is_left_out() -> None:
    names_null = {"allOf": [{"type": ["string", "null"]}, {"enum": ["null", "a"]}]}
    constraint = calls_of({"v": names_null}, "v")
    assert taken(constraint, [written(("v", "a")), written(("v", "null"))]) == [True, False]


def test_required_parameters_come_once_and_in_order_and_others_may_be_left_out() -> None:
    constraint = calls_of({name: {"type": "boolean"} for name in "abcd"}, "b", "d")
    fine = ["bd", "abd", "bcd", "abcd"]
    broken = ["", "b", "d", "ad", "db", "abbd", "bdd", "bda", "abcde", "acd"]
    assert taken(constraint, [written(*((name, "true") for name in names)) for names in fine]) == [True] * len(fine)
    assert taken(constraint, [written(*((name, "true") for name in names)) for names in broken]) == [False] * len(
        broken
    )


@pytest.mark.parametrize(
    ("parameters", "error", "named"),
    [
        ({"anyOf": [{**CLOSED, "properties": {"a": {"const": 1}}}, {**CLOSED, "properties": {"b": {"const": 1}}}]},
         UnsupportedSchemaError, "alternatives"),
        ({**CLOSED, "properties": {"a": {}, "b": {}}, "minProperties": 1}, UnsupportedSchemaError, "how many"),
        ({**CLOSED, "properties": {"a": {}, "b": {}}, "maxProperties": 1}, UnsupportedSchemaError, "how many"),
        ({**CLOSED, "properties": {"a>": {}}, "required": ["a>"]}, UnsupportedSchemaError, "a>"),
        ({**CLOSED, "properties": {"日": {"const": 1}}, "required": ["日"]}, UnsatisfiableSchemaError,
         "can be generated"),
        ({**CLOSED, "properties": {str(i): {"const": 1} for i in range(65)}}, LimitExceededError, "max_parameters"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused(parameters: Any, error: type[GrammarError], named: str) -> None:
    function = Function(name="f", parameters=json.dumps(parameters))
    with pytest.raises(error, match=re.escape(named)) as refused:
        GrammarCompiler(small_vocabulary()).compile(ToolCalls(functions=(function,), format=QWEN_XML))
    assert refused.value.pointer.startswith("/functions/0/parameters")


def test_parameters_in_any_order_are_refused() -> None:
    calls = ToolCalls(functions=(Function(name="f"),), format=QWEN_XML, options=SchemaOptions(property_order="any"))
    with pytest.raises(UnsupportedSchemaError, match="order"):
        GrammarCompiler(small_vocabulary()).compile(calls)


def test_the_report_says_what_is_left_out() -> None:
    properties = {
        "a": {"type": ["string", "integer"]},
        "b": {"type": "string", "maxLength": 5000},
        "c": {"type": "integer"},
        "d": {"type": "string"},
        "e": {"enum": ["x", "y\n</parameter", "\n</parameter"]},
        "f": {"enum": ["x", "y\n</parameter>z"]},
        "g": {"type": "string", "maxLength": 12},
        "h": {"type": "string", "maxLength": 13},
    }
    report = GrammarCompiler(small_vocabulary()).compile(calls_of(properties)).report
    place = "/functions/0/parameters/properties/"

    def left_out(words: str) -> str:
        return "".join(sorted(one.pointer[len(place) :] for one in report.restrictions if words in one.reason))

    assert left_out("may be a string") == "a"
    assert left_out("no text with '\\n' in it") == "b"
    assert left_out("which ends a parameter") == "adfh"
    assert not {f"{place}{name}" for name in "ceg"} & {one.pointer for one in report.restrictions}
    assert "parameters" in report.enforced


def test_a_closing_leaves_optional_parameters_out() -> None:
    optional = {name * 9: {"type": "integer"} for name in "abc"}
    grammar = GrammarCompiler(small_vocabulary()).compile(
        calls_of({"s": {"type": "string"}, "n": {"const": 1}, **optional}, "s", "n")
    )
    closing = grammar.closing(grammar.initial_state)
    assert closing.data.decode() == written(("s", ""), ("n", "1"))


def test_many_required_parameters_do_not_exhaust_the_stack() -> None:
    properties = {f"p{i}": {"type": "integer"} for i in range(64)}
    grammar = GrammarCompiler(small_vocabulary()).compile(calls_of(properties, *properties))
    closing = grammar.closing(grammar.initial_state)
    assert closing.data.decode().count("<parameter=") == 64


_LEAVES = [
    {}, True, {"type": "string"}, {"type": "integer"}, {"type": ["string", "null"]}, {"type": 3}, {"const": None},
    {"enum": [1, "a"]}, {"$ref": "#/properties/p"}, {"$ref": "#/nowhere"}, {"minLength": 1}, {"items": {}},
]  # fmt: skip
SCHEMAS = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: st.builds(
        lambda keyword, members: {keyword: members},
        st.sampled_from(["allOf", "anyOf", "oneOf"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)


@given(SCHEMAS)
def test_every_schema_has_a_kind_even_one_that_refers_to_itself(schema: Any) -> None:
    assert set(parameter_kinds(json.dumps({"properties": {"p": schema}}))) == {"p"}


def test_kinds_go_by_the_words_of_the_schema() -> None:
    kinds = {
        ParameterKind.TEXT: [
            {}, {"type": "string"}, {"enum": ["a", 1]}, {"format": "date"}, {"type": ["integer", "string"]},
        ],
        ParameterKind.TEXT_OR_NULL: [
            {"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}, {"enum": ["a", None]},
        ],
        ParameterKind.JSON: [
            {"type": "integer"}, {"enum": [1, None]}, {"properties": {}}, {"minimum": 1}, {"type": "null"},
        ],
    }  # fmt: skip
    for kind, schemas in kinds.items():
        for schema in schemas:
            assert parameter_kinds(json.dumps({"properties": {"p": schema}})) == {"p": kind}
