"""Limits: how large a schema may be, checked before anything walks it."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one compilation; every one is checked, and exceeding it is a LimitExceededError."""

    max_schema_bytes: int = 256 * 1024
    """Length of the schema as UTF-8 JSON text."""
    max_depth: int = 64
    """Nesting of the schema's JSON text; one level of `properties` is two."""
    max_properties: int = 1000
    """Keys of one `properties`, and of one `required`."""
    max_enum_values: int = 10_000
    """Values of one `enum`."""
    max_refs: int = 1000
    """Distinct `$ref` keywords reached."""
    max_nodes: int = 50_000
    """Subschemas reached, those that stand for constants included."""
    max_goals: int = 20_000
    """Distinct conjunctions of subschemas that some position must satisfy."""
    max_alternatives: int = 1024
    """Object or array alternatives of one goal after anyOf is multiplied out."""
    max_key_classes: int = 512
    """Classes of the keys of one object, told apart by the patternProperties that match them."""
    max_compile_seconds: float = 5.0
    """Processor time of one compilation."""
    max_compile_bytes: int = 1024**3
    """Memory of one compilation, where it is made in a process of its own on Linux."""
    max_one_of_negated: int = 64
    """Branches of a oneOf that is negated: all pairs of them are ways to violate it."""
    max_steps: int = 2_000_000
    """Work of multiplying out, in keys, items and constants touched."""
