"""FinalCheck: whether a finished answer satisfies its constraint, by the judge and not by the automaton.

Nothing of the compiler is used here, so that a fault of the compiler is one that this finds. The time that a check
takes has no bound (`re` backtracks, and so does a schema): check_process.py gives it one.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from specdec.grammars.constraints import (
    AfterMarker,
    Choice,
    Constraint,
    JsonSchema,
    ParameterFormat,
    Regex,
    TextOrToolCalls,
    ToolCalls,
)
from specdec.grammars.judge import (
    Judge,
    UnjudgeableError,
    at_any_depth,
    documents_registry,
    strict_scan,
)
from specdec.grammars.options import SchemaOptions
from specdec.grammars.parameter_kinds import ParameterKind, parameter_kinds

_JSON_WHITESPACE = frozenset(" \t\n\r")


class FinalCheck:
    """One constraint, ready to be applied to any number of answers."""

    def __init__(self, constraint: Constraint) -> None:
        self._violation = _violation_of(constraint)

    def violation(self, text: str) -> str | None:
        """Why a text does not satisfy the constraint; None if it does. UnjudgeableError where there is no saying."""
        return at_any_depth(text, lambda: self._violation(text))


_Violation = Callable[[str], str | None]


def _violation_of(constraint: Constraint) -> _Violation:
    match constraint:
        case JsonSchema(schema=schema, options=options):
            return _judge(schema, options).violation
        case Regex(pattern=pattern):
            return lambda text: _regex_violation(pattern, text)
        case Choice(choices=choices):
            return lambda text: None if text in choices else f"{_shown(text)} is none of the {len(choices)} choices"
        case ToolCalls():
            return _ToolCallsCheck(constraint).violation
        case AfterMarker(marker=marker, then=then, optional=is_optional):
            return _after_marker(marker, _violation_of(then), is_optional=is_optional)
        case TextOrToolCalls(calls=calls, text=JsonSchema() as text):
            return _object_or_tool_calls(calls, _violation_of(text))
        case TextOrToolCalls(calls=calls, after=after):
            return _text_or_tool_calls(calls, after)


def _judge(schema_text: str, options: SchemaOptions) -> Judge:
    # Any: a schema is whatever JSON holds.
    schema: Any = json.loads(schema_text)
    registry = documents_registry(options.documents)
    return Judge(schema, assert_formats=options.format == "assert", registry=registry)


def _regex_violation(pattern: str, text: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UnjudgeableError(f"Python's re does not read the pattern: {error}"[:300]) from error
    return None if compiled.fullmatch(text) else f"{_shown(text)} does not match the pattern as a whole"


def _after_marker(marker: str, violation_of_rest: _Violation, *, is_optional: bool) -> _Violation:
    def violation(text: str) -> str | None:
        _, found, rest = text.partition(marker)
        if not found:
            return None if is_optional else f"the marker {_shown(marker)} does not occur"
        why = violation_of_rest(rest)
        return None if why is None else f"after the marker: {why}"

    return violation


def _text_or_tool_calls(calls: ToolCalls, after: str) -> _Violation:
    check = _ToolCallsCheck(calls)

    def violation(text: str) -> str | None:
        marker = calls.format.text_end
        if not marker:
            if after and not text.startswith("{"):
                _, _, text = text.partition(after)
                text = text.lstrip("".join(_JSON_WHITESPACE))
            return check.violation(text) if text.startswith("{") else None
        _, found, rest = text.partition(marker)
        return check.violation(found + rest) if found else None

    return violation


def _object_or_tool_calls(calls: ToolCalls, violation_of_object: _Violation) -> _Violation:
    check = _ToolCallsCheck(calls)
    marker = calls.format.text_end
    return lambda text: check.violation(text) if text.startswith(marker) else violation_of_object(text)


class _ToolCallsCheck:
    """Begin, one JSON object, end; with `parallel` more of the same after a separator; nothing before or behind."""

    def __init__(self, calls: ToolCalls) -> None:
        self._format = calls.format
        self._kinds = {function.name: parameter_kinds(function.parameters) for function in calls.functions}
        self._is_parallel = calls.parallel
        self._judges = {
            function.name: _judge(function.parameters, function.options or calls.options)
            for function in calls.functions
        }

    def violation(self, text: str) -> str | None:
        place = number = 0
        while True:
            number += 1
            try:
                place, is_open = self._after_call(text, place, is_begun=number > 1 and self._format.is_list)
            except ValueError as error:
                return f"call {number}: {error}"
            if place == len(text) and not is_open:
                return None
            if not self._is_parallel:
                return f"something follows the one call: {_shown(text[place:])}"
            following = _after(self._format.separator, text, place)
            if following is None:
                return f"call {number} is followed by something that is no separator"
            place = following

    def _after_call(self, text: str, start: int, *, is_begun: bool) -> tuple[int, bool]:
        """Where the call that begins at a character ends, and whether the list that it stands in goes on there.

        Raises ValueError for what is no call of these functions.
        """
        begin = start if is_begun else _after(self._format.begin, text, start)
        if begin is None:
            raise ValueError(f"it does not begin with {_shown(self._format.begin)}")
        if self._format.name_end is not None:
            end = self._after_bare_name(text, begin, self._format.name_end)
        else:
            call, end = strict_scan(text, _after_whitespace(text, begin))
            self._check_call(call)
        if self._format.is_list and self._is_parallel and text.startswith(self._format.separator, end):
            return end, True
        # The end may itself begin with whitespace, and whitespace may stand before it.
        while (after := _after(self._format.end, text, end)) is None:
            if text[end : end + 1] not in _JSON_WHITESPACE:
                raise ValueError(f"its object is not followed by {_shown(self._format.end)}")
            end += 1
        return after, False

    def _after_bare_name(self, text: str, start: int, name_end: str) -> int:
        name, found, _ = text[start:].partition(name_end)
        if not found:
            raise ValueError(f"its name does not end with {_shown(name_end)}")
        if self._format.parameters is not None:
            kinds = self._kinds.get(name, {})
            arguments, end = _read_parameters(text, start + len(name) + len(name_end), self._format.parameters, kinds)
            self._check_arguments(name, arguments)
            return end
        arguments, end = strict_scan(text, _after_whitespace(text, start + len(name) + len(name_end)))
        self._check_arguments(name, arguments)
        return end

    # Any: whatever JSON holds.
    def _check_call(self, call: Any) -> None:
        name_key, arguments_key = self._format.name_key, self._format.arguments_key
        if not isinstance(call, dict) or call.keys() != {name_key, arguments_key}:
            raise ValueError(f"it is no object of {name_key!r} and {arguments_key!r} alone")
        self._check_arguments(call[name_key], call[arguments_key])

    # Any: whatever JSON holds.
    def _check_arguments(self, name: Any, arguments: Any) -> None:
        if not isinstance(name, str) or name not in self._judges:
            raise ValueError(f"{_shown(str(name))} is the name of no function")
        if not isinstance(arguments, dict):
            raise ValueError("its arguments are no object")  # noqa: TRY004, a fault of the text
        why = self._judges[name].violation_by(arguments)
        if why is not None:
            raise ValueError(f"the arguments of {name!r}: {why}")


# Any: values of parameters are whatever JSON holds.
def _read_parameters(
    text: str, start: int, form: ParameterFormat, kinds: Mapping[str, ParameterKind]
) -> tuple[dict[str, Any], int]:
    """The parameters that are written one by one from a character on, and where they end."""
    found: dict[str, Any] = {}
    while (begin := _after(form.begin, text, start)) is not None:
        name, has_name, _ = text[begin:].partition(form.name_end)
        begin += len(name) + len(form.name_end)
        value, has_end, _ = text[begin:].partition(form.end)
        after = _after(form.after, text, begin + len(value) + len(form.end))
        if not has_name or not has_end or after is None:
            raise ValueError(f"the parameter {_shown(name)} is not written to its end")
        if name in found:
            raise ValueError(f"the parameter {_shown(name)} comes twice")
        kind = kinds.get(name, ParameterKind.TEXT)
        if kind is ParameterKind.JSON:
            found[name], end = strict_scan(value, _after_whitespace(value, 0))
            if end != len(value):
                raise ValueError(f"the parameter {_shown(name)} is more than one value")
        else:
            found[name] = None if kind is ParameterKind.TEXT_OR_NULL and value == "null" else value
        start = after
    return found, start


def _after_whitespace(text: str, start: int) -> int:
    while text[start : start + 1] in _JSON_WHITESPACE:
        start += 1
    return start


def _after(expected: str, text: str, start: int) -> int | None:
    return start + len(expected) if text.startswith(expected, start) else None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")
