"""The property tests can fail: with any one keyword lowered wrongly, the checks of test_soundness find it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from checks import check_against_judge
from jsonschema_specifications import REGISTRY
from vocabularies import small_vocabulary

from specdec.grammars import (
    GrammarCompiler,
    GrammarError,
    applicators,
    array_keywords,
    keywords,
    lowering,
    object_keywords,
    requirements,
    scalar_keywords,
)
from specdec.grammars.numbers import NumberSet
from specdec.grammars.schema import Place
from specdec.grammars.values import ALL_VALUES, ANYTHING, NO_VALUES, Goal

_NULL = {"type": "null"}
_OBJECT = {"type": "object"}
_TYPED: dict[str, Any] = {
    "type": {"type": "integer"},
    "enum": {"enum": [1, "a"]},
    "const": {"const": {"a": None}},
    "properties": {"properties": {"a": _NULL}, "required": ["a"], "type": "object"},
    "patternProperties": {"patternProperties": {"^a": _NULL}, "required": ["a"], "type": "object"},
    "additionalProperties": {"type": "object", "additionalProperties": _NULL, "required": ["b"]},
    "propertyNames": {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "minProperties": 1},
    "required": {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]},
    "minProperties": {"type": "object", "minProperties": 2, "additionalProperties": _NULL},
    "maxProperties": {"type": "object", "maxProperties": 1, "additionalProperties": _NULL},
    "items": {"type": "array", "items": {"enum": [1]}, "minItems": 1},
    "prefixItems": {"type": "array", "prefixItems": [_NULL, {"type": "boolean"}], "minItems": 2},
    "contains": {"type": "array", "contains": {"enum": ["a", 1]}, "maxItems": 3},
    "uniqueItems": {"type": "array", "uniqueItems": True, "items": {"enum": [0, 1, "a"]}, "minItems": 2},
    "minItems": {"type": "array", "minItems": 2, "items": _NULL},
    "maxItems": {"type": "array", "maxItems": 1, "items": _NULL},
    "minimum": {"type": "integer", "minimum": 3},
    "maximum": {"type": "integer", "maximum": -1},
    "exclusiveMinimum": {"type": "number", "exclusiveMinimum": 2},
    "exclusiveMaximum": {"type": "number", "exclusiveMaximum": 0.5},
    "multipleOf": {"type": "integer", "multipleOf": 3},
    "minLength": {"type": "string", "minLength": 3},
    "maxLength": {"type": "string", "maxLength": 1},
    "pattern": {"type": "string", "pattern": "^[ab]"},
    "format": {"type": "string", "format": "ipv4"},
}
_APPLIED: dict[str, Any] = {
    "$ref": {"$ref": "#/$defs/x", "$defs": {"x": _NULL}},
    "$dynamicRef": {"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", "type": "null"}}},
    "$recursiveRef": {
        "$schema": "https://json-schema.org/draft/2019-09/schema", "type": "array", "items": {"$recursiveRef": "#"},
        "minItems": 1, "maxItems": 2, "anyOf": [{"minItems": 2}, {"items": {"type": "null"}}],
    },
    "allOf": {"allOf": [{"type": ["string", "null"]}, {"type": ["null", "boolean"]}]},
    "anyOf": {"anyOf": [{"const": "a"}, _NULL]},
    "oneOf": {"oneOf": [{"type": ["string", "null"]}, {"type": ["null", "boolean"]}]},
    "not": {"not": {"type": ["string", "number", "object"]}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 1}, "else": _NULL},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}, "required": ["a"], **_OBJECT},
    "dependentSchemas": {"dependentSchemas": {"a": {"maxProperties": 1}}, "required": ["a"], **_OBJECT},
    "dependencies": {"dependencies": {"a": ["b"], "b": {"maxProperties": 2}}, "required": ["a"], **_OBJECT},
}  # fmt: skip
_UNEVALUATED: dict[str, Any] = {
    "unevaluatedProperties": {"anyOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False, "minProperties": 1},
    "unevaluatedItems": {"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": _NULL, "minItems": 2, "type": "array"},
}


def _is_caught(schema: Any, num_instances: int = 12) -> bool:
    vocabulary = small_vocabulary()
    try:
        for seed in range(4):
            check_against_judge(
                vocabulary, GrammarCompiler(vocabulary), schema, random.Random(seed), num_instances=num_instances
            )
    except (AssertionError, GrammarError):
        return True
    return False


@pytest.mark.parametrize("keyword", [*keywords.LOWERINGS])
def test_a_keyword_that_is_ignored_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = _TYPED[keyword]
    assert not _is_caught(schema)
    monkeypatch.setitem(keywords.LOWERINGS, keyword, lambda *_: ALL_VALUES)
    assert _is_caught(schema)


@pytest.mark.parametrize("keyword", [*(keywords.LOWERINGS.keys() - {"uniqueItems"})])
def test_a_keyword_that_is_negated_wrongly_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"not": {keyword: _TYPED[keyword][keyword]}, **({} if keyword != "const" else {"type": "object"})}
    assert not _is_caught(schema)
    for negation in (ALL_VALUES, NO_VALUES):
        monkeypatch.setitem(keywords.LOWERINGS, keyword, lambda *_, negation=negation: negation)
        assert _is_caught(schema), negation


@pytest.mark.parametrize("keyword", [*applicators.APPLICATORS])
def test_an_applicator_that_is_ignored_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = _APPLIED[keyword]
    assert not _is_caught(schema)
    monkeypatch.setattr(lowering.Lowering, "_hides_siblings", lambda *_: False)
    monkeypatch.setitem(applicators.APPLICATORS, keyword, lambda *_: [])
    assert _is_caught(schema)


@pytest.mark.parametrize("keyword", [*applicators.APPLICATORS.keys() - {"$dynamicRef", "$recursiveRef"}])
def test_an_applicator_that_is_negated_wrongly_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"not": {keyword: _APPLIED[keyword][keyword]}, "$defs": _APPLIED["$ref"]["$defs"]}
    if keyword == "if":
        schema["not"] = _APPLIED[keyword]
    assert not _is_caught(schema)
    right = applicators.APPLICATORS[keyword]
    monkeypatch.setattr(lowering.Lowering, "_hides_siblings", lambda *_: False)
    monkeypatch.setitem(applicators.APPLICATORS, keyword, lambda a, b, _: right(a, b, True))
    assert _is_caught(schema)


@pytest.mark.parametrize("keyword", [*applicators.UNEVALUATED])
def test_what_is_unevaluated_and_ignored_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = _UNEVALUATED[keyword]
    assert not _is_caught(schema)
    monkeypatch.setattr(applicators, "UNEVALUATED", applicators.UNEVALUATED - {keyword})
    assert _is_caught(schema)


@pytest.mark.parametrize(
    "keyword", ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"]
)
def test_a_count_that_is_off_by_one_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_count(monkeypatch, lambda value, pointer: requirements.require_count(value, pointer) + 1)
    assert _is_caught(_TYPED[keyword])


def _replace_count(monkeypatch: pytest.MonkeyPatch, require_count: Callable[[Any, str], int]) -> None:
    for module in (array_keywords, object_keywords, scalar_keywords):
        monkeypatch.setattr(module, "require_count", require_count)


@pytest.mark.parametrize("bounds", [{"minContains": 2}, {"maxContains": 1}])
def test_a_number_of_contained_items_that_is_ignored_is_caught(
    bounds: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "array", "contains": {"enum": ["a", 1]}, "items": {"enum": ["a", 1, None]}, **bounds}
    assert not _is_caught(schema)
    _replace_count(monkeypatch, lambda *_: 0 if "minContains" in bounds else 9)
    assert _is_caught(schema)


_EDGES: dict[str, Any] = {
    "minimum": {"type": "integer", "minimum": 1, "maximum": 5},
    "maximum": {"type": "integer", "minimum": -5, "maximum": 1},
    "exclusiveMinimum": {"type": "integer", "exclusiveMinimum": 2, "maximum": 5},
    "exclusiveMaximum": {"type": "integer", "minimum": 3, "exclusiveMaximum": 6},
}


@pytest.mark.parametrize("keyword", [*_EDGES])
def test_a_bound_that_is_off_by_its_edge_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _is_caught(_EDGES[keyword], num_instances=150)
    name = {"minimum": "at_least", "maximum": "at_most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    other = {"at_least": "above", "above": "at_least", "at_most": "below", "below": "at_most"}[name[keyword]]
    monkeypatch.setattr(NumberSet, name[keyword], getattr(NumberSet, other))
    assert _is_caught(_EDGES[keyword], num_instances=150)


@pytest.mark.parametrize("keyword", ["then", "else"])
def test_a_branch_of_an_if_that_is_ignored_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lowering.Lowering.child_goal

    def child_goal(one: lowering.Lowering, place: Place, *path: Any, positive: bool = True) -> Goal:
        return ANYTHING if path == (keyword,) else right(one, place, *path, positive=positive)

    monkeypatch.setattr(lowering.Lowering, "child_goal", child_goal)
    assert _is_caught(_APPLIED["if"])


def test_additional_items_that_are_ignored_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "array", "items": [_NULL], "additionalItems": {"type": "boolean"}, "minItems": 2}
    assert not _is_caught(schema)
    right = lowering.Lowering.child_goal

    def child_goal(one: lowering.Lowering, place: Place, *path: Any, positive: bool = True) -> Goal:
        return ANYTHING if path == ("additionalItems",) else right(one, place, *path, positive=positive)

    monkeypatch.setattr(lowering.Lowering, "child_goal", child_goal)
    assert _is_caught(schema)


def test_every_keyword_that_can_constrain_has_a_fault_of_its_own() -> None:
    vocabularies = ("applicator", "validation", "unevaluated", "format-assertion")
    constraining = {
        keyword
        for vocabulary in vocabularies
        for keyword in REGISTRY.contents(f"https://json-schema.org/draft/2020-12/meta/{vocabulary}")["properties"]
    }
    assert constraining == {
        *(keywords.LOWERINGS.keys() | applicators.APPLICATORS.keys() | applicators.UNEVALUATED)
        - {"$ref", "$dynamicRef", "$recursiveRef", "dependencies"},
        *("then", "else", "minContains", "maxContains"),
    }


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_an_applicator_that_loses_a_branch_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applicators, "branches_of", lambda place, keyword: len(place.schema[keyword]) - 1)
    assert _is_caught(_APPLIED[keyword])


def test_a_one_of_without_exclusions_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(applicators.APPLICATORS, "oneOf", applicators._any_of)
    monkeypatch.setattr(
        applicators, "goals_of", lambda lowering, place, _, *, positive: [
            lowering.child_goal(place, "oneOf", index, positive=positive) for index in range(2)
        ]
    )  # fmt: skip
    assert _is_caught(_APPLIED["oneOf"])
