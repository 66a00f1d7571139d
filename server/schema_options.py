"""options: how a schema is read, beside the schema in `response_format` and in `structured_outputs`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec

from specdec import SchemaError, SchemaOptions


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of SchemaOptions, with its defaults where one is left out or null."""

    format: Literal["assert", "annotation"] | None = None
    unknown_format: Literal["refuse", "annotation"] | None = None
    documents: dict[str, msgspec.Raw] | None = None
    property_order: Literal["schema", "any"] | None = None
    additional_properties: Literal["schema", "closed"] | None = None
    whitespace: Literal["compact", "pretty", "flexible"] | None = None
    max_whitespace: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None


def schema_options(options: Options | None, *, param: str, max_documents_bytes: int) -> SchemaOptions:
    """The engine's form. Raises SchemaError for documents larger than what the schema has left of its limit."""
    if options is None:
        return SchemaOptions()
    documents = options.documents or {}
    num_bytes = sum(len(uri.encode()) + len(bytes(document)) for uri, document in documents.items())
    if num_bytes > max_documents_bytes:
        raise SchemaError(
            f"the documents have {num_bytes} bytes; beside this schema at most {max_documents_bytes} are accepted",
            param=f"{param}.documents",
            code="schema_too_large",
        )
    # Any: whatever JSON holds. Not by msgspec, which has no whole numbers of more than 64 bits.
    read: dict[str, Any] = {uri: json.loads(bytes(document)) for uri, document in documents.items()}
    given = {
        name: value
        for name in options.__struct_fields__
        if name != "documents" and (value := getattr(options, name)) is not None
    }
    return SchemaOptions(documents=read, **given)
