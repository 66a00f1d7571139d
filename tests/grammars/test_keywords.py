"""Each keyword by example: values that it lets pass and values that it does not, in every rendering of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from checks import accepts
from schemas import renderings
from vocabularies import small_vocabulary

from specdec.grammars import GrammarCompiler
from specdec.grammars.applicators import APPLICATORS, UNEVALUATED
from specdec.grammars.judge import Judge
from specdec.grammars.keywords import LOWERINGS

_DATE = "2024-02-29"
_DRAFT_4 = "http://json-schema.org/draft-04/schema#"
_DRAFT_7 = "http://json-schema.org/draft-07/schema#"
_DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
_LIST = {"$schema": _DRAFT_2019, "items": {"$recursiveRef": "#"}, "type": "array"}
_EXAMPLES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "integer"}, [0, 1.0, -3], [0.5, "0", True]),
    ({"type": ["null", "boolean"]}, [None, False], [0, "", []]),
    ({"enum": [1, "a", [None], {"a": {}}]}, [1.0, "a", [None], {"a": {}}], [True, [], {"a": None}, "b"]),
    ({"const": {"a": [1, {}]}}, [{"a": [1, {}]}], [{"a": [1]}, {"a": [1, {}], "b": 1}, None]),
    ({"minimum": 1.5}, [1.5, 2, "a", None], [1, 1.25, -9]),
    ({"maximum": -1}, [-1, -1.5, [9]], [0, -0.5]),
    ({"exclusiveMinimum": 0}, [1, 0.001], [0, -1]),
    ({"exclusiveMaximum": 0.1, "type": "number"}, [0.09, 0], [0.1, 1]),
    ({"minimum": 2, "maximum": 2}, [2, 2.0], [1, 3, 2.5]),
    ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 3}, [2], [1, 3, 2.5]),
    ({"multipleOf": 3}, [0, -9, 12.0, "a"], [1, 4.5, 10]),
    ({"multipleOf": 0.1}, [1.1, 0.3, -2, 7], [0.05, 1.25]),
    ({"multipleOf": 4, "minimum": 1, "not": {"multipleOf": 6}}, [4, 8, 16], [0, 12, 2]),
    ({"minLength": 2}, ["ab", "éé", 1], ["", "😀"]),
    ({"maxLength": 1}, ["", "😀", "\n"], ["ab"]),
    ({"pattern": "^a+$"}, ["a", "aaa", 1], ["", "ab", "ba"]),
    ({"pattern": "b", "maxLength": 2}, ["b", "ab", "bé"], ["a", "aab"]),
    ({"pattern": "^(?!ab)[abc]*$", "minLength": 1}, ["a", "ba", "aab"], ["", "ab", "abc", "d"]),
    ({"format": "date"}, [_DATE, 1], ["2023-02-29", "2024-2-9", ""]),
    ({"format": "ipv4"}, ["0.0.0.0", "255.1.10.99"], ["256.0.0.0", "01.1.1.1", "1.1.1"]),
    ({"format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380"]),
    ({"format": "date", "not": {"pattern": "-29$"}}, ["2024-02-28"], [_DATE]),
    ({"properties": {"a": {"type": "null"}, "b": False}}, [{}, {"a": None}, {"c": 1}, 1], [{"a": 1}, {"b": 1}]),
    ({"patternProperties": {"^a": {"type": "null"}}}, [{}, {"ab": None, "b": 1}], [{"a": 0}, {"b": 1, "ab": 1}]),
    ({"patternProperties": {"a": {"minimum": 1}, "b": {"maximum": 1}}}, [{"ab": 1}, {"a": 5}], [{"ab": 2}, {"b": 2}]),
    (
        {"properties": {"a": {}}, "patternProperties": {"^b": {}}, "additionalProperties": {"type": "null"}},
        [{"a": 1, "b": 1, "c": None}], [{"c": 1}, {"ab": 1}],
    ),
    ({"properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}, {"a": 1, "b": 1}]),
    ({"propertyNames": {"pattern": "^a", "maxLength": 2}}, [{}, {"a": 1, "ab": 2}], [{"b": 1}, {"abc": 1}]),
    ({"propertyNames": {"enum": ["a"]}, "required": ["a"]}, [{"a": []}], [{}, {"a": 1, "b": 1}]),
    ({"propertyNames": False}, [{}, 1], [{"a": 1}]),
    ({"required": ["a", "b"]}, [{"b": 1, "a": 2}, []], [{"a": 1}, {}]),
    ({"minProperties": 2}, [{"a": 1, "b": 1}, []], [{}, {"a": 1}]),
    ({"maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 1}]),
    ({"properties": {"a": {}}, "required": ["a"], "maxProperties": 2, "minProperties": 2}, [{"a": 1, "z": 1}],
     [{"a": 1}, {"a": 1, "y": 1, "z": 1}]),
    ({"dependentRequired": {"a": ["b", "ab"]}}, [{}, {"b": 1}, {"a": 1, "b": 1, "ab": 1}],
     [{"a": 1}, {"a": 1, "b": 1}]),
    ({"dependentSchemas": {"a": {"maxProperties": 1}}}, [{"b": 1, "c": 1}, {"a": 1}], [{"a": 1, "b": 1}]),
    ({"dependencies": {"a": ["b"], "b": {"required": ["ab"]}}}, [{}, {"a": 1, "b": 1, "ab": 1}],
     [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}]),
    ({"items": {"type": "null"}}, [[], [None, None], {}], [[None, 1]]),
    ({"prefixItems": [{"const": 1}, {"const": "a"}]}, [[], [1], [1, "a", None]], [["a"], [1, 1]]),
    ({"prefixItems": [{}], "items": False}, [[], ["a"]], [[1, 1]]),
    ({"minItems": 1, "maxItems": 2}, [[1], [1, [1]]], [[], [1, 1, 1]]),
    ({"contains": {"type": "null"}}, [[None], [1, None, "a"], {}], [[], [1]]),
    ({"contains": {"const": 1}, "minContains": 2, "maxContains": 2}, [[1, 1.0], ["a", 1, 1]], [[1], [1, 1, 1]]),
    ({"contains": {"const": 1}, "minContains": 0}, [[], ["a"]], []),
    ({"contains": {"const": 1}, "maxContains": 1, "minContains": 0}, [[], [1, 2]], [[1, 1]]),
    ({"contains": {"minimum": 5}, "items": {"type": "integer"}, "maxItems": 2}, [[5], [1, 9]], [[1], [5, "a"], [1, 2]]),
    ({"minContains": 5}, [[], 1], []),
    ({"items": {"enum": [1, "a", None]}, "uniqueItems": True}, [[], [1, "a"], [None, "a", 1]], [[1, 1], ["a", 1, "a"]]),
    ({"uniqueItems": False}, [[1, 1]], []),
    ({"allOf": [{"minimum": 1}, {"maximum": 1}, {"type": "integer"}]}, [1], [0, 2, "a"]),
    ({"allOf": [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"maximum": 2}}}]}, [{"a": 2}], [{"a": 0}]),
    ({"anyOf": [{"minLength": 2}, {"pattern": "^b"}], "type": "string"}, ["b", "ab"], ["a", ""]),
    ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}], "type": "integer"}, [2, 3, 4], [6, 1, 0]),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}, 1]),
    ({"not": {"type": "string"}}, [1, None, ["a"]], ["a", ""]),
    ({"not": {"properties": {"a": {"type": "null"}}, "required": ["a"]}, "type": "object"}, [{}, {"a": 1}],
     [{"a": None}]),
    ({"not": {"not": {"const": 1}}}, [1], [2, "1"]),
    ({"not": {"contains": {"type": "null"}}, "type": "array"}, [[], [1]], [[None], [1, None]]),
    ({"not": {"additionalProperties": {"type": "null"}}}, [{"a": 1}], [{}, {"a": None}, 1]),
    ({"if": {"type": "string"}, "then": {"maxLength": 1}, "else": {"type": "null"}}, ["a", None], ["ab", 1]),
    ({"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}},
     [{}, {"a": 2}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"if": {"minimum": 5}, "else": {"maximum": 0}, "type": "number"}, [5, 0], [1, 4]),
    ({"then": False, "else": False}, [1], []),
    ({"properties": {"a": {}}, "unevaluatedProperties": False}, [{}, {"a": 1}], [{"b": 1}]),
    ({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": {"type": "null"}}, [{"a": 1, "b": None}],
     [{"b": 1}]),
    (
        {"anyOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {}}}],
         "unevaluatedProperties": False},
        [{"a": 1, "b": 2}, {"a": 1}, {"b": 1}], [{"a": 2}, {"c": 1}],
    ),
    (
        {"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"properties": {"b": {}}},
         "unevaluatedProperties": False},
        [{"a": 1, "b": 2}, {}], [{"a": 2}, {"b": 1}],
    ),
    ({"not": {"properties": {"a": {}}, "required": ["a"], "type": "object"}, "unevaluatedProperties": False}, [{}, 1],
     [{"b": 1}, {"a": 1}]),
    ({"prefixItems": [{}], "unevaluatedItems": False}, [[], [1]], [[1, 1]]),
    ({"contains": {"const": 1}, "unevaluatedItems": {"type": "null"}}, [[1, None], [None, 1, 1]], [["a", 1], [None]]),
    ({"allOf": [{"prefixItems": [{}, {}]}], "unevaluatedItems": {"const": 1}}, [["a", "b", 1]], [["a", "b", "c"]]),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, [None], [1]),
    ({"$ref": "#x", "minimum": 2, "$defs": {"y": {"$anchor": "x", "maximum": 3}}}, [2, 3], [1, 4]),
    ({"$ref": "urn:a:b", "$defs": {"y": {"$id": "urn:a:b", "type": "null"}}}, [None], [1]),
    ({"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", "type": "null"}}}, [None], [1]),
    (
        {"$id": "urn:tree", "$dynamicAnchor": "n", "$ref": "urn:list", "properties": {"a": {"const": 1}}, "$defs": {
            "list": {"$id": "urn:list", "$dynamicAnchor": "n", "properties": {"b": {"$dynamicRef": "#n"}}}}},
        [{"a": 1}, {"b": {"a": 1}}, {"b": {"b": {}}}], [{"a": 2}, {"b": {"a": 2}}],
    ),
    (_LIST, [[], [[], [[]]]], [1, [1]]),
    ({"additionalProperties": {"$ref": "#"}, "type": "object"}, [{}, {"a": {"b": {}}}], [{"a": 1}, 1]),
    ({"items": [{"const": 1}], "additionalItems": {"const": 2}}, [[], [1], [1, 2]], [[2], [1, 1]]),
    ({"minimum": 1, "exclusiveMinimum": True}, [2, 1.5], [1, 0]),
    ({"$schema": _DRAFT_4, "maximum": 1, "exclusiveMaximum": True}, [0], [1]),
    ({"$schema": _DRAFT_4, "maximum": 1, "exclusiveMaximum": False, "const": 5}, [0, 1], [2]),
    ({"$schema": _DRAFT_4, "id": "urn:a", "$ref": "#/definitions/n", "definitions": {"n": {"type": "null"}}},
     [None], [1]),
    ({"$schema": _DRAFT_7, "$ref": "#/definitions/n", "minimum": 9, "definitions": {"n": {"type": "number"}}}, [1],
     ["a"]),
    ({"$schema": _DRAFT_7, "items": [{"const": 1}], "additionalItems": False, "prefixItems": [False]}, [[1], []],
     [[2]]),
    ({"$schema": _DRAFT_7, "dependencies": {"a": ["b"]}, "dependentRequired": {"c": ["d"]}},
     [{"c": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"$schema": _DRAFT_7, "if": {"const": 1}, "then": False}, [2], [1]),
    ({"title": "t", "default": 1, "x-y": {"minimum": "none"}, "$comment": "c"}, [None, 1], []),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), _EXAMPLES, ids=lambda one: None)
def test_values_that_a_keyword_lets_pass_and_values_that_it_does_not(
    schema: dict[str, Any], valid: list[Any], invalid: list[Any]
) -> None:
    judge = Judge(schema)
    grammar = GrammarCompiler(small_vocabulary()).compile_json_schema(schema)
    for value in valid:
        assert judge.violation(json.dumps(value)) is None, value
        assert any(accepts(grammar, text) for text in renderings(value)), value
    for value in invalid:
        assert judge.violation(json.dumps(value)) is not None, value
        assert not any(accepts(grammar, text) for text in renderings(value)), value


def test_every_keyword_that_is_enforced_has_an_example() -> None:

    def keys(schema: Any) -> set[str]:
        children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        return set(schema if isinstance(schema, dict) else ()).union(*map(keys, children))

    shown = set[str]().union(*(keys(schema) for schema, _, _ in _EXAMPLES))
    assert LOWERINGS.keys() | APPLICATORS.keys() | UNEVALUATED <= shown
