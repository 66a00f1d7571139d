"""Why other libraries disagree with the judge on random schemas: what docs/peers.md explains, as code.

Each cause is (peers, what happens, a test of schema and text). A disagreement that no cause explains is news.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_ANNOTATIONS = frozenset({"$defs", "$anchor", "$id", "$schema", "title", "description"})
_APPLICATORS = ("anyOf", "allOf", "oneOf", "enum", "const", "$ref", "not")
_OF_OBJECTS = ("properties", "additionalProperties", "required", "patternProperties")
_OF_ARRAYS = ("items", "prefixItems", "minItems", "maxItems")
_OF_STRINGS = ("minLength", "maxLength", "pattern", "format")


class Cause(NamedTuple):
    name: str
    peers: tuple[str, ...]
    happens: tuple[str, ...]
    """"invalid accepted", "valid refused", or both."""
    explains: Callable[[Any, str], bool]


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, list):
        for one in schema:
            yield from _subschemas(one)
    if isinstance(schema, dict):
        yield schema
        for one in schema.values():
            yield from _subschemas(one)


def _some(test: Callable[[dict[str, Any]], bool]) -> Callable[[Any, str], bool]:
    return lambda schema, _: any(test(one) for one in _subschemas(schema))


def _has_siblings(schema: dict[str, Any]) -> bool:
    constraints = [key for key in schema if key not in _ANNOTATIONS]
    return len(constraints) > 1 and any(key in schema for key in _APPLICATORS)


def _lacks_type(schema: dict[str, Any]) -> bool:
    keywords = (*_OF_OBJECTS, *_OF_ARRAYS, *_OF_STRINGS)
    return "type" not in schema and any(key in schema for key in keywords)


def _requires_undeclared(schema: dict[str, Any]) -> bool:
    declared = schema.get("properties", {})
    required = schema.get("required", ())
    return isinstance(required, list) and any(key not in declared for key in required)


CAUSES = (
    Cause(
        "a number is spelt in another way: an integer with a fraction, an exponent, many digits",
        ("llguidance", "xgrammar", "outlines-core"),
        ("valid refused",),
        lambda _, text: re.search(r"\d[eE][+-]?\d|\d{16}|\.\d", text) is not None,
    ),
    Cause(
        "keywords beside anyOf, enum, const or $ref are not applied",
        ("xgrammar", "outlines-core"),
        ("invalid accepted", "valid refused"),
        _some(_has_siblings),
    ),
    Cause(
        "a required key that properties does not declare is not asked for",
        ("xgrammar", "outlines-core"),
        ("invalid accepted",),
        _some(_requires_undeclared),
    ),
    Cause(
        "keywords of one type are taken to ask for that type",
        ("xgrammar", "outlines-core"),
        ("invalid accepted", "valid refused"),
        _some(_lacks_type),
    ),
    Cause(
        "control characters in strings are refused",
        ("xgrammar", "outlines-core"),
        ("valid refused",),
        lambda _, text: "\\" in text,
    ),
    Cause(
        "keys that are not declared come in a form of their own: no escapes, no empty key, or not at all",
        ("xgrammar", "outlines-core"),
        ("valid refused", "invalid accepted"),
        lambda _, text: "{" in text,
    ),
    Cause(
        "a list of types drops the keywords of some of them",
        ("xgrammar", "outlines-core"),
        ("invalid accepted", "valid refused"),
        _some(lambda schema: isinstance(schema.get("type"), list)),
    ),
)


def cause_of(peer: str, happens: str, schema: Any, text: str) -> str | None:
    """The first cause that explains a disagreement; None where none does."""
    for cause in CAUSES:
        if peer in cause.peers and happens in cause.happens and cause.explains(schema, text):
            return cause.name
    return None
