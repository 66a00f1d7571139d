"""SchemaOptions: what a caller may choose about how a schema is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class SchemaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults enforce everything that the schema says."""

    format: Literal["assert", "annotation"] = "assert"
    unknown_format: Literal["refuse", "annotation"] = "refuse"
    documents: Mapping[str, Any] = {}
    """Schemas by URI that references may lead to; nothing is ever fetched."""


DEFAULT_OPTIONS = SchemaOptions()
