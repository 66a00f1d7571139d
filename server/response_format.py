"""response_format: a constraint as OpenAI's clients spell it, with `options` and `report` as extensions."""

from __future__ import annotations

import msgspec

from specdec import JsonSchema, SchemaError
from specdec.server.schema_options import Options, schema_options

ABSENT = msgspec.Raw(b"null")
ANY_OBJECT = '{"type":"object"}'


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Anything goes."""


class JsonObjectFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object; or, as llama.cpp has it, one that `schema` describes."""

    # By a factory: a Raw default is none that msgspec could write into the schema of this struct.
    schema: msgspec.Raw = msgspec.field(default_factory=lambda: ABSENT)
    options: Options | None = None
    report: bool | None = None


class NamedSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schema with its labels. It is enforced whatever `strict` says."""

    schema: msgspec.Raw
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """An instance of the schema."""

    json_schema: NamedSchema
    options: Options | None = None
    report: bool | None = None


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


def format_constraint(
    response_format: JsonObjectFormat | JsonSchemaFormat, *, max_schema_bytes: int
) -> tuple[JsonSchema, str]:
    """The engine's form, and the field that the schema came in. Raises SchemaError: none, or too large a one."""
    match response_format:
        case JsonObjectFormat(schema) if bytes(schema) == bytes(ABSENT):
            text, param = ANY_OBJECT, "response_format"
        case JsonObjectFormat(schema):
            text, param = bytes(schema).decode(), "response_format.schema"
        case JsonSchemaFormat(named):
            text, param = bytes(named.schema).decode(), "response_format.json_schema.schema"
    constraint = json_schema(
        text,
        response_format.options,
        param=param,
        options_param="response_format.options",
        max_schema_bytes=max_schema_bytes,
    )
    return constraint, param


def json_schema(
    text: str, options: Options | None, *, param: str, options_param: str, max_schema_bytes: int
) -> JsonSchema:
    """A schema with its options; the documents count towards the limit. Raises SchemaError."""
    if text == "null":
        raise SchemaError("the schema is null, which would enforce nothing; send a JSON Schema", param=param)
    num_bytes = len(text.encode())
    check_size("schema", num_bytes, param=param, max_schema_bytes=max_schema_bytes)
    return JsonSchema(
        schema=text,
        options=schema_options(options, param=options_param, max_documents_bytes=max_schema_bytes - num_bytes),
    )


def check_size(what: str, num_bytes: int, *, param: str, max_schema_bytes: int) -> None:
    """Raise SchemaError for a constraint that is too large to be looked at."""
    if num_bytes > max_schema_bytes:
        raise SchemaError(
            f"the {what} has {num_bytes} bytes; at most {max_schema_bytes} are accepted",
            param=param,
            code="schema_too_large",
        )
