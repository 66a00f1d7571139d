"""Constraints: what a caller may ask of an output, as values that cross process and thread boundaries."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from specdec.grammars.options import DEFAULT_OPTIONS, SchemaOptions


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """An instance of a JSON Schema."""

    schema: str
    """JSON text."""
    options: SchemaOptions = DEFAULT_OPTIONS


class Regex(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A text that a pattern matches as a whole, in the dialects of `pattern` (ECMA-262 and Python `re` agree)."""

    pattern: str


class Choice(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """One of these texts."""

    choices: tuple[str, ...]


class Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that a model may call."""

    name: str
    parameters: str = '{"type":"object"}'
    """JSON text of the schema of its arguments, which are an object."""
    options: SchemaOptions | None = None
    """How this schema is read; None is as those of all calls, whose whitespace it has in any case."""


class ParameterFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How arguments are written one by one: begin, the name as it is, name_end, the value, end, after.

    A string is written as it is, null beside strings as `null`, and any other value as JSON (parameter_kinds.py).
    """

    begin: str = "<parameter="
    name_end: str = ">\n"
    end: str = "\n</parameter>"
    """Its first occurrence ends a value, so that no string holds it; ASCII, its first character comes but once."""
    after: str = "\n"


class ToolCallFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model family writes a call: begin, a JSON object that holds name and arguments, end.

    With a `name_end`, the name as it is, the name's end and the arguments take the object's place.
    """

    begin: str = "<tool_call>\n"
    end: str = "\n</tool_call>"
    separator: str = "\n"
    """Between parallel calls."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    marker: str = ""
    """The beginning of `begin` at which free text ends; empty is the whole of it."""
    is_list: bool = False
    """Whether parallel calls stand together between one begin and one end, instead of each between its own."""
    name_end: str | None = None
    """What stands between a bare name and its arguments; None where a JSON object holds both."""
    parameters: ParameterFormat | None = None
    """How the arguments after a bare name are written one by one; None where they are a JSON object."""

    @property
    def text_end(self) -> str:
        """Where free text ends and a call begins."""
        return self.marker or self.begin


HERMES = ToolCallFormat(marker="<tool_call>")
"""The format of Hermes and Qwen models, which most templates without one of their own follow."""
MISTRAL = ToolCallFormat(begin="[TOOL_CALLS] [", end="]", separator=", ", marker="[TOOL_CALLS]", is_list=True)
MISTRAL_ARGS = ToolCallFormat(begin="[TOOL_CALLS]", end="", separator="", name_end="[ARGS]")
"""Mistral's models from 2025 on."""
QWEN_XML = ToolCallFormat(
    begin="<tool_call>\n<function=",
    name_end=">\n",
    end="</function>\n</tool_call>",
    marker="<tool_call>",
    parameters=ParameterFormat(),
)
"""Qwen3-Coder."""
LLAMA_JSON = ToolCallFormat(begin="", end="", separator="; ", arguments_key="parameters")
"""Llama 3.1 and later: the call is the whole answer."""


class ToolCalls(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """One call of one of the functions; with `parallel` one or more."""

    functions: tuple[Function, ...]
    parallel: bool = False
    format: ToolCallFormat = HERMES
    options: SchemaOptions = DEFAULT_OPTIONS
    """How the schemas of the arguments are read, where a function has none of its own."""


class TextOrToolCalls(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Free text that may end in calls: what follows the first occurrence of the format's marker is enforced.

    Where the format has an empty `begin`, an answer that begins with a brace is calls, and any other is free text. With
    an `after` calls may come in free text as well, behind the first occurrence of that marker and whitespace.
    """

    calls: ToolCalls
    text: JsonSchema | None = None
    """What the answer satisfies where it is not calls from its beginning on: an object. None is any text."""
    after: str = ""


class AfterMarker(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Free text up to the first occurrence of a marker, the marker, then what satisfies `then`.

    For reasoning models (`</think>`). With `optional` the free text may also be the whole answer.
    """

    marker: str
    then: JsonSchema | Regex | Choice | ToolCalls | TextOrToolCalls
    optional: bool = False


Constraint: TypeAlias = JsonSchema | Regex | Choice | ToolCalls | AfterMarker | TextOrToolCalls
