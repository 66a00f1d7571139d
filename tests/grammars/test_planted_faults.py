"""The property tests can fail: with any one keyword lowered wrongly, the checks of test_soundness find it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from checks import check_against_validator
from vocabularies import small_vocabulary

from specdec.grammars import GrammarCompiler, GrammarError, lowering
from specdec.grammars.values import ALL_VALUES

_EXAMPLES: dict[str, Any] = {
    "type": {"type": "integer"},
    "enum": {"enum": [1, "a"]},
    "const": {"const": {"a": [1]}},
    "properties": {"properties": {"a": {"type": "null"}}, "required": ["a"], "type": "object"},
    "additionalProperties": {"type": "object", "additionalProperties": {"type": "null"}, "required": ["b"]},
    "required": {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]},
    "items": {"type": "array", "items": {"enum": [1]}, "minItems": 1},
    "minItems": {"type": "array", "minItems": 2, "items": {"type": "null"}},
    "maxItems": {"type": "array", "maxItems": 1, "items": {"type": "null"}},
    "minLength": {"type": "string", "minLength": 3},
    "maxLength": {"type": "string", "maxLength": 1},
}


def _is_caught(schema: Any) -> bool:
    vocabulary = small_vocabulary()
    try:
        for seed in range(8):
            check_against_validator(vocabulary, GrammarCompiler(vocabulary), schema, random.Random(seed))
    except (AssertionError, GrammarError):
        return True
    return False


@pytest.mark.parametrize("keyword", [*lowering.LOWERINGS])
def test_a_keyword_that_is_ignored_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = _EXAMPLES[keyword]
    assert not _is_caught(schema)
    monkeypatch.setitem(lowering.LOWERINGS, keyword, lambda _lowering, _pointer, _schema: ALL_VALUES)
    assert _is_caught(schema)


@pytest.mark.parametrize("keyword", ["minItems", "maxItems", "minLength", "maxLength"])
def test_a_count_that_is_off_by_one_is_caught(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lowering.require_count
    monkeypatch.setattr(lowering, "require_count", lambda value, pointer: right(value, pointer) + 1)
    assert _is_caught(_EXAMPLES[keyword])


def test_an_any_of_that_loses_a_branch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"anyOf": [{"const": "a"}, {"type": "null"}]}
    assert not _is_caught(schema)
    right = lowering.lower_any_of
    monkeypatch.setattr(lowering, "lower_any_of", lambda *arguments: right(*arguments)[:-1])
    assert _is_caught(schema)


def test_a_reference_that_is_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}
    assert not _is_caught(schema)
    monkeypatch.setattr(lowering.Lowering, "resolve", lambda _self, _reference, pointer: (pointer, True))
    assert _is_caught(schema)
