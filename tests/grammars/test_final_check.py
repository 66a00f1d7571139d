"""The final check: a right text of every constraint passes, a wrong one of every kind and keyword is caught."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.grammars.constraints import (
    AfterMarker,
    Choice,
    Constraint,
    Function,
    JsonSchema,
    Regex,
    TextOrToolCalls,
    ToolCallFormat,
    ToolCalls,
)
from specdec.grammars.final_check import FinalCheck
from specdec.grammars.judge import UnjudgeableError
from specdec.grammars.options import SchemaOptions


def violation(constraint: Constraint, text: str) -> str | None:
    return FinalCheck(constraint).violation(text)


def schema_of(schema: Any, **options: Any) -> JsonSchema:
    return JsonSchema(schema=json.dumps(schema), options=SchemaOptions(**options))


# keyword: schema, right, wrong
KEYWORDS: dict[str, tuple[Any, str, str]] = {
    "type": ({"type": "integer"}, "1", '"1"'),
    "enum": ({"enum": [1, {"a": []}]}, '{"a":[]}', '{"a":[0]}'),
    "const": ({"const": True}, "true", "1"),
    "properties": ({"properties": {"a": {"type": "null"}}}, '{"a":null}', '{"a":0}'),
    "patternProperties": ({"patternProperties": {"^a": {"type": "null"}}}, '{"ab":null}', '{"ab":0}'),
    "additionalProperties": ({"properties": {"a": {}}, "additionalProperties": False}, '{"a":1}', '{"b":1}'),
    "propertyNames": ({"propertyNames": {"maxLength": 1}}, '{"a":1}', '{"ab":1}'),
    "required": ({"required": ["a"]}, '{"a":1}', "{}"),
    "minProperties": ({"minProperties": 1}, '{"a":1}', "{}"),
    "maxProperties": ({"maxProperties": 1}, '{"a":1}', '{"a":1,"b":1}'),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, '{"b":1}', '{"a":1}'),
    "dependentSchemas": ({"dependentSchemas": {"a": {"maxProperties": 1}}}, '{"a":1}', '{"a":1,"b":1}'),
    "dependencies": ({"dependencies": {"a": ["b"]}}, '{"a":1,"b":1}', '{"a":1}'),
    "items": ({"items": {"type": "null"}}, "[null]", "[null,0]"),
    "items as a list": ({"items": [{"type": "null"}], "additionalItems": False}, "[null]", "[null,null]"),
    "prefixItems": ({"prefixItems": [{"type": "null"}]}, "[null,0]", "[0]"),
    "contains": ({"contains": {"const": 1}}, "[0,1]", "[0]"),
    "minContains": ({"contains": {"const": 1}, "minContains": 2}, "[1,1]", "[1]"),
    "maxContains": ({"contains": {"const": 1}, "maxContains": 1}, "[1]", "[1,1]"),
    "uniqueItems": ({"uniqueItems": True}, "[1,true]", "[1,1.0]"),
    "minItems": ({"minItems": 1}, "[0]", "[]"),
    "maxItems": ({"maxItems": 1}, "[0]", "[0,0]"),
    "minimum": ({"minimum": 3}, "3", "2.9"),
    "maximum": ({"maximum": 3}, "3", "3.1"),
    "exclusiveMinimum": ({"exclusiveMinimum": 3}, "3.1", "3"),
    "exclusiveMinimum as a boolean": ({"minimum": 3, "exclusiveMinimum": True}, "4", "3"),
    "exclusiveMaximum": ({"exclusiveMaximum": 3}, "2", "3"),
    "multipleOf": ({"multipleOf": 0.1}, "1.1", "1.15"),
    "minLength": ({"minLength": 2}, '"😀😀"', '"😀"'),
    "maxLength": ({"maxLength": 1}, '"😀"', '"ab"'),
    "pattern": ({"pattern": "^[ab]+$"}, '"ab"', '"abc"'),
    "format": ({"format": "ipv4"}, '"1.2.3.4"', '"1.2.3.256"'),
    "allOf": ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, "2", "3"),
    "anyOf": ({"anyOf": [{"const": 1}, {"const": 2}]}, "2", "3"),
    "oneOf": ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, "1", "3"),
    "not": ({"not": {"type": "null"}}, "0", "null"),
    "if": ({"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"type": "null"}}, "null", "0"),
    "$ref": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, "null", "0"),
    "$dynamicRef": ({"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a", "type": "null"}}}, "null", "0"),
    "unevaluatedProperties": (
        {"anyOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, '{"a":1}', '{"b":1}',
    ),
    "unevaluatedItems": ({"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": False}, "[1]", "[1,2]"),
    "nothing": ({}, "[]", "[] []"),
    "true": (True, "1", ""),
    "keys once": ({}, '{"a":1,"b":1}', '{"a":1,"a":1}'),
    "finite numbers": ({}, "1e308", "1e309"),
    "surrogates in pairs": ({}, '"\\ud83d\\ude00"', '"\\ud83d"'),
    "no constants of Python": ({}, "1", "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_wrong_text_of_every_keyword_is_caught(keyword: str) -> None:
    schema, right, wrong = KEYWORDS[keyword]
    assert violation(schema_of(schema), right) is None
    assert violation(schema_of(schema), wrong) is not None


def test_options_decide_what_a_schema_says() -> None:
    assert violation(schema_of({"format": "uuid"}, format="annotation"), '"x"') is None
    assert violation(schema_of({"format": "uuid"}), '"x"') is not None
    assert violation(schema_of({"format": "nonsense"}, unknown_format="annotation"), '"x"') is None
    documents = {"https://example.com/place": {"type": "string", "minLength": 2}}
    place = schema_of({"$ref": "https://example.com/place"}, documents=documents)
    assert violation(place, '"Rome"') is None
    assert violation(place, '"R"') is not None


def test_documents_are_read_as_a_root_without_a_dialect_is() -> None:
    pair = schema_of({"$ref": "urn:pair"}, documents={"urn:pair": {"items": [{"type": "null"}]}})
    assert violation(pair, "[null]") is None
    assert violation(pair, "[0]") is not None
    draft7 = schema_of(
        {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "urn:pair"},
        documents={"urn:pair": {"items": [{"type": "null"}], "additionalItems": False}},
    )
    assert violation(draft7, "[null]") is None
    assert violation(draft7, "[null,0]") is not None


def test_whitespace_between_the_tokens_of_json_is_no_fault() -> None:
    assert violation(schema_of({"required": ["a"]}), '{\n  "a": 1\n}') is None


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("[ab]+", "ab", "abc"),
        ("a|ab", "ab", "abb"),
        ("a$", "a", "a\n"),
        ("(?=a).b", "ab", "b"),
        ("", "", "a"),
    ],
)
def test_a_pattern_matches_the_text_as_a_whole(pattern: str, right: str, wrong: str) -> None:
    assert violation(Regex(pattern=pattern), right) is None
    assert violation(Regex(pattern=pattern), wrong) is not None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=4), st.text(max_size=4))
def test_a_choice_is_one_of_the_texts(choices: list[str], text: str) -> None:
    assert (violation(Choice(choices=tuple(choices)), text) is None) == (text in choices)


GET = Function(name="get", parameters='{"properties":{"n":{"type":"integer"}},"required":["n"]}')
PUT = Function(name="put", parameters='{"properties":{"s":{"pattern":"^</tool_call>$"}},"required":["s"]}')


def call(name: object = "get", arguments: object = None, **others: object) -> str:
    arguments = {"n": 1} if arguments is None else arguments
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments, **others})}\n</tool_call>"


RIGHT_CALLS = [
    call(),
    call("put", {"s": "</tool_call>"}),
    '<tool_call>\n{\n  "name": "get",\n  "arguments": {"n": 2}\n}\n</tool_call>',
]
WRONG_CALLS = {
    "no call": "",
    "text before": "x" + call(),
    "text behind": call() + "x",
    "no end": call().removesuffix("</tool_call>"),
    "no begin": call().removeprefix("<tool_call>"),
    "an unknown name": call("delete"),
    "a name that is no text": call(1),
    "wrong arguments": call(arguments={"n": "1"}),
    "no arguments": call(arguments={}),
    "arguments of another function": call("put", {"n": 1}),
    "arguments that are no object": call(arguments=[]),
    "one more key": call(id=1),
    "a key less": '<tool_call>\n{"name": "get"}\n</tool_call>',
    "a key twice": '<tool_call>\n{"name":"get","name":"get","arguments":{"n":1}}\n</tool_call>',
    "no JSON": "<tool_call>\n{name: get}\n</tool_call>",
    "an array": "<tool_call>\n[]\n</tool_call>",
    "NaN": '<tool_call>\n{"name":"get","arguments":{"n":NaN}}\n</tool_call>',
}


@pytest.mark.parametrize("text", RIGHT_CALLS)
def test_calls_of_the_functions_pass(text: str) -> None:
    assert violation(ToolCalls(functions=(GET, PUT)), text) is None
    parallel = ToolCalls(functions=(GET, PUT), parallel=True)
    assert violation(parallel, text) is None
    assert violation(parallel, f"{text}\n{text}\n{call()}") is None
    assert violation(TextOrToolCalls(calls=parallel), f"I will call.\n{text}\n{text}") is None


@pytest.mark.parametrize("text", WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_what_is_no_call_of_the_functions_is_caught(text: str) -> None:
    single = ToolCalls(functions=(GET, PUT))
    parallel = ToolCalls(functions=(GET, PUT), parallel=True)
    assert violation(single, text) is not None
    assert violation(parallel, text) is not None
    assert violation(parallel, f"{call()}\n{text}") is not None
    if "<tool_call>\n" in text and not text.startswith("x"):
        assert violation(TextOrToolCalls(calls=single), "Wait: " + text) is not None


def test_more_than_one_call_needs_parallel_and_the_separator() -> None:
    assert violation(ToolCalls(functions=(GET,)), f"{call()}\n{call()}") is not None
    assert violation(ToolCalls(functions=(GET,), parallel=True), call() + call()) is not None


def test_other_formats_are_read_by_their_own_words() -> None:
    own = ToolCallFormat(begin="[", end="]", separator=";", name_key="f", arguments_key="a")
    calls = ToolCalls(functions=(GET,), parallel=True, format=own)
    assert violation(calls, '[{"f":"get","a":{"n":1}}];[{"f":"get","a":{"n":2}}]') is None
    assert violation(calls, '[{"name":"get","arguments":{"n":1}}]') is not None
    assert violation(calls, '[{"f":"get","a":{"n":1}}],[{"f":"get","a":{"n":2}}]') is not None


def test_bare_names_are_read_up_to_their_end() -> None:
    named = ToolCallFormat(begin="[TOOL_CALLS]", end="", separator="", name_end="[ARGS]")
    calls = ToolCalls(functions=(GET,), parallel=True, format=named)
    assert violation(calls, '[TOOL_CALLS]get[ARGS]{"n":1}') is None
    assert violation(calls, '[TOOL_CALLS]get[ARGS]{"n":1}[TOOL_CALLS]get[ARGS]{"n":2}') is None
    assert violation(calls, '[TOOL_CALLS]got[ARGS]{"n":1}') is not None
    assert violation(calls, '[TOOL_CALLS]get[ARGS]{"n":"one"}') is not None
    assert violation(calls, '[TOOL_CALLS]get{"n":1}') is not None
    assert violation(calls, '[TOOL_CALLS]get[ARGS]{"n":1}.') is not None
    assert violation(msgspec.structs.replace(calls, parallel=False), '[TOOL_CALLS]get[ARGS]{"n":1}') is None
    assert violation(TextOrToolCalls(calls=calls), 'Well: [TOOL_CALLS]get[ARGS]{"n":1}') is None
    assert violation(TextOrToolCalls(calls=calls), "Well: [TOOL_CALLS]") is not None


def test_free_text_without_a_call_is_no_fault() -> None:
    assert violation(TextOrToolCalls(calls=ToolCalls(functions=(GET,))), "nothing to call") is None


def test_what_follows_the_first_marker_is_judged() -> None:
    then = AfterMarker(marker="</think>", then=schema_of({"type": "integer"}))
    assert violation(then, "I think</think>1") is None
    assert violation(then, "</think>1") is None
    assert violation(then, "a</think>b</think>1") is not None
    assert violation(then, "I think</think>one") is not None
    assert violation(then, "1") is not None
    optional = AfterMarker(marker="#", then=Choice(choices=("a",)), optional=True)
    assert violation(optional, "1") is None
    assert violation(optional, "1#a") is None
    assert violation(optional, "1#b") is not None
    pattern = AfterMarker(marker="#", then=Regex(pattern="a+"))
    assert violation(pattern, "#aa") is None
    assert violation(pattern, "#ab") is not None


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (Regex(pattern="\\p{L}"), "a"),
        (schema_of({"pattern": "\\p{L}"}), '"a"'),
        (schema_of({"$ref": "urn:nowhere"}), "1"),
        (AfterMarker(marker="#", then=Regex(pattern="(?<=a|bc)d")), "#d"),
        (ToolCalls(functions=(Function(name="get", parameters='{"properties":{"n":{"pattern":"\\\\p{L}"}}}'),)),
         call(arguments={"n": "a"})),
    ],
)  # fmt: skip
def test_what_python_cannot_judge_is_said_to_be_so(constraint: Constraint, text: str) -> None:
    with pytest.raises(UnjudgeableError):
        violation(constraint, text)


def test_deep_answers_and_lone_surrogates_do_not_break_the_check() -> None:
    nested = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"items": {"$ref": "#"}, "type": "array"}, {"const": 1}]}}}
    assert violation(schema_of(nested), "[" * 600 + "1" + "]" * 600) is None
    assert violation(schema_of(nested), "[" * 600 + "2" + "]" * 600) is not None
    calls = ToolCalls(functions=(Function(name="get", parameters=json.dumps({"properties": {"n": nested}})),))
    del nested["$ref"]
    assert violation(Regex(pattern="."), "\ud800") is not None
    assert violation(calls, call(arguments={"n": 1}).replace("1", "[" * 20_000 + "]" * 20_000)) is not None
