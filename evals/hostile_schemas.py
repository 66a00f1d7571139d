"""Hostile schemas: small texts, or large ones, that ask a compiler for far too much.

Each must be answered with a grammar or a named error, in bounded time and memory (hostile.py measures it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from specdec.grammars import Limits

# A schema is whatever JSON holds.
Json = Any

_LARGE = Limits(max_schema_bytes=16 * 2**20)
_LARGE_AND_DEEP = Limits(max_schema_bytes=16 * 2**20, max_depth=2000)
_LARGE_AND_WIDE = Limits(max_schema_bytes=16 * 2**20, max_refs=50_000, max_nodes=200_000, max_goals=200_000)


class HostileSchema(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    text: str
    """JSON text, or what pretends to be some."""
    limits: Limits = Limits()
    can_close: bool = True
    """Whether a text of a few thousand tokens can be an instance, if there is one at all."""


def hostile_schemas() -> Iterator[HostileSchema]:
    """The whole suite; each is made when its turn comes."""
    for name, make in _SCHEMAS.items():
        yield HostileSchema(
            name=name,
            text=_text(make()),
            limits=_LIMITS.get(name, Limits()),
            can_close=name not in _ENDLESS,
        )


def _text(schema: Json) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, separators=(",", ":"))


def _pattern(source: str) -> Json:
    return {"type": "string", "pattern": source}


def _shared(keyword: str, levels: int, leaf: Json) -> Json:
    """2^levels paths through levels definitions, each of which applies the next one twice."""
    definitions = {
        f"d{level}": {keyword: [{"$ref": f"#/$defs/d{level + 1}"}, {"$ref": f"#/$defs/d{level + 1}"}]}
        for level in range(levels)
    }
    definitions[f"d{levels}"] = leaf
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def _shared_siblings(levels: int) -> Json:
    """Like `_shared`, with something in each branch that keeps the two apart."""
    definitions: dict[str, Json] = {
        f"d{level}": {
            "anyOf": [
                {"$ref": f"#/$defs/d{level + 1}", "required": [f"a{level}"]},
                {"$ref": f"#/$defs/d{level + 1}", "required": [f"b{level}"]},
            ]
        }
        for level in range(levels)
    }
    definitions[f"d{levels}"] = {"type": "object"}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def _nested(keyword: str, depth: int, leaf: Json) -> str:
    """Written by hand: json.dumps would recurse."""
    opened, closed = ('[{"type":"object"},', "]") if keyword in {"allOf", "anyOf", "oneOf"} else ("", "")
    return f'{{"{keyword}":{opened}' * depth + _text(leaf) + f"{closed}}}" * depth


def _overlapping_objects(number: int) -> list[Json]:
    return [
        {
            "type": "object",
            "properties": {"kind": {"type": "string"}, f"p{index}": {"type": "integer"}},
            "required": ["kind", f"p{index}"],
        }
        for index in range(number)
    ]


def _definitions(number: int, reached: int) -> Json:
    """Objects that refer to the one after the next; the root reaches some of them."""

    def definition(index: int) -> Json:
        return {
            "type": "object",
            "description": f"definition {index} " + "x" * 80,
            "properties": {
                "name": {"type": "string", "maxLength": 100 + index % 7},
                "next": {"$ref": f"#/$defs/definition{(index + 1) % reached}"},
            },
            "required": ["name"],
        }

    return {
        "$defs": {f"definition{index}": definition(index) for index in range(number)},
        "$ref": "#/$defs/definition0",
    }


def _dependent_schemas(number: int) -> Json:
    return {
        "type": "object",
        "properties": {f"k{index}": {"type": "integer"} for index in range(number)},
        "dependentSchemas": {f"k{index}": {"required": [f"k{index + 1}"]} for index in range(number - 1)},
    }


def _dynamic(levels: int) -> Json:
    """Every level is a resource with an anchor of the same name, and each can reach every other."""
    definitions: dict[str, Json] = {
        f"level{level}": {
            "$id": f"level{level}",
            "$dynamicAnchor": "node",
            "type": "object",
            "properties": {
                **{f"to{other}": {"$ref": f"level{other}"} for other in range(levels)},
                "child": {"$dynamicRef": "#node"},
            },
        }
        for level in range(levels)
    }
    return {"$id": "https://example.com/root", "$ref": "level0", "$defs": definitions}


def _unevaluated(number: int) -> Json:
    return {
        "type": "object",
        "anyOf": [
            {"properties": {f"p{index}": {"const": index}}, "required": [f"p{index}"]} for index in range(number)
        ],
        "unevaluatedProperties": False,
    }


def _numerals(numerals: Iterable[str]) -> str:
    """Written by hand: Python does not write integers that long."""
    return '{"enum":[' + ",".join(numerals) + "]}"


def _nots(depth: int) -> str:
    one_of = {"oneOf": [{"type": "integer"}, {"minimum": 2}, {"type": "object", "required": ["a"]}]}
    return _nested("not", depth, one_of)


def _conditions(depth: int) -> Json:
    schema: Json = {"type": "integer"}
    for level in range(depth):
        schema = {
            "if": {"properties": {f"k{level}": {"const": level}}, "required": [f"k{level}"]},
            "then": {"required": [f"t{level}"]},
            "else": schema,
        }
    return schema


_SCHEMAS: dict[str, Callable[[], Json]] = {
    # Regular expressions.
    "pattern (a|b)*a(a|b){30}": lambda: _pattern("^(a|b)*a(a|b){30}$"),
    "pattern (a|b)*a(a|b){12}": lambda: _pattern("^(a|b)*a(a|b){12}$"),
    "pattern ((a{0,100}){0,100}){0,100}": lambda: _pattern("^((a{0,100}){0,100}){0,100}$"),
    "pattern nested quantifiers": lambda: _pattern("^(((((a+)+)+)+)+)+$"),
    "pattern nested braces to 10^9": lambda: _pattern("^(((a{1000}){1000}){1000})$"),
    "pattern look-aheads intersected": lambda: _pattern(
        "^" + "".join(f"(?=.*{letter}.{{{8 + n}}}{letter})" for n, letter in enumerate("abcdefgh")) + ".*$"
    ),
    "pattern counted letters": lambda: _pattern(r"^\p{L}{1,1000}$"),
    "pattern of 300 alternatives, repeated": lambda: _pattern(
        "^(" + "|".join(f"w{n * 7919 % 1000}x*" for n in range(300)) + ")*$"
    ),
    "pattern of 1,000 open groups": lambda: _pattern("(" * 1000 + "a" + ")" * 1000),
    "pattern of 200,000 characters": lambda: _pattern("ab?" * 66_667),
    "pattern, negated and counted": lambda: {"type": "string", "not": {"pattern": "^(a|b)*a(a|b){18}$"}},
    "50 patterns at once": lambda: {
        "type": "string",
        "allOf": [{"pattern": f"{a}.{{{n}}}{a}"} for n in range(5) for a in "abcdefghij"],
    },
    "propertyNames with an exploding pattern": lambda: {
        "type": "object",
        "propertyNames": {"pattern": "^(a|b)*a(a|b){30}$"},
    },
    "patternProperties, 200 of them overlapping": lambda: {
        "type": "object",
        "patternProperties": {f"a.*{chr(97 + n % 26)}{n}": {"minimum": n} for n in range(200)},
    },
    "anyOf of 12 objects with a large pattern each at one key": lambda: {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "v": {"type": "string", "pattern": f"^[ab{letter}]*{letter}[ab{letter}]{{9}}$"},
                    letter: {},
                },
                "required": ["v"],
                "additionalProperties": False,
            }
            for letter in "cdefghijklmn"
        ]
    },
    # Combinations.
    "anyOf shared 2^16 times": lambda: _shared("anyOf", 16, {"type": "integer"}),
    "oneOf shared 2^16 times": lambda: _shared("oneOf", 16, {"type": "object", "required": ["a"]}),
    "allOf shared 2^60 times": lambda: _shared("allOf", 60, {"type": "object", "properties": {"a": {"minimum": 1}}}),
    "anyOf shared 2^16 times, branches apart": lambda: _shared_siblings(16),
    "allOf of 20 anyOf of 20": lambda: {
        "type": "object",
        "allOf": [{"anyOf": [{"required": [f"k{i}_{j}"]} for j in range(20)]} for i in range(20)],
    },
    "oneOf of 300 overlapping objects": lambda: {"oneOf": _overlapping_objects(300)},
    "oneOf of 300 overlapping objects, negated": lambda: {"not": {"oneOf": _overlapping_objects(300)}},
    "oneOf of 60 overlapping objects, negated": lambda: {"not": {"oneOf": _overlapping_objects(60)}},
    "not, 25 deep, around oneOf": lambda: _nots(25),
    "if, then and else, 20 deep": lambda: _conditions(20),
    "unevaluatedProperties over 2^20 cells": lambda: _unevaluated(20),
    "unevaluatedProperties over 2^6 cells": lambda: _unevaluated(6),
    "cyclic anyOf": lambda: {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}},
    "cyclic allOf": lambda: {
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
        "properties": {"x": {"$ref": "#/$defs/a"}},
    },
    "cyclic if": lambda: {"$ref": "#/$defs/a", "$defs": {"a": {"if": {"$ref": "#/$defs/a"}}}},
    "recursion without an end": lambda: {
        "type": "object",
        "properties": {"next": {"$ref": "#"}},
        "required": ["next"],
    },
    "conjunctions of a recursion, more at every level": lambda: {
        "$defs": {
            f"d{n}": {
                "type": "object",
                "properties": {
                    "l": {"$ref": f"#/$defs/d{(2 * n) % 31}"},
                    "r": {"$ref": f"#/$defs/d{(n * 3 + 1) % 31}"},
                },
            }
            for n in range(31)
        },
        "allOf": [{"$ref": "#/$defs/d1"}, {"$ref": "#/$defs/d2"}, {"$ref": "#/$defs/d7"}],
    },
    "$dynamicRef among 12 resources": lambda: _dynamic(12),
    # Nesting.
    "JSON nested 500 deep, at the usual limit": lambda: _nested("items", 500, {"type": "integer"}),
    "JSON nested 100,000 deep": lambda: "[" * 100_000,
    "items nested 500 deep": lambda: _nested("items", 500, {"type": "integer"}),
    "allOf nested 500 deep": lambda: _nested("allOf", 500, {"required": ["a"]}),
    "allOf nested 300 deep": lambda: _nested("allOf", 300, {"required": ["a"]}),
    "oneOf nested 300 deep": lambda: _nested("oneOf", 300, {"type": "null"}),
    "anyOf nested 500 deep": lambda: _nested("anyOf", 500, {"type": "null"}),
    "not nested 500 deep": lambda: _nested("not", 500, {"type": "integer"}),
    "const nested 900 deep": lambda: '{"const":' + "[" * 900 + "]" * 900 + "}",
    # Numbers and counts.
    "multipleOf 1e308 and 1e-300": lambda: {
        "anyOf": [{"type": "number", "multipleOf": 1e308}, {"type": "number", "multipleOf": 1e-300, "minimum": 1}]
    },
    "multipleOf 123456789 and 987654321": lambda: {
        "type": "integer",
        "allOf": [{"multipleOf": 123456789}, {"multipleOf": 987654321}],
    },
    "bounds from 1e-300 to 1e308": lambda: {"type": "number", "exclusiveMinimum": 1e-300, "maximum": 1e308},
    "an integer of 10,000 digits": lambda: '{"type":"integer","maximum":1' + "0" * 10_000 + "}",
    "const of 3,000 digits": lambda: '{"const":1' + "0" * 3_000 + "}",
    "enum of 1,000 integers of 4,000 digits": lambda: _numerals("9" * 3_990 + str(n) for n in range(1000, 2000)),
    "multipleOf of 300 digits": lambda: '{"type":"integer","multipleOf":1' + "0" * 298 + "7}",
    "an exponent of 10^9": lambda: '{"minimum":1e-1000000000,"multipleOf":1e-1000000000}',
    "maxLength of 10^4000": lambda: '{"type":"string","maxLength":1' + "0" * 4_000 + "}",
    "minLength 10^9": lambda: {"type": "string", "minLength": 10**9},
    "minLength 10^9 of a pattern": lambda: {"type": "string", "minLength": 10**9, "pattern": "^(ab|c)*$"},
    "minItems and maxItems 10^9": lambda: {"type": "array", "minItems": 10**9, "maxItems": 10**9},
    "minProperties 10^9": lambda: {"type": "object", "minProperties": 10**9},
    "contains from 10^6 to 10^6": lambda: {
        "type": "array",
        "contains": {"type": "integer"},
        "minContains": 10**6,
        "maxContains": 10**6,
    },
    "contains 2,000 times among 30,000 items": lambda: {
        "type": "array",
        "items": {"type": "integer"},
        "contains": {"minimum": 7},
        "minContains": 2000,
        "maxContains": 2000,
        "minItems": 30_000,
        "maxItems": 40_000,
    },
    "two contains of 10^6": lambda: {
        "type": "array",
        "allOf": [
            {"contains": {"minimum": 3}, "minContains": 10**6},
            {"contains": {"maximum": 7}, "minContains": 10**6},
        ],
    },
    # Size.
    "enum of 5,000 strings": lambda: {"enum": [f"{n * 2654435761 % 2**32:x}-{n}" for n in range(5000)]},
    "enum of 5,000 strings, negated": lambda: {
        "type": "string",
        "not": {"enum": [f"{n * 2654435761 % 2**32:x}-{n}" for n in range(5000)]},
    },
    "enum of 10,000 objects": lambda: {"enum": [{"a": n, "b": [n, str(n)]} for n in range(10_000)]},
    "enum of 3,000 objects, negated": lambda: {"not": {"enum": [{"a": n} for n in range(3_000)]}},
    "uniqueItems over 5,000 strings": lambda: {
        "type": "array",
        "uniqueItems": True,
        "minItems": 20,
        "items": {"enum": [f"word {n}" for n in range(5000)]},
    },
    "required of 1,000 keys": lambda: {"type": "object", "required": [f"key{n}" for n in range(1000)]},
    "1,000 optional properties": lambda: {
        "type": "object",
        "properties": {f"key{n}": {"type": "integer"} for n in range(1000)},
        "additionalProperties": False,
    },
    "dependentSchemas, a chain of 30": lambda: _dependent_schemas(30),
    "dependentSchemas, a chain of 6": lambda: _dependent_schemas(6),
    "a constant of 1 MB": lambda: {"const": "x" * 2**20},
    "an enum of two strings of 1 MB": lambda: {"enum": ["é" * 2**19, "é" * (2**19 - 1) + "a"]},
    "20,000 definitions, 50 reached": lambda: _definitions(20_000, 50),
    "5,000 definitions, all reached": lambda: _definitions(5_000, 5_000),
    "20,000 definitions, all reached": lambda: _definitions(20_000, 20_000),
    # Characters.
    "NUL and lone surrogates": lambda: {
        "anyOf": [{"const": "\x00"}, {"const": "\ud800"}, {"pattern": "\ud800"}, {"required": ["\udfff", "\x00"]}]
    },
    "a pattern of surrogates": lambda: _pattern(r"^[\ud800-\udbff][\udc00-\udfff]\u0000$"),
    "a key repeated 20,000 times": lambda: "{" + ",".join(['"title":1'] * 20_000) + "}",
    "20,000 keys, the last one repeated": lambda: "{" + ",".join(f'"k{n}":1' for n in range(20_000)) + ',"k19999":1}',
}

_LIMITS = {
    "items nested 500 deep": _LARGE_AND_DEEP,
    "allOf nested 300 deep": _LARGE_AND_DEEP,
    "oneOf nested 300 deep": _LARGE_AND_DEEP,
    "allOf nested 500 deep": _LARGE_AND_DEEP,
    "anyOf nested 500 deep": _LARGE_AND_DEEP,
    "not nested 500 deep": _LARGE_AND_DEEP,
    "const nested 900 deep": _LARGE_AND_DEEP,
    "pattern of 200,000 characters": _LARGE,
    "enum of 1,000 integers of 4,000 digits": _LARGE,
    "enum of 10,000 objects": _LARGE,
    "a constant of 1 MB": _LARGE,
    "an enum of two strings of 1 MB": _LARGE,
    "20,000 definitions, 50 reached": _LARGE,
    "5,000 definitions, all reached": _LARGE_AND_WIDE,
    "20,000 definitions, all reached": _LARGE_AND_WIDE,
    "a key repeated 20,000 times": _LARGE,
    "20,000 keys, the last one repeated": _LARGE,
}
_ENDLESS = frozenset({
    "minLength 10^9", "minLength 10^9 of a pattern", "minItems and maxItems 10^9", "minProperties 10^9",
    "const of 3,000 digits", "enum of 1,000 integers of 4,000 digits", "contains from 10^6 to 10^6",
    "contains 2,000 times among 30,000 items", "two contains of 10^6", "a constant of 1 MB",
    "an enum of two strings of 1 MB", "required of 1,000 keys",
})  # fmt: skip
