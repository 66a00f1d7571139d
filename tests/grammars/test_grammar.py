"""States, errors and texts, by example."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from checks import accepts, allowed_ids, random_walk
from vocabularies import small_vocabulary

from specdec.grammars import (
    Grammar,
    GrammarCompiler,
    GrammarError,
    InvalidSchemaError,
    LimitExceededError,
    SchemaOptions,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
    Vocabulary,
)


def _compile(schema: Any, **options: Any) -> Grammar:
    return GrammarCompiler(small_vocabulary()).compile_json_schema(schema, SchemaOptions(**options))


def test_equal_states_are_one_object_and_rollback_is_a_reference() -> None:
    grammar = _compile({"type": "array", "items": {"type": "integer"}})
    start = grammar.initial_state
    one, two = (grammar.advance_bytes(start, text) for text in (b"[1,2,3", b"[4,5,6"))
    assert one is two
    assert len({start, one, two}) == 2
    assert grammar.advance_bytes(start, b"[7,8,9") is one


def test_end_of_sequence_leads_to_a_state_that_allows_nothing_else() -> None:
    vocabulary = small_vocabulary()
    compiler = GrammarCompiler(vocabulary)
    grammar = compiler.compile_json_schema({"const": True})
    done = grammar.advance_bytes(grammar.initial_state, b"true")
    assert done is not None
    assert grammar.is_accepting(done)
    assert grammar.only_eos(done)
    assert not grammar.only_eos(grammar.initial_state)
    for eos in vocabulary.eos_token_ids:
        assert grammar.advance(grammar.initial_state, eos) is None
        ended = grammar.advance(done, eos)
        assert ended is not None
        assert grammar.is_terminated(ended)
        assert grammar.advance(ended, eos) is ended
        assert allowed_ids(compiler, grammar, ended) == list(vocabulary.eos_token_ids)


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ({"const": 1.0, "type": "integer"}, ["1"], ["true", "2", "1.0"]),
        ({"const": 1}, ["1"], ["true", "1.0"]),
        ({"type": "string", "maxLength": 1}, ['"é"', '"😀"', '"\\n"', '"\\u0001"', '""'], ['"ab"', '"\\u0041"']),
        ({"type": "string"}, ['"/"'], ['"\\ud83d"', '"\\ud83d\\ude00"', '"\n"', '"\\u000a"']),
        ({"type": "integer"}, ["0", "-5", "9" * 18], ["-0", "01", "1.0", "1e2", "9" * 19]),
        ({"type": "number"}, ["0.5", "1.0", "-0.0", "1e-07", "1e+22"], [".5", "1.", "1e", "1e999", "-0", "1E5"]),
        ({}, ['{"a":1,"b":[{}]}', "null"], ['{"a":1,"a":2}', '{"":1,"":1}', ' 1', '{"a": 1}', ""]),
        (
            {"properties": {"a": {}}, "required": ["z"], "type": "object"},
            ['{"z":1}', '{"a":1,"z":2,"b":3}'],
            ['{"a":1}', '{"z":1,"a":1}', '{"z":1,"z":1}', '{"b":1,"z":1}'],
        ),
        ({"properties": {"a": False}, "type": "object"}, ['{"b":1}'], ['{"a":1}', '{"b":1,"a":1}']),
        ({"anyOf": [{"const": "a"}, {"maxLength": 0}], "type": "string"}, ['"a"', '""'], ['"b"', "1"]),
        (
            {"$ref": "#/definitions/n", "definitions": {"n": {"type": "array", "items": {"$ref": "#/definitions/n"}}}},
            ["[]", "[[],[[]]]"],
            ["[1]"],
        ),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/d", "minLength": 9, "d": {"const": "a"}},
         ['"a"'], ['"b"']),
        ({"type": "array", "minItems": 100_000, "maxItems": 100_000}, ["[" + ",".join(["1"] * 100_000) + "]"], ["[1]"]),
        ({"type": "string", "minLength": 10**30}, [], ['"a"']),
    ],
)  # fmt: skip
def test_texts(schema: Any, accepted: list[str], refused: list[str]) -> None:
    grammar = _compile(schema)
    for text in accepted:
        assert accepts(grammar, text.encode()), text[:80]
    for text in refused:
        assert not accepts(grammar, text.encode()), text[:80]


@pytest.mark.parametrize(
    ("schema", "keyword", "pointer"),
    [
        ({"format": "no-such-format"}, "format", "/format"),
        ({"pattern": "(a)\\1"}, "pattern", "/pattern"),
        ({"patternProperties": {"(a)\\1": {}}}, "patternProperties", "/patternProperties/(a)\\1"),
        ({"$ref": "http://example.com/other"}, "$ref", "/$ref"),
        ({"required": True}, "required", "/required"),
        ({"items": {"uniqueItems": True, "items": {"enum": [[1]]}, "minItems": 2}}, "uniqueItems", None),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name_and_place(schema: Any, keyword: str, pointer: str | None) -> None:
    with pytest.raises(UnsupportedSchemaError) as caught:
        _compile({"type": "object", "required": ["a/b"], "properties": {"a/b": {"type": "array", **schema}}})
    assert caught.value.keyword == keyword
    assert pointer is None or caught.value.pointer == f"/properties/a~1b{pointer}"


def test_draft_3_is_refused() -> None:
    with pytest.raises(UnsupportedSchemaError, match="draft 3") as caught:
        _compile({"$schema": "http://json-schema.org/draft-03/schema#"})
    assert caught.value.keyword == "$schema"


def test_references_lead_to_the_documents_that_are_handed_in() -> None:
    schema = {"$ref": "http://example.com/a#/$defs/n", "items": {"$ref": "urn:b#there"}}
    documents = {
        "http://example.com/a": {"$defs": {"n": {"maxItems": 1, "items": {"$ref": "/b"}}}},
        "http://example.com/b": {"minimum": 2},
        "urn:b": {"$defs": {"x": {"$anchor": "there", "type": "integer"}}},
    }
    grammar = _compile(schema, documents=documents)
    assert accepts(grammar, b"[2]")
    for text in (b"[1]", b"[2.5]", b"[2,2]"):
        assert not accepts(grammar, text)


def test_a_document_that_is_not_handed_in_is_never_fetched() -> None:
    with pytest.raises(UnsupportedSchemaError, match="documents") as caught:
        _compile({"allOf": [{"$ref": "http://example.com/b"}]}, documents={"http://example.com/a": True})
    assert (caught.value.keyword, caught.value.pointer) == ("$ref", "/allOf/0/$ref")


def test_formats_are_asserted_unless_they_are_annotations() -> None:
    schema = {"format": "ipv4", "type": "string"}
    assert not accepts(_compile(schema), b'"a"')
    assert accepts(_compile(schema, format="annotation"), b'"a"')
    assert accepts(_compile({"format": "no-such-format"}, unknown_format="annotation"), b'"a"')
    assert not accepts(_compile(schema, unknown_format="annotation"), b'"a"')


def test_options_are_part_of_what_the_cache_compares() -> None:
    compiler = GrammarCompiler(small_vocabulary())
    schema = {"format": "ipv4", "type": "string"}
    strict = compiler.compile_json_schema(schema)
    assert compiler.compile_json_schema(schema, SchemaOptions(format="annotation")) is not strict
    assert compiler.compile_json_schema(schema, SchemaOptions()) is strict


def test_the_report_names_what_is_enforced_and_what_only_annotates() -> None:
    schema = {"title": "x", "x-y": 1, "not": {"minimum": 3}, "anyOf": [{"pattern": "a"}, {"multipleOf": 2}]}
    report = _compile(schema).report
    assert {"not", "minimum", "anyOf", "pattern", "multipleOf"} == set(report.enforced)
    assert {"title", "x-y"} == set(report.annotations)
    assert any("digits" in one.reason for one in _compile({"type": "number"}).report.restrictions)


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ("[1]", ""), ("{", ""), ({"a": float("nan")}, ""), ('{"type":1e999}', ""),
        ('{"type":"null","type":"null"}', ""),
        ({"type": "text"}, "/type"), ({"type": []}, "/type"), ({"minItems": -1}, "/minItems"),
        ({"maxLength": "1"}, "/maxLength"), ({"required": "a"}, "/required"), ({"properties": []}, "/properties"),
        ({"properties": {"a": 1}}, "/properties/a"), ({"anyOf": []}, "/anyOf"), ({"enum": 1}, "/enum"),
        ({"pattern": "("}, "/pattern"), ({"pattern": 1}, "/pattern"), ({"minimum": "1"}, "/minimum"),
        ({"multipleOf": 0}, "/multipleOf"), ({"multipleOf": -0.5}, "/multipleOf"), ({"oneOf": []}, "/oneOf"),
        ({"allOf": {}}, "/allOf"), ({"not": 1}, "/not"), ({"uniqueItems": 1}, "/uniqueItems"),
        ({"dependentRequired": {"a": "b"}}, "/dependentRequired/a"),
        ({"maxContains": -1, "contains": {}}, "/maxContains"),
        ({"patternProperties": {"[": {}}}, "/patternProperties/["), ({"minProperties": 0.5}, "/minProperties"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "exclusiveMinimum": True}, "/exclusiveMinimum"),
        ({"$ref": "#nowhere"}, "/$ref"), ({"$dynamicRef": "#nowhere"}, "/$dynamicRef"),
        ({"not": {"$ref": "#"}}, ""), ({"oneOf": [{"$ref": "#"}]}, ""), ({"if": {"$ref": "#"}, "then": {}}, ""),
        ({"$ref": "#/nowhere"}, "/$ref"), ({"$ref": 1}, "/$ref"), ({"$ref": "#"}, ""),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, ""),
        # No value reaches this cycle, yet a validator that is handed one that would does not end.
        ({"enum": [{}], "properties": {"a": {"type": "null", "$ref": "#/properties/a"}}}, "/properties/a"),
        (
            {
                "properties": {"a": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}},
                "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/y"}]}, "y": {"minLength": 1, "$ref": "#/$defs/x"}},
            },
            "/$defs/x",
        ),
    ],
)  # fmt: skip
def test_a_malformed_schema_is_an_error_with_its_place(schema: Any, pointer: str) -> None:
    with pytest.raises(InvalidSchemaError) as caught:
        _compile(schema)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        (False, ""), ({"const": 1, "type": "string"}, ""), ({"enum": []}, ""),
        ({"type": "string", "minLength": 2, "maxLength": 1}, ""),
        ({"type": "array", "minItems": 1, "items": {"enum": []}}, "/items"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "/properties/a"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, ""),
        ({"const": "\ud800"}, ""),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 2, "multipleOf": 2}, ""),
        ({"not": {}}, ""), ({"allOf": [{"type": "null"}, {"type": "string"}]}, ""),
        ({"oneOf": [{}, {}]}, ""), ({"type": "string", "pattern": "^a$", "minLength": 2}, ""),
        ({"type": "object", "minProperties": 2, "propertyNames": {"const": "a"}}, ""),
        ({"type": "array", "contains": {"const": 1}, "maxContains": 1, "items": {"const": 1}, "minItems": 2}, ""),
        ({"type": "object", "required": ["a"], "unevaluatedProperties": False}, ""),
        ({"type": "array", "minItems": 1, "unevaluatedItems": False}, ""),
    ],
)  # fmt: skip
def test_a_schema_without_instances_is_an_error(schema: Any, pointer: str) -> None:
    with pytest.raises(UnsatisfiableSchemaError) as caught:
        _compile(schema)
    assert caught.value.pointer == pointer


def _doubling() -> dict[str, Any]:
    definitions = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(16)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, "d16": {"type": "string"}}}


def _multiplying() -> dict[str, Any]:
    """2^16 alternatives that all differ."""
    schema: dict[str, Any] = {"type": "object"}
    for i in range(16):
        branches = [{"properties": {f"k{i}": {"type": kind}}} for kind in ("null", "string")]
        schema = {"anyOf": branches, "$ref": f"#/$defs/s{i}", "$defs": {f"s{i}": schema, **schema.pop("$defs", {})}}
    return schema


def _nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    "schema",
    [
        _nested(60), _nested(500), _nested(100_000), _doubling(), _multiplying(), "[" * 100_000,
        {"enum": [f"value {i}" for i in range(5000)]}, {"enum": list(range(20_000))}, {"const": "x" * 300_000},
        {"properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
        {"properties": {f"p{i}": {} for i in range(1001)}}, {"type": "array", "minItems": 10**18},
        {"anyOf": [{"type": "object", "properties": {f"a{i}": {"const": i}}} for i in range(900)]},
        {"oneOf": [{"type": "object", "properties": {f"a{i}": {"const": i}}} for i in range(300)]},
        {"not": {"oneOf": [{"type": "object", "required": [f"a{i}"]} for i in range(200)]}},
        {"type": "object", "dependentRequired": {f"a{i}": [f"b{i}"] for i in range(40)}},
        {"type": "string", "pattern": "((a{0,100}){0,100}){0,100}"}, {"type": "string", "pattern": "(.*a){20}.{20}"},
        {"type": "integer", "multipleOf": 999_999_999_989}, {"type": "number", "multipleOf": 1e-9, "minimum": 0.1},
        {"type": "array", "contains": {"const": 1}, "minContains": 10**9},
        {"allOf": [{"contains": {"const": i}} for i in range(12)], "type": "array"},
        {"type": "object", "minProperties": 10**9}, {"propertyNames": {"$ref": "#"}},
        {"type": "object", "patternProperties": {f"a{i}.*b": {"minimum": i} for i in range(12)}},
        {"anyOf": [{"properties": {f"a{i}": {}}} for i in range(16)], "unevaluatedProperties": False},
        {"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", "items": {"$dynamicRef": "#x"}}}},
    ],
    ids=range(27),
)  # fmt: skip
def test_hostile_schemas_compile_or_fail_by_name_in_bounded_time(schema: Any) -> None:
    vocabulary = small_vocabulary()
    compiler = GrammarCompiler(vocabulary)
    begin = time.process_time()
    try:
        grammar = compiler.compile_json_schema(schema)
        grammar.mask_row(grammar.initial_state)
    except (LimitExceededError, InvalidSchemaError, UnsupportedSchemaError):
        pass
    assert time.process_time() - begin < 10


def test_limits_name_themselves() -> None:
    with pytest.raises(LimitExceededError, match="max_alternatives"):
        _compile(_multiplying())
    with pytest.raises(LimitExceededError, match="max_depth"):
        _compile(_nested(500))
    assert accepts(_compile(_doubling()), b'"a"')


def test_bytes_that_no_token_spells_are_never_needed() -> None:
    tokens = [bytes([byte]) for byte in range(0x20, 0x7F)] + ["é".encode(), "è".encode(), b"<eos>"]
    vocabulary = Vocabulary(tokens, [len(tokens) - 1])
    compiler = GrammarCompiler(vocabulary)
    assert b"\xc3"[0] not in vocabulary.spellable_bytes
    grammar = compiler.compile_json_schema({"enum": ["é", "a"]})
    assert not accepts(grammar, '"é"'.encode())
    assert random_walk(vocabulary, compiler, grammar, random.Random(0)) == b'"a"'
    with pytest.raises(UnsatisfiableSchemaError):
        compiler.compile_json_schema({"const": "é"})


def test_a_vocabulary_without_an_end_or_without_ascii_is_refused() -> None:
    with pytest.raises(ValueError, match="end-of-sequence"):
        Vocabulary([b"a"], [])
    with pytest.raises(ValueError, match="ASCII"):
        Vocabulary([b"a", b""], [1])


def test_compiled_grammars_are_cached_and_rows_shared() -> None:
    compiler = GrammarCompiler(small_vocabulary(), max_cache_entries=2)
    first = compiler.compile_json_schema({"type": "string"})
    assert compiler.compile_json_schema('{"type":"string"}') is first
    assert (compiler.cache_hits, compiler.cache_misses, compiler.cache_entries) == (1, 1, 1)
    body = first.advance_bytes(first.initial_state, b'"a')
    other = compiler.compile_json_schema({"type": "string", "title": "x"})
    same = other.advance_bytes(other.initial_state, b'"bc')
    assert body is not None
    assert same is not None
    assert first.mask_row(body) == other.mask_row(same)
    compiler.compile_json_object()
    assert compiler.cache_entries == 2
    assert compiler.compile_json_schema({"type": "string"}) is not first


@pytest.mark.parametrize("asked_next", [{"type": "string", "maxLength": 5000}, {"type": "null"}], ids=["same", "other"])
def test_a_grammar_that_grew_as_it_was_walked_leaves_no_room_for_older_ones(asked_next: object) -> None:
    compiler = GrammarCompiler(small_vocabulary(), max_cache_bytes=1_000_000)
    older, walked = {"type": "boolean"}, {"type": "string", "maxLength": 5000}
    compiler.compile_json_schema(older)
    grammar = compiler.compile_json_schema(walked)
    assert compiler.cache_entries == 2
    state = grammar.advance_bytes(grammar.initial_state, b'"')
    a = next(i for i in allowed_ids(compiler, grammar, state) if grammar.token_bytes(i) == b"a")
    for _ in range(2000):
        state = grammar.advance(state, a)
        grammar.mask_row(state)
    assert grammar.num_bytes > 1_000_000
    kept = compiler.compile_json_schema(asked_next)
    assert (kept is grammar) is (asked_next == walked)
    assert compiler.cache_entries == 1
    assert compiler.cache_bytes == kept.num_bytes


def test_masks_near_the_ends_of_budgets_are_rows_of_the_table_and_no_words_of_their_own() -> None:
    narrow = small_vocabulary()
    tokens = [narrow.token_bytes(token_id) for token_id in range(narrow.size)]
    compiler = GrammarCompiler(Vocabulary(tokens, narrow.eos_token_ids, size=200_000))
    grammar = compiler.compile_json_schema({"type": "array", "items": {"type": "string"}, "minItems": 3})
    state, plan = grammar.initial_state, grammar.initial_plan
    assert plan is not None
    budgets = range(plan.num_tokens - 1, plan.num_tokens + 30)

    def mask_rows() -> list[int]:
        states = [grammar.advance_bytes(state, text) for text in (b"[", b'["', b'["a')]
        return [grammar.mask_row_within(each, budget, plan) for each in states if each for budget in budgets]

    num_before = grammar.num_bytes
    tracemalloc.start()
    rows = mask_rows()
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row_bytes = 4 * compiler.vocabulary.num_words
    assert len(set(rows)) > 3
    assert kept_bytes < len(rows) * row_bytes / 4
    assert grammar.num_bytes > num_before
    # What was kept is used again.
    num_rows = compiler.mask_table.num_rows
    assert mask_rows() == rows
    assert compiler.mask_table.num_rows == num_rows


def test_importing_grammars_imports_no_torch() -> None:
    program = "import sys, specdec.grammars; print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_SUITE = Path(os.environ.get("SPECDEC_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / (
    "json-schema-test-suite/tests/draft2020-12"
)


@pytest.mark.slow
@pytest.mark.skipif(not _SUITE.is_dir(), reason="the JSON Schema test suite is not there (SPECDEC_TEST_DATA)")
def test_official_suite_has_no_invalid_instance_accepted() -> None:
    compiler = GrammarCompiler(small_vocabulary())
    num_compiled = num_refused = 0
    for path in sorted(_SUITE.glob("*.json")):
        for group in json.loads(path.read_text()):
            try:
                grammar = compiler.compile_json_schema(group["schema"])
            except GrammarError:
                num_refused += 1
                continue
            num_compiled += 1
            for case in group["tests"]:
                text = json.dumps(case["data"], ensure_ascii=False, separators=(",", ":")).encode()
                assert case["valid"] or not accepts(grammar, text), (path.name, group["description"], case)
    assert num_compiled > 330, (num_compiled, num_refused)


def test_in_draft_4_a_whole_number_has_no_fraction_since_it_would_be_no_integer() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "anyOf": [{"type": "integer"}, {"type": "number", "not": {"type": "integer"}, "minimum": 10}],
    }
    grammar = _compile(schema)
    assert accepts(grammar, b"1")
    assert accepts(grammar, b"10.5")
    # The validator takes 1.0 for no integer, and it is below 10.
    assert not accepts(grammar, b"1.0")
    assert not accepts(grammar, b"12.0")
    assert accepts(_compile({**schema, "$schema": "http://json-schema.org/draft-07/schema#"}), b"1.0")
