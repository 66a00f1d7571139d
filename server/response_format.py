"""response_format: what an answer must satisfy, as clients spell it."""

from __future__ import annotations

import msgspec

from specdec import Constraint, SamplingParams, SchemaError
from specdec.server.errors import bad_request

ABSENT = msgspec.Raw(b"null")


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Anything goes."""


class JsonObjectFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object; or, as llama.cpp has it, one that `schema` describes."""

    schema: msgspec.Raw = ABSENT


class NamedSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schema with its labels. It is enforced whatever `strict` says."""

    schema: msgspec.Raw
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """An instance of the schema."""

    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


def constraint_of(response_format: ResponseFormat | None, *, max_schema_bytes: int) -> Constraint | None:
    """The engine's form of a response_format. Raises SchemaError for a schema that is absent or too large."""
    match response_format:
        case None | TextFormat():
            return None
        case JsonObjectFormat(schema) if bytes(schema) == bytes(ABSENT):
            return Constraint(kind="json_object")
        case JsonObjectFormat(schema):
            raw, param = bytes(schema), "response_format.schema"
        case JsonSchemaFormat(named):
            raw, param = bytes(named.schema), "response_format.json_schema.schema"
    if raw == bytes(ABSENT):
        raise SchemaError("the schema is null, which would enforce nothing; send a JSON Schema", param=param)
    if len(raw) > max_schema_bytes:
        raise SchemaError(
            f"the schema has {len(raw)} bytes; at most {max_schema_bytes} are accepted",
            param=param,
            code="schema_too_large",
        )
    return Constraint(kind="json_schema", schema=raw.decode())


def schema_param(response_format: ResponseFormat | None) -> str:
    """The field that a problem with the schema is a problem of."""
    match response_format:
        case JsonSchemaFormat():
            return "response_format.json_schema.schema"
        case JsonObjectFormat():
            return "response_format.schema"
        case _:
            return "response_format"


def refuse_conflicts(sampling_params: SamplingParams, constraint: Constraint | None) -> None:
    """A constraint decides where the answer ends; raise for a field that would decide otherwise."""
    if constraint is None:
        return
    for name, is_set in (
        ("stop", bool(sampling_params.stop)),
        ("stop_token_ids", bool(sampling_params.stop_token_ids)),
        ("ignore_eos", sampling_params.ignore_eos),
        ("min_tokens", sampling_params.min_tokens > 0),
    ):
        if is_set:
            raise bad_request(
                f"{name} cannot be combined with response_format {constraint.kind}: the constraint alone "
                f"decides where the answer ends; leave {name} out",
                param=name,
                code="conflicting_fields",
            )
