"""Tool calls as raw text: all but the arguments, which are a JSON value each, or parameters one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdec.grammars.constraints import ParameterFormat, ToolCallFormat, ToolCalls
from specdec.grammars.errors import GrammarError, InvalidSchemaError, UnsatisfiableSchemaError
from specdec.grammars.options import SchemaOptions
from specdec.grammars.parameters import Parameter, Restrict, add_parameters
from specdec.grammars.raw_text_builder import RawTextBuilder, raw_bytes
from specdec.grammars.spelling import spell_string
from specdec.grammars.vocabulary import Vocabulary


def check_calls(calls: ToolCalls) -> None:
    """InvalidSchemaError for functions that cannot be told apart and formats that cannot be parsed."""
    if not calls.functions:
        raise InvalidSchemaError("there is no function to call", keyword="functions", pointer="/functions")
    names = [function.name for function in calls.functions]
    for index, name in enumerate(names):
        if not name:
            raise InvalidSchemaError("a function without a name", keyword="name", pointer=f"/functions/{index}/name")
        if names.index(name) < index:
            raise InvalidSchemaError(
                f"two functions are named {name!r}", keyword="name", pointer=f"/functions/{index}/name"
            )
    form = calls.format
    if form.name_key == form.arguments_key:
        raise InvalidSchemaError(
            f"name_key and arguments_key are both {form.name_key!r}",
            keyword="arguments_key",
            pointer="/format/arguments_key",
        )
    if form.name_end is not None:
        _check_bare_names(calls, form.name_end)
    if form.parameters is not None:
        _check_parameter_format(form, form.parameters)
    if not form.begin.startswith(form.marker):
        raise InvalidSchemaError(
            f"begin, {form.begin!r}, does not start with the marker {form.marker!r}",
            keyword="marker",
            pointer="/format/marker",
        )
    if calls.parallel and form.is_list and (not form.separator or form.separator[:1] == form.end[:1]):
        raise InvalidSchemaError(
            "a separator and an end that begin alike, or an empty separator, cannot part the calls of a list",
            keyword="separator",
            pointer="/format/separator",
        )
    if calls.parallel and not form.separator + form.begin:
        raise InvalidSchemaError(
            "parallel calls need a separator, or text with which they begin",
            keyword="separator",
            pointer="/format/separator",
        )


def _check_parameter_format(form: ToolCallFormat, one: ParameterFormat) -> None:
    reason = None
    if form.name_end is None or not form.end:
        reason = "parameters one by one need a name_end before and an end behind them"
    elif not (one.begin and one.name_end and one.after):
        reason = "a parameter needs a begin, a name_end and something after its end"
    elif not one.end.isascii() or len(one.end) < 2 or one.end[0] in one.end[1:]:
        reason = "the end of a parameter is ASCII, of two characters or more, and its first one comes but once in it"
    elif one.begin.startswith(form.end) or form.end.startswith(one.begin):
        reason = "the begin of a parameter and the end of a call cannot be told apart"
    if reason is not None:
        raise InvalidSchemaError(reason, keyword="parameters", pointer="/format/parameters")


def _check_bare_names(calls: ToolCalls, name_end: str) -> None:
    if not name_end or calls.format.is_list:
        raise InvalidSchemaError(
            "bare names need a name_end, and a begin for each call", keyword="name_end", pointer="/format/name_end"
        )
    for index, function in enumerate(calls.functions):
        for part in (name_end, calls.format.begin, "{"):
            if part and part in function.name:
                raise InvalidSchemaError(
                    f"the name {function.name!r} holds {part!r}, which parts it from its arguments in this format",
                    keyword="name",
                    pointer=f"/functions/{index}/name",
                )


class Arguments(NamedTuple):
    """Of one function."""

    goal: int
    """Their rule."""
    parameters: Sequence[Parameter] | None
    """Where they are written one by one."""
    restrict: Restrict


def add_calls(
    calls: ToolCalls, arguments: Sequence[Arguments], raw: RawTextBuilder, vocabulary: Vocabulary
) -> tuple[int, int]:
    """The states before the first call and after its marker; `arguments` are those of each function.

    UnsatisfiableSchemaError where the vocabulary cannot spell the format or a name.
    """
    form = calls.format
    for name in ("begin", "name_end", "end", "after") if form.parameters is not None else ():
        if not vocabulary.spells(raw_bytes(getattr(form.parameters, name), name, f"/format/parameters/{name}")):
            raise UnsatisfiableSchemaError(
                f"the vocabulary cannot spell {name}", keyword=name, pointer=f"/format/parameters/{name}"
            )
    for name in ("begin", "end", "separator", "name_key", "arguments_key", "name_end"):
        if not vocabulary.spells(raw_bytes(getattr(form, name) or "", name, f"/format/{name}")):
            raise UnsatisfiableSchemaError(
                f"the vocabulary cannot spell {name}", keyword=name, pointer=f"/format/{name}"
            )
    writer = _Writer(raw, calls.options)
    before = raw.state()
    marked = raw.literal(before, form.text_end.encode())
    inside = raw.literal(marked, form.begin.removeprefix(form.text_end).encode())
    done = raw.state(accepting=True)
    end = form.end.encode()
    if form.name_end is not None:
        _add_bare_names(calls, form.name_end, arguments, raw, vocabulary, inside, done)
        return before, marked
    after_arguments = raw.state()
    closed = writer.token(writer.gap(after_arguments, b"\n"), b"}", None if end else done)
    if end:
        raw.literal(closed, end, done)
    if calls.parallel and form.is_list:
        raw.literal(closed, form.separator.encode(), inside)
    elif calls.parallel:
        raw.literal(done, (form.separator + form.begin).encode(), inside)
    name_key = writer.token(writer.gap(writer.token([inside], b"{"), b"\n  "), _spelt(form.name_key))
    names = writer.gap(writer.token(writer.gap(name_key), b":"), b" ")
    for index, (function, (goal, _, _)) in enumerate(zip(calls.functions, arguments, strict=True)):
        spelt = spell_string(function.name)
        if spelt is None or not vocabulary.spells(spelt):
            raise UnsatisfiableSchemaError(
                f"the vocabulary cannot spell the name of function {function.name!r}",
                keyword="name",
                pointer=f"/functions/{index}/name",
            )
        comma = writer.token(writer.gap(writer.token(names, b'"' + spelt)), b",")
        key = writer.token(writer.gap(comma, b"\n  "), _spelt(form.arguments_key))
        writer.token(writer.gap(key), writer.colon, raw.value(goal, after_arguments))
    return before, marked


def _add_bare_names(
    calls: ToolCalls,
    name_end: str,
    arguments: Sequence[Arguments],
    raw: RawTextBuilder,
    vocabulary: Vocabulary,
    inside: int,
    done: int,
) -> None:
    """From the state after a call's begin to `done`, and from there to the next call."""
    form = calls.format
    closed = done
    if form.end:
        closed = raw.state()
        raw.literal(closed, form.end.encode(), done)
    if calls.parallel:
        raw.literal(done, (form.separator + form.begin).encode(), inside)
    for index, (function, (goal, parameters, restrict)) in enumerate(zip(calls.functions, arguments, strict=True)):
        name = raw_bytes(function.name, "name", f"/functions/{index}/name")
        if not vocabulary.spells(name):
            raise UnsatisfiableSchemaError(
                f"the vocabulary cannot spell the name of function {function.name!r}",
                keyword="name",
                pointer=f"/functions/{index}/name",
            )
        if form.parameters is None or parameters is None:
            begun = raw.value(goal, closed)
        else:
            try:
                begun = add_parameters(
                    parameters, form.parameters, raw, vocabulary, end=form.end.encode(), done=done, restrict=restrict
                )
            except GrammarError as error:
                error.message = f"function {function.name!r}: {error.message}"
                error.pointer = f"/functions/{index}/parameters{error.pointer}"
                raise
        raw.literal(inside, name + name_end.encode(), begun)


def _spelt(key: str) -> bytes:
    spelt = spell_string(key)
    assert spelt is not None, "a key with a surrogate has been refused"
    return b'"' + spelt


class _Writer:
    """Tokens of JSON, with the whitespace between them that the options ask for."""

    def __init__(self, raw: RawTextBuilder, options: SchemaOptions) -> None:
        self._raw = raw
        self._options = options
        self.colon = b": " if options.whitespace == "pretty" else b":"
        """The colon before a value, which itself begins with the whitespace that is left to choose."""

    def token(self, sources: Sequence[int], text: bytes, target: int | None = None) -> int:
        """The state after a token that may begin in any of the states."""
        reached = self._raw.literal(sources[-1], text, target)
        for source in sources[:-1]:
            self._raw.copy(sources[-1], source, text[0])
        return reached

    def gap(self, source: int, pretty: bytes = b"") -> list[int]:
        """The states in which the whitespace after a token may end."""
        if self._options.whitespace == "flexible":
            return self._raw.blanks(source, self._options.max_whitespace)
        return [self._raw.literal(source, pretty if self._options.whitespace == "pretty" else b"")]
