"""RequestedTools: which functions a request offers, which of them must, may or must not be called, and how."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from specdec import Function, SchemaError, SchemaOptions, TextOrToolCalls, ToolCalls
from specdec.server.call_families import CallFamily
from specdec.server.config import RequestLimits
from specdec.server.errors import ApiError, bad_request
from specdec.server.response_format import ABSENT, check_size
from specdec.server.tool_calls import CallReader

_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-")
_MAX_NAME_CHARACTERS = 64
_NO_PARAMETERS = '{"type":"object","properties":{},"additionalProperties":false}'
_ARGUMENT_OPTIONS = SchemaOptions(additional_properties="closed")
"""A function that is called with a parameter that it does not declare fails, so none is made up."""


class FunctionDefinition(msgspec.Struct, frozen=True):
    """A function and the schema of its arguments, which is enforced whatever `strict` says."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = ABSENT
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A tool; functions are the only kind."""

    function: FunctionDefinition


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


class RequestedTools(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's constraint, and what only the wire knows of it."""

    constraint: ToolCalls | TextOrToolCalls | None = None
    """None where nothing can be called."""
    for_template: list[dict[str, object]] | None = None
    """As chat templates take them."""
    family: CallFamily
    places: tuple[int, ...] = ()
    """Where among the tools each function of the constraint stands."""
    path: str = "function."
    """From a tool to its name and parameters, in the words of the endpoint."""

    @property
    def has_text(self) -> bool:
        """Whether an answer may be text."""
        return not isinstance(self.constraint, ToolCalls)

    def reader(self) -> CallReader | None:
        """For one choice; None where nothing can be called."""
        if self.constraint is None:
            return None
        return CallReader(self.family.format, has_text=self.has_text, id_length=self.family.id_length)

    def located(self, error: SchemaError) -> SchemaError:
        """An error of the constraint as one of the request: of the schema or the name of one tool, or of all tools."""
        param, pointer = "tools", error.pointer
        parts = error.pointer.removeprefix("/calls").split("/", 4)[1:]
        if len(parts) > 2 and parts[0] == "functions" and parts[2] in {"name", "parameters"}:
            param = f"tools[{self.places[int(parts[1])]}].{self.path}{parts[2]}"
            pointer = f"/{parts[3]}" if len(parts) > 3 else ""
        is_unsupported = (error.code or "").startswith("unsupported")
        return SchemaError(
            str(error),
            keyword=error.keyword,
            pointer=pointer,
            param=param,
            code="unsupported_schema_feature" if is_unsupported else "invalid_json_schema",
        )


def requested_tools(
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    is_parallel: bool | None,
    *,
    family: CallFamily,
    limits: RequestLimits,
    path: str = "function.",
) -> RequestedTools:
    """What the three fields ask for together. Raises ApiError, SchemaError for what is too large."""
    definitions = [tool.function for tool in tools or ()]
    _check(definitions, limits, path)
    if not definitions:
        if choice not in {None, "none", "auto"}:
            raise bad_request("tool_choice asks for a call, and there are no tools", param="tool_choice")
        return RequestedTools(family=family)
    if choice == "none":
        return RequestedTools(family=family)
    names = [definition.name for definition in definitions]
    match choice:
        case NamedTool(function):
            places, is_required = [_place(names, function.name, f"tool_choice.{path}name")], True
        case AllowedToolChoice(allowed):
            places, is_required = _allowed(allowed, names, path), allowed.mode == "required"
        case _:
            places, is_required = list(range(len(names))), choice == "required"
    calls = ToolCalls(
        functions=tuple(
            Function(name=names[place], parameters=_parameters_text(definitions[place])) for place in places
        ),
        parallel=is_parallel is not False and family.is_parallel and not isinstance(choice, NamedTool),
        format=family.format,
        options=_ARGUMENT_OPTIONS,
    )
    return RequestedTools(
        constraint=calls if is_required else TextOrToolCalls(calls=calls),
        for_template=[_for_template(definition) for definition in definitions],
        family=family,
        places=tuple(places),
        path=path,
    )


def _check(definitions: Sequence[FunctionDefinition], limits: RequestLimits, path: str) -> None:
    if len(definitions) > limits.max_tools:
        raise bad_request(
            f"tools has {len(definitions)} entries; at most {limits.max_tools} are accepted",
            param="tools",
            code="limit_exceeded",
        )
    num_bytes = 0
    seen: set[str] = set()
    for index, definition in enumerate(definitions):
        where = f"tools[{index}].{path}"
        if not 0 < len(definition.name) <= _MAX_NAME_CHARACTERS or not _NAME_CHARACTERS.issuperset(definition.name):
            raise bad_request(
                f"{where}name is {definition.name[:100]!r}; it must have 1 to {_MAX_NAME_CHARACTERS} of the characters "
                "a-z, A-Z, 0-9, underscore and dash",
                param=f"{where}name",
            )
        if definition.name in seen:
            raise bad_request(f"two tools are named {definition.name!r}", param=f"{where}name")
        seen.add(definition.name)
        num_bytes += len(bytes(definition.parameters))
        check_size(
            "schemas of the tools", num_bytes, param=f"{where}parameters", max_schema_bytes=limits.max_schema_bytes
        )


def _allowed(allowed: AllowedTools, names: list[str], path: str) -> list[int]:
    where = "tool_choice.allowed_tools.tools" if path else "tool_choice.tools"
    if not allowed.tools:
        raise bad_request(f"{where} is empty; name at least one of the tools", param=where)
    places = [_place(names, tool.function.name, f"{where}[{i}].{path}name") for i, tool in enumerate(allowed.tools)]
    return sorted(set(places))


def _place(names: list[str], name: str, param: str) -> int:
    if name not in names:
        raise _unknown(name, names, param)
    return names.index(name)


def _unknown(name: str, names: list[str], param: str) -> ApiError:
    known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return bad_request(f"{param} is {name[:100]!r}, which is none of the tools: {known}", param=param)


def _parameters_text(definition: FunctionDefinition) -> str:
    text = bytes(definition.parameters).decode()
    return _NO_PARAMETERS if text == "null" else text


def _for_template(definition: FunctionDefinition) -> dict[str, object]:
    # Any: a schema is whatever JSON holds.
    parameters: Any = json.loads(_parameters_text(definition))
    function: dict[str, object] = {"name": definition.name}
    if definition.description is not None:
        function["description"] = definition.description
    return {"type": "function", "function": {**function, "parameters": parameters}}
