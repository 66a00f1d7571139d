"""Validity: what jsonschema refuses, and what Python's parser would let through."""

import pytest

from specdec.evals.validity import ValidityCount, violation

SCHEMA = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1e5, "b": "\\u00e9 \\ud83d\\ude00"}', ' {"a": -0.5} '])
def test_instances_are_valid(text):
    assert violation(text, SCHEMA) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": "x"}', "not of type"),
        ("{}", "required"),
        ('{"a": 1', "not JSON"),
        ('{"a": 1} {}', "not JSON"),
        ("", "not JSON"),
        ('{"a": 1, "a": 2}', "repeated"),
        ('{"a": NaN}', "no JSON number"),
        ('{"a": -Infinity}', "no JSON number"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": 1, "b": "\\ud800"}', "surrogate"),
        ('{"a": 1, "\\udfff": 2}', "surrogate"),
        ('{"a": 1, "b": "\ud800"}', "surrogate"),
        ("[" * 100_000, "nested"),
    ],
)
def test_anything_else_is_a_violation_that_says_why(text, why):
    assert why in violation(text, SCHEMA)


def test_the_schema_names_its_own_dialect():
    tuple_items = {"items": [{"type": "integer"}]}
    assert violation('["x"]', {"$schema": "http://json-schema.org/draft-07/schema#", **tuple_items}) is not None


def test_answers_that_stop_are_judged_and_no_other_reason_but_length_is_accepted():
    count = ValidityCount()
    count.add(name="valid", text='{"a": 1}', finish_reason="stop", schema=SCHEMA)
    count.add(name="cut", text='{"a": 1', finish_reason="length", schema=SCHEMA)
    assert count.is_clean
    count.add(name="wrong", text='{"a": ""}', finish_reason="stop", schema=SCHEMA)
    count.add(name="aborted", text='{"a": 1}', finish_reason="abort", schema=SCHEMA)
    assert not count.is_clean
    shown = count.as_json()
    assert (shown["num_answers"], shown["num_valid"], shown["num_cut_by_length"], shown["num_violations"]) == (
        4,
        1,
        1,
        2,
    )
    assert [each["task"] for each in shown["violations"]] == ["wrong", "aborted"]
