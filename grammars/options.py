"""SchemaOptions: what a caller may choose about how a schema is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec


class SchemaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults enforce everything that the schema says."""

    format: Literal["assert", "annotation"] = "assert"
    unknown_format: Literal["refuse", "annotation"] = "refuse"
    documents: Mapping[str, Any] = {}
    """Schemas by URI that references may lead to; nothing is ever fetched."""
    property_order: Literal["schema", "any"] = "schema"
    """Whether keys come in the order in which the schema declares them, or in every order."""
    additional_properties: Literal["schema", "closed"] = "schema"
    """Whether objects are as open as the schema says, or take no keys that it does not describe."""
    whitespace: Literal["compact", "pretty", "flexible"] = "compact"
    """None; as `json.dumps(value, indent=2)`; or up to `max_whitespace` characters wherever JSON allows some."""
    max_whitespace: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    """Consecutive whitespace characters where whitespace is flexible."""


DEFAULT_OPTIONS = SchemaOptions()
