"""Rendering: the same value, keys as the schema mentions them, and no help for any engine."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.evals.schema_fit import plainly_breaks
from specdec.evals.schema_rendering import Renderer, UnrenderableError
from specdec.grammars.judge import strict_loads

KEYS = st.sampled_from(["a", "b", "c", "d", "é", 'q"'])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
SCHEMAS = st.recursive(
    st.sampled_from(
        [{}, True, {"type": "string"}, {"required": ["b", "a"]}, {"$ref": "#"}, {"const": {"b": 1, "a": 2}}]
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(KEYS, inner, max_size=4),
            "required": st.lists(KEYS, max_size=3),
            "allOf": st.lists(inner, max_size=2),
            "anyOf": st.lists(inner, max_size=2),
            "items": inner | st.lists(inner, max_size=2),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "("]), inner, max_size=1),
            "then": inner,
            "dependentSchemas": st.dictionaries(KEYS, inner, max_size=1),
        },
    ),
    max_leaves=8,
)


def is_same(left, right):
    """Equality that tells true from 1."""
    if isinstance(left, bool) or isinstance(right, bool) or type(left) is str or left is None:
        return left is right if isinstance(left, bool) or left is None else left == right
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(is_same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(is_same, left, right))
    return left == right


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, VALUES)
def test_every_rendering_is_compact_text_of_the_value(schema, value):
    renderings = Renderer(schema).renderings(value)
    assert 1 <= len(renderings) <= 2
    for text in renderings:
        parsed = strict_loads(text.decode())
        assert is_same(parsed, value)
        assert json.dumps(parsed, ensure_ascii=False, separators=(",", ":")).encode() == text


@settings(max_examples=200, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]), st.permutations(["c", "d", "e", "f"]), st.permutations(list("abcdefgh")))
def test_keys_are_declared_then_required_then_as_they_come(declared, required, own):
    schema = {"required": required, "properties": dict.fromkeys(declared, True)}
    text = Renderer(schema).renderings(dict.fromkeys(own))[0]
    first = [*declared, *(key for key in required if key not in declared)]
    assert list(json.loads(text)) == [*first, *(key for key in own if key not in first)]


def properties(*keys):
    return {"properties": dict.fromkeys(keys, True)}


@pytest.mark.parametrize(
    ("schema", "instance", "text"),
    [
        ({"allOf": [properties("b")], **properties("a")}, {"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ({"$ref": "#/$defs/x", "$defs": {"x": properties("b", "a")}}, {"a": 1, "b": 2}, '{"b":2,"a":1}'),
        ({"$ref": "#x", "$defs": {"x": {"$anchor": "x", **properties("b")}}}, {"a": 1, "b": 2}, '{"b":2,"a":1}'),
        ({"$ref": "http://d/x#/$defs/y"}, {"a": 1, "b": 2}, '{"b":2,"a":1}'),
        ({"items": {"then": properties("b")}}, [{"a": 1, "b": 2}], '[{"b":2,"a":1}]'),
        ({"prefixItems": [True], "items": properties("b")}, [{"a": 1}, {"a": 1, "b": 2}], '[{"a":1},{"b":2,"a":1}]'),
        ({"patternProperties": {"^x": properties("b")}}, {"x1": {"a": 1, "b": 2}}, '{"x1":{"b":2,"a":1}}'),
        ({"additionalProperties": properties("b")}, {"x": {"a": 1, "b": 2}}, '{"x":{"b":2,"a":1}}'),
        (
            {"enum": [{"b": [{"d": 1, "c": 2}], "a": 0}]},
            {"a": 0, "b": [{"c": 2, "d": 1}]},
            '{"b":[{"d":1,"c":2}],"a":0}',
        ),
        (
            {"anyOf": [{"required": ["z"], **properties("a", "b")}, properties("b", "a")]},
            {"a": 1, "b": 2},
            '{"b":2,"a":1}',
        ),
    ],
)
def test_keys_follow_the_first_mention(schema, instance, text):
    documents = {"http://d/x": {"$defs": {"y": properties("b")}}}
    assert Renderer(schema, documents).renderings(instance)[0].decode() == text


def test_whole_numbers_have_a_second_rendering_where_it_is_the_same_value():
    value = {"a": [1.0, -0.0, 1e22, 0.5, 7]}
    first, second = Renderer(True).renderings(value)
    assert first == b'{"a":[1.0,-0.0,1e+22,0.5,7]}'
    assert second == b'{"a":[1,0,10000000000000000000000,0.5,7]}'
    assert Renderer(True).renderings([1, 0.5]) == (b"[1,0.5]",)
    assert Renderer({"$schema": "http://json-schema.org/draft-04/schema#"}).renderings(1.0) == (b"1.0",)


def test_siblings_of_a_reference_count_from_2019_09_on():
    schema = {"$ref": "#/definitions/x", "definitions": {"x": properties("b")}, **properties("a")}
    instance = {"c": 0, "b": 1, "a": 2}
    assert Renderer(schema).renderings(instance)[0] == b'{"a":2,"b":1,"c":0}'
    legacy = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    assert Renderer(legacy).renderings(instance)[0] == b'{"b":1,"c":0,"a":2}'


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, float("inf"), [float("nan")]])
def test_what_has_no_text_is_named(value):
    with pytest.raises(UnrenderableError):
        Renderer(True).renderings(value)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, VALUES)
def test_what_plainly_breaks_a_schema_is_invalid(schema, value):
    from specdec.grammars.judge import Judge

    renderer = Renderer(schema)
    if plainly_breaks(schema, value, renderer._resolve) and not _has_cycle_or_fault(schema):
        assert Judge(schema).violation(json.dumps(value)) is not None


def _has_cycle_or_fault(schema):
    text = json.dumps(schema)
    return '"$ref"' in text or '"("' in text
