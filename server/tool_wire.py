"""Tools on the wire: what a request offers, and what of it must be called."""

from __future__ import annotations

from typing import Literal

import msgspec

from specdec.server.response_format import ABSENT
from specdec.server.schema_options import Options


class FunctionDefinition(msgspec.Struct, frozen=True):
    """A function and the schema of its arguments, which is enforced whatever `strict` says."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.field(default_factory=lambda: ABSENT)
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A tool; functions are the only kind. `options` and `report` are extensions, as beside other schemas."""

    function: FunctionDefinition
    options: Options | None = None
    report: bool | None = None


class FunctionName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function, by name."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    """This function has to be called."""

    function: FunctionName


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The functions that may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedToolChoice(msgspec.Struct, frozen=True, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True):
    """A choice among some of the tools; the prompt still has all."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice
