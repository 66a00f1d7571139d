"""What a caller is told: the report of a grammar, and why there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from checks import accepts
from vocabularies import small_vocabulary

from specdec.grammars import GrammarCompiler, InvalidSchemaError, SchemaOptions, UnsatisfiableSchemaError
from specdec.grammars.format_restrictions import FORMAT_RESTRICTIONS
from specdec.grammars.formats import STRING_FORMATS, format_language, format_outer


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(small_vocabulary())


def _restrictions(compiler: GrammarCompiler, schema: Any) -> dict[str, str]:
    report = compiler.compile_json_schema(schema).report
    return {one.pointer: one.reason for one in report.restrictions if one.pointer}


def test_a_format_that_is_an_annotation_is_reported_as_one(compiler: GrammarCompiler) -> None:
    options = SchemaOptions(format="annotation")
    report = compiler.compile_json_schema({"type": "string", "format": "date"}, options).report
    assert "format" in report.annotations
    assert "format" not in report.enforced
    assert "format" in compiler.compile_json_schema({"type": "string", "format": "date"}).report.enforced


def test_an_unknown_format_is_reported_as_an_annotation_beside_those_that_are_enforced(
    compiler: GrammarCompiler,
) -> None:
    schema = {"properties": {"a": {"format": "date"}, "b": {"format": "phone"}}}
    report = compiler.compile_json_schema(schema, SchemaOptions(unknown_format="annotation")).report
    assert "format" in report.enforced
    assert "format" in report.annotations


@pytest.mark.parametrize("name", sorted(STRING_FORMATS))
def test_each_format_that_is_narrowed_is_in_the_report_with_its_place(name: str, compiler: GrammarCompiler) -> None:
    if format_language(name) == format_outer(name):
        assert name not in FORMAT_RESTRICTIONS
    elif name != "uuid":
        # Its validators take more than its definition, which is generated as a whole.
        assert name in FORMAT_RESTRICTIONS
    found = _restrictions(compiler, {"items": {"type": "string", "format": name}})
    assert (FORMAT_RESTRICTIONS[name] in found["/items/format"]) if name in FORMAT_RESTRICTIONS else not found


def test_a_pattern_with_two_readings_is_in_the_report_and_one_with_one_is_not(compiler: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {"two": {"pattern": r"^\s$"}, "one": {"pattern": "^a+$"}, "three": {"not": {"pattern": "^a$"}}},
        "patternProperties": {r"\s/": {}, "^b": {}},
        "propertyNames": {"pattern": r"\S"},
    }
    found = _restrictions(compiler, schema)
    assert {pointer for pointer, reason in found.items() if "ECMA-262" in reason} == {
        "/properties/two/pattern",
        "/properties/three/not/pattern",
        r"/patternProperties/\s~1",
        "/propertyNames/pattern",
    }


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "string", "pattern": "^a*$", "enum": ["b"]},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"allOf": [{"type": "array", "minItems": 2}, {"maxItems": 1}]},
    ],
)
def test_a_contradiction_is_called_one(schema: Any, compiler: GrammarCompiler) -> None:
    with pytest.raises(UnsatisfiableSchemaError, match=r"^no value satisfies the schema"):
        compiler.compile_json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"not": {"uniqueItems": True}}, [1, 1]),
        ({"not": {"type": "number", "format": "int32"}, "type": "number"}, 0.5),
        ({"type": "string", "pattern": r"^\d$", "not": {"pattern": "^[0-9]$"}}, "٣"),
        ({"type": "string", "format": "hostname", "pattern": "^xn--bcher-kva[.]"}, "xn--bcher-kva.example"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-300}, 1e-300),
        ({"type": "string", "const": "ÿ"}, "ÿ"),
    ],
)
def test_where_values_exist_that_cannot_be_generated_the_message_says_so(
    schema: Any, instance: Any, compiler: GrammarCompiler
) -> None:
    with pytest.raises(UnsatisfiableSchemaError, match="no value that can be generated"):
        compiler.compile_json_schema(schema)
    assert json.dumps(instance)


@pytest.mark.parametrize("keyword", ["if", "not", "then"])
@pytest.mark.parametrize("wrap", [lambda schema: schema, lambda schema: {"not": schema}])
def test_a_cycle_behind_an_if_that_decides_nothing_is_refused(
    keyword: str, wrap: Any, compiler: GrammarCompiler
) -> None:
    looped = {"if": {"$ref": "#/$defs/a"}}
    inner = {"a": {"$ref": "#/$defs/b"}, "b": looped if keyword == "if" else {keyword: looped, "if": {}}}
    with pytest.raises(InvalidSchemaError, match="lead back") as caught:
        compiler.compile_json_schema({"properties": {"x": wrap({"$ref": "#/$defs/b"})}, "$defs": inner})
    assert caught.value.keyword == "$ref"


def test_an_if_that_decides_nothing_may_recurse_through_a_property(compiler: GrammarCompiler) -> None:
    schema = {"$defs": {"a": {"if": {"properties": {"x": {"$ref": "#/$defs/a"}}}}}, "$ref": "#/$defs/a"}
    assert accepts(compiler.compile_json_schema(schema), b'{"x":{"x":1}}')


def test_a_oneof_whose_branches_differ_by_a_constant_is_not_multiplied_out(compiler: GrammarCompiler) -> None:
    branches = [
        {
            "type": "object",
            "properties": {"kind": {"const": f"k{index}"}, **{f"p{number}": {"type": "null"} for number in range(8)}},
            "required": ["kind"],
        }
        for index in range(100)
    ]
    grammar = compiler.compile_json_schema({"oneOf": branches})
    assert accepts(grammar, b'{"kind":"k7","p3":null}')
    assert not accepts(grammar, b'{"kind":"k100"}')
    assert not accepts(grammar, b'{"p3":null}')


def test_branches_of_a_oneof_that_differ_for_some_values_only_exclude_the_others(compiler: GrammarCompiler) -> None:
    branches = [
        {"type": "object", "properties": {"kind": {"enum": kinds}, "a": {"type": "null"}}, "required": ["kind"]}
        for kinds in (["x", "y"], ["y", "z"], ["w"])
    ]
    grammar = compiler.compile_json_schema({"oneOf": branches})
    for kind, is_accepted in (("x", True), ("y", False), ("z", True), ("w", True)):
        assert accepts(grammar, json.dumps({"kind": kind}).replace(" ", "").encode()) is is_accepted


def test_alternatives_that_fit_no_automaton_together_are_reported() -> None:
    def ending(first: str, second: str) -> dict[str, str]:
        return {"type": "string", "pattern": f"^({first}|{second})*{first}({first}|{second}){{11}}$"}

    compiler = GrammarCompiler(small_vocabulary())
    schemas = [ending("a", "b"), ending("b", "c"), ending("c", "d"), ending("d", "e")]
    reasons = [one.reason for one in compiler.compile_json_schema({"anyOf": schemas}).report.restrictions]
    assert any("any of 4 patterns or formats, those of 3 of them" in reason for reason in reasons)
    alone = compiler.compile_json_schema({"anyOf": schemas[:2]}).report.restrictions
    assert not any("automaton" in one.reason for one in alone)
