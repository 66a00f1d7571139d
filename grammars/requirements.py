"""What a keyword's value must be, checked where it is read; InvalidSchemaError with keyword and pointer."""

from __future__ import annotations

from specdec.grammars.errors import InvalidSchemaError
from specdec.grammars.schema import Json, type_name


def require_count(value: Json, pointer: str) -> int:
    """A non-negative whole number; 2.0 is one."""
    keyword = pointer.rpartition("/")[2]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSchemaError(f"{keyword} is {value!r}, not an integer", keyword=keyword, pointer=pointer)
    if value < 0:
        raise InvalidSchemaError(f"{keyword} is {value}, below zero", keyword=keyword, pointer=pointer)
    return value


def require_list(value: Json, pointer: str) -> list[Json]:
    keyword = pointer.rpartition("/")[2]
    if not isinstance(value, list):
        raise InvalidSchemaError(f"{keyword} is {type_name(value)}, not an array", keyword=keyword, pointer=pointer)
    return value


def require_object(value: Json, pointer: str) -> dict[str, Json]:
    keyword = pointer.rpartition("/")[2]
    if not isinstance(value, dict):
        raise InvalidSchemaError(f"{keyword} is {type_name(value)}, not an object", keyword=keyword, pointer=pointer)
    return value


def is_number(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
