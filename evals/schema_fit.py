"""Fit: whether an instance plainly breaks a schema, by a shallow look that is sure of nothing else.

It tells the branches of `anyOf` and `oneOf` apart by what usually tells them apart: types, constants, required keys and
keys that are not allowed, a few levels deep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Schemas and instances are whatever JSON holds.
Json = Any

_MAX_LEVELS = 4


def plainly_breaks(schema: Json, instance: Json, resolve: Callable[[str], Json], levels: int = _MAX_LEVELS) -> bool:
    """True only if the instance is invalid; `resolve` gives what a `$ref` leads to."""
    if not isinstance(schema, dict):
        return schema is False
    if levels == 0:
        return False
    if _breaks_type(schema.get("type"), instance):
        return True
    if ("const" in schema and schema["const"] != instance) or (
        isinstance(schema.get("enum"), list) and instance not in schema["enum"]
    ):
        return True
    if isinstance(instance, dict) and _breaks_keys(schema, instance, resolve, levels):
        return True
    if isinstance(schema.get("$ref"), str) and plainly_breaks(resolve(schema["$ref"]), instance, resolve, levels - 1):
        return True
    branches = schema.get("allOf")
    return isinstance(branches, list) and any(plainly_breaks(each, instance, resolve, levels - 1) for each in branches)


def _breaks_keys(
    schema: dict[str, Json], instance: dict[str, Json], resolve: Callable[[str], Json], levels: int
) -> bool:
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and any(isinstance(key, str) and key not in instance for key in required):
        return True
    known = properties if isinstance(properties, dict) else {}
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if is_closed and any(key not in known for key in instance):
        return True
    return any(
        key in instance and plainly_breaks(value, instance[key], resolve, levels - 1) for key, value in known.items()
    )


def _breaks_type(named: Json, instance: Json) -> bool:
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list):
        return False
    if instance is None:
        own = {"null"}
    elif isinstance(instance, bool):
        own = {"boolean"}
    elif isinstance(instance, int):
        own = {"integer", "number"}
    elif isinstance(instance, float):
        own = {"integer", "number"} if instance.is_integer() else {"number"}
    elif isinstance(instance, str):
        own = {"string"}
    else:
        own = {"array"} if isinstance(instance, list) else {"object"}
    return own.isdisjoint(name for name in names if isinstance(name, str))
