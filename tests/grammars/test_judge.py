"""The judge: dialects, the published normalisation, exact multiples, and depth that does not crash it."""

import copy
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.grammars.judge import Judge, UnjudgeableError, documents_registry
from specdec.grammars.normalisation import normalised

DRAFT4 = "http://json-schema.org/draft-04/schema#"
DRAFT7 = "http://json-schema.org/draft-07/schema#"


def is_valid(schema, text, **options):
    return Judge(schema, **options).violation(text) is None


@pytest.mark.parametrize(
    ("legacy", "modern"),
    [
        (
            {"items": [{"type": "null"}, True], "additionalItems": {"type": "string"}},
            {"prefixItems": [{"type": "null"}, True], "items": {"type": "string"}},
        ),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
        ({"exclusiveMinimum": True}, {}),
        (
            {"dependencies": {"a": ["b"], "c": {"minProperties": 2}}},
            {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"c": {"minProperties": 2}}},
        ),
        (
            {"dependentSchemas": {"a": {"minProperties": 3}}, "dependencies": {"a": {"maxProperties": 4}}},
            {"dependentSchemas": {"a": {"allOf": [{"minProperties": 3}, {"maxProperties": 4}]}}},
        ),
        (
            {"properties": {"x": {"items": [True]}}, "not": {"allOf": [{"items": [False]}]}},
            {"properties": {"x": {"prefixItems": [True]}}, "not": {"allOf": [{"prefixItems": [False]}]}},
        ),
        (
            {"items": [{"type": "null"}], "not": {"$ref": "#/items/0"}},
            {"prefixItems": [{"type": "null"}], "not": {"$ref": "#/prefixItems/0"}},
        ),
        (
            {"$ref": "#/elsewhere/a~1b", "elsewhere": {"a/b": {"items": [{"$ref": "#"}]}}},
            {"$ref": "#/elsewhere/a~1b", "elsewhere": {"a/b": {"prefixItems": [{"$ref": "#"}]}}},
        ),
    ],
)
def test_legacy_spellings_are_read_as_2020_12(legacy, modern):
    before = copy.deepcopy(legacy)
    assert normalised(legacy) == modern
    assert legacy == before


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"const": {"items": [1], "dependencies": {"a": ["b"]}}},
        {"enum": [{"exclusiveMinimum": True}], "default": {"items": []}},
        {"properties": {"items": {"type": "array"}, "dependencies": True}, "required": ["items"]},
        {"prefixItems": [True], "items": False, "exclusiveMinimum": 3, "minimum": 1},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "other.json#/items/0"}}},
        {"$ref": "#/nothing"},
    ],
)
def test_normalisation_leaves_2020_12_alone(schema):
    assert normalised(schema) == schema
    assert json.dumps(normalised(normalised(schema))) == json.dumps(schema)


def test_without_a_dialect_the_legacy_spellings_bind():
    schema = {"items": [{"type": "null"}], "additionalItems": False, "dependencies": {"a": ["b"]}}
    assert is_valid(schema, "[null]")
    assert not is_valid(schema, "[1]")
    assert not is_valid(schema, "[null,1]")
    assert not is_valid(schema, '{"a":1}')


def test_the_dialect_decides():
    assert not is_valid({"$schema": DRAFT4, "type": "integer"}, "1.0")
    assert is_valid({"$schema": DRAFT7, "type": "integer"}, "1.0")
    beside = {"definitions": {"any": {}}, "$ref": "#/definitions/any", "type": "string"}
    assert is_valid({"$schema": DRAFT7, **beside}, "1")
    assert not is_valid(beside, "1")
    assert is_valid(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "dependencies": {"a": ["b"]}}, '{"a":1}'
    )


def test_formats_of_2020_12_bind_in_every_dialect_unless_they_are_annotations():
    for schema in ({"format": "uuid"}, {"$schema": DRAFT4, "format": "uuid"}):
        assert not is_valid(schema, '"x"')
        assert is_valid(schema, '"x"', assert_formats=False)
        assert is_valid(schema, '"2eb8aa08-aa98-11ea-b4aa-73b441d16380"')
    assert is_valid({"format": "nonsense"}, '"x"')


@settings(max_examples=200)
@given(st.integers(-(10**9), 10**9), st.sampled_from(["0.01", "0.1", "0.05", "1e-7", "2.5", "7"]))
def test_multiples_are_exact_in_decimals(count, divisor):
    from decimal import Decimal

    for schema in ({"multipleOf": json.loads(divisor)}, {"$ref": "#/$defs/n", "$defs": {"n": {"multipleOf": 3}}}):
        step = Decimal(divisor) if "multipleOf" in schema else 3
        assert is_valid(schema, str(count * step))
    assert not is_valid({"multipleOf": json.loads(divisor)}, str((count + Decimal("0.5")) * Decimal(divisor)))


def test_multiples_are_exact_behind_a_reference_to_the_root():
    schema = {"$schema": DRAFT7, "items": {"$ref": "#"}, "multipleOf": 0.01}
    assert is_valid(schema, "[19.99,[1.1,1E+2]]")
    assert not is_valid(schema, "[19.999]")
    assert is_valid({"multipleOf": 0.123}, "1e-999999999")


def test_references_lead_to_the_documents_and_nowhere_else():
    schema = {"$ref": "http://localhost:1234/a.json#/$defs/b"}
    registry = documents_registry({"http://localhost:1234/a.json": {"$defs": {"b": {"type": "null"}}}})
    assert is_valid(schema, "null", registry=registry)
    assert not is_valid(schema, "1", registry=registry)
    with pytest.raises(UnjudgeableError, match="localhost"):
        is_valid(schema, "null")


@pytest.mark.parametrize("schema", [{"pattern": "\\p{L}"}, {"type": "nonsense"}, {"allOf": 3}, {"$ref": "#/nothing"}])
def test_what_cannot_be_applied_is_said_to_be_so(schema):
    with pytest.raises(UnjudgeableError):
        is_valid(schema, '"x"')


def test_deep_instances_are_judged_and_deeper_ones_are_refused():
    schema = {
        "$ref": "#/$defs/list",
        "$defs": {"list": {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"const": 1}]}},
    }
    limit = sys.getrecursionlimit()
    assert is_valid(schema, "[" * 700 + "1" + "]" * 700)
    assert not is_valid(schema, "[" * 700 + "2" + "]" * 700)
    assert "nested" in Judge(schema).violation("[" * 20_000 + "]" * 20_000)
    assert "nested" in Judge({"$ref": "#"}).violation("1")
    assert sys.getrecursionlimit() == limit


def test_documents_without_a_dialect_are_normalised_where_the_schema_names_none_either():
    registry = documents_registry(
        {
            "http://localhost:1234/bare": {"items": [{"type": "null"}], "dependencies": {"a": ["b"]}},
            "http://localhost:1234/named": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "dependencies": {"a": ["b"]},
            },
        }
    )
    bare, named = {"$ref": "http://localhost:1234/bare"}, {"$ref": "http://localhost:1234/named"}
    assert not is_valid(bare, '{"a":1}', registry=registry)
    assert not is_valid(bare, "[1]", registry=registry)
    assert is_valid(named, '{"a":1}', registry=registry)
    dependent = {"http://localhost:1234/dependent": {"dependencies": {"a": ["b"]}}}
    of_2020 = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "http://localhost:1234/dependent"}
    assert is_valid(of_2020, '{"a":1}', registry=documents_registry(dependent))


def test_the_compiler_reads_documents_as_the_judge_does():
    from specdec.evals.schema_engine import CompileOptions, SpecdecEngine

    documents = {"http://localhost:1234/bare": {"items": [{"type": "null"}], "dependencies": {"a": ["b"]}}}
    bare = {"$ref": "http://localhost:1234/bare"}
    engine = SpecdecEngine(documents)
    options = CompileOptions(format="assert", with_documents=True)
    for schema in (
        bare,
        {"$schema": DRAFT7, **bare},
        {"$schema": "https://json-schema.org/draft/2019-09/schema", **bare},
    ):
        compiled = engine.compile(json.dumps(schema), options)
        for text in ('{"a":1}', '{"b":1}', "[null]", "[1]", "{}"):
            is_accepted = compiled.refusal(text.encode()) is None
            assert is_accepted == is_valid(schema, text, registry=documents_registry(documents)), (schema, text)
