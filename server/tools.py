"""RequestedTools: which functions a request offers, which of them must, may or must not be called, and how."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from specdec import Function, JsonSchema, SchemaOptions, TextOrToolCalls, ToolCalls
from specdec.grammars import parameter_kinds
from specdec.server.call_families import CallFamily
from specdec.server.config import RequestLimits
from specdec.server.constraint import RequestedConstraint
from specdec.server.errors import ApiError, bad_request
from specdec.server.parameter_calls import ParameterCallReader
from specdec.server.response_format import check_size
from specdec.server.schema_options import schema_options
from specdec.server.tool_calls import CallReader
from specdec.server.tool_wire import AllowedToolChoice, AllowedTools, FunctionDefinition, NamedTool, Tool, ToolChoice

_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-")
_MAX_NAME_CHARACTERS = 64
_NO_PARAMETERS = '{"type":"object","properties":{},"additionalProperties":false}'
_ARGUMENT_OPTIONS = SchemaOptions(additional_properties="closed")
"""A function that is called with a parameter that it does not declare fails, so none is made up."""


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
    has_report: bool = False
    """Whether the answer shall carry the enforcement report: if one of the tools that may be called asks for it."""
    whitespace_param: str | None = None
    """The tool's field that says how calls are spaced, if one does."""

    def reader(self) -> CallReader | None:
        """For one choice; None where nothing can be called."""
        match self.constraint:
            case None:
                return None
            case ToolCalls() as calls:
                return self._reader(calls, "none")
            case TextOrToolCalls(calls=calls, text=text):
                return self._reader(calls, "before" if text is None else "instead")

    def _reader(self, calls: ToolCalls, text: Literal["none", "before", "instead"]) -> CallReader:
        form = calls.format
        if form.parameters is None:
            return CallReader(form, text=text, id_length=self.family.id_length)
        kinds = {function.name: parameter_kinds(function.parameters) for function in calls.functions}
        return ParameterCallReader(form, form.parameters, kinds, text=text, id_length=self.family.id_length)

    def beside(self, requested: RequestedConstraint) -> RequestedTools:
        """The same tools, with answers in text held to what the fields on text ask for.

        Where an answer must be a call there is no text. Raises ApiError for text that cannot be told from calls.
        """
        if requested.constraint is None or not isinstance(self.constraint, TextOrToolCalls):
            return self
        calls = self.constraint.calls
        if not isinstance(requested.constraint, JsonSchema) or not calls.format.text_end:
            field = requested.param.partition(".")[0]
            raise bad_request(
                f"{field} cannot be combined with tools that the model is free to call, where the answer is no JSON "
                "object, or this model writes calls as one; set tool_choice to none for an answer in this format, or "
                "to required for a call",
                param=field,
                code="conflicting_fields",
            )
        asked = requested.constraint.options
        if self.whitespace_param is not None and _whitespace(asked) != _whitespace(calls.options):
            raise bad_request(
                f"{self.whitespace_param} asks for other whitespace than {requested.param}; an answer has either",
                param=self.whitespace_param,
                code="conflicting_fields",
            )
        constraint = TextOrToolCalls(calls=_spaced(calls, asked), text=requested.constraint)
        return msgspec.structs.replace(self, constraint=constraint)

    def located(self, pointer: str) -> tuple[str, str]:
        """The field that a place in the constraint is of, one tool's or all tools', and the place in that."""
        parts = pointer.removeprefix("/calls").split("/", 4)[1:]
        if len(parts) > 2 and parts[0] == "functions" and parts[2] in {"name", "parameters"}:
            place = f"/{parts[3]}" if len(parts) > 3 else ""
            return f"tools[{self.places[int(parts[1])]}].{self.path}{parts[2]}", place
        return ("tools", pointer)


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
    options = _options(tools or (), limits)
    spacing, whitespace_param = _spacing(tools or (), options, places)
    calls = ToolCalls(
        functions=tuple(
            Function(name=names[place], parameters=_parameters_text(definitions[place]), options=options[place])
            for place in places
        ),
        parallel=is_parallel is not False and family.is_parallel and not isinstance(choice, NamedTool),
        format=family.format,
        options=_ARGUMENT_OPTIONS,
    )
    calls = _spaced(calls, spacing)
    return RequestedTools(
        constraint=calls if is_required else TextOrToolCalls(calls=calls),
        for_template=[
            _for_template(definition, f"tools[{i}].{path}parameters") for i, definition in enumerate(definitions)
        ],
        family=family,
        places=tuple(places),
        path=path,
        has_report=any(bool((tools or ())[place].report) for place in places),
        whitespace_param=whitespace_param,
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


def _options(tools: Sequence[Tool], limits: RequestLimits) -> list[SchemaOptions | None]:
    """Each tool's own. Raises SchemaError for documents beyond what the schemas leave of their limit."""
    num_bytes_left = limits.max_schema_bytes - sum(len(bytes(tool.function.parameters)) for tool in tools)
    found: list[SchemaOptions | None] = []
    for index, tool in enumerate(tools):
        if tool.options is None:
            found.append(None)
            continue
        documents = tool.options.documents or {}
        asked = schema_options(tool.options, param=f"tools[{index}].options", max_documents_bytes=num_bytes_left)
        num_bytes_left -= sum(len(uri.encode()) + len(bytes(document)) for uri, document in documents.items())
        is_open = tool.options.additional_properties == "schema"
        found.append(asked if is_open else msgspec.structs.replace(asked, additional_properties="closed"))
    return found


def _spacing(
    tools: Sequence[Tool], options: Sequence[SchemaOptions | None], places: Sequence[int]
) -> tuple[SchemaOptions, str | None]:
    """The options whose whitespace all calls have, and the field that says so. Raises ApiError if two fields differ."""
    spacing, param = _ARGUMENT_OPTIONS, None
    for place in places:
        own, given = options[place], tools[place].options
        if own is None or given is None or (given.whitespace is None and given.max_whitespace is None):
            continue
        if param is not None and _whitespace(own) != _whitespace(spacing):
            raise bad_request(
                f"tools[{place}].options asks for other whitespace than {param}; the calls of an answer have either",
                param=f"tools[{place}].options",
                code="conflicting_fields",
            )
        spacing, param = own, f"tools[{place}].options"
    return spacing, param


def _spaced(calls: ToolCalls, spacing: SchemaOptions) -> ToolCalls:
    """The calls with the whitespace of these options."""

    def spaced(options: SchemaOptions) -> SchemaOptions:
        return msgspec.structs.replace(options, whitespace=spacing.whitespace, max_whitespace=spacing.max_whitespace)

    functions = tuple(
        function if function.options is None else msgspec.structs.replace(function, options=spaced(function.options))
        for function in calls.functions
    )
    return msgspec.structs.replace(calls, functions=functions, options=spaced(calls.options))


def _whitespace(options: SchemaOptions) -> tuple[str, int]:
    return options.whitespace, options.max_whitespace


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


def _for_template(definition: FunctionDefinition, param: str) -> dict[str, object]:
    """`param` is the field of its parameters."""
    try:
        # Any: a schema is whatever JSON holds.
        parameters: Any = json.loads(_parameters_text(definition))
    except RecursionError:
        raise bad_request(f"{param} is nested too deeply", param=param) from None
    function: dict[str, object] = {"name": definition.name}
    if definition.description is not None:
        function["description"] = definition.description
    return {"type": "function", "function": {**function, "parameters": parameters}}
