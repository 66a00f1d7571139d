"""Parameters: the arguments of a function, each by what it may be spelt with where they are written one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from specdec.grammars.constraints import ParameterFormat
from specdec.grammars.errors import LimitExceededError, UnsatisfiableSchemaError, UnsupportedSchemaError
from specdec.grammars.languages import Language
from specdec.grammars.parameter_kinds import ParameterKind
from specdec.grammars.raw_text_builder import RawTextBuilder, raw_bytes
from specdec.grammars.rules import ObjectRule, Rule
from specdec.grammars.strings import StringSet
from specdec.grammars.vocabulary import Vocabulary

MAX_PARAMETERS = 64
"""Of one function."""
MAX_END_STATES = 8192
"""Byte states of a string that follow the end of its parameter, which may begin anywhere in it."""

Restrict = Callable[[str, str], None]
"""Takes what is left out, and where in the schema."""


class Parameter(NamedTuple):
    """One that a call may have."""

    name: str
    is_required: bool
    value: Language | int
    """The texts that it may be, or the rule of what is written as JSON."""


def parameters_of(
    rule: Rule, rules: list[Rule], kinds: Mapping[str, ParameterKind], restrict: Restrict
) -> list[Parameter]:
    """The parameters of a function whose arguments satisfy a rule, in the order in which they are written.

    Rules of what is written as JSON are added to the others. UnsupportedSchemaError where what one parameter may be
    depends on another, UnsatisfiableSchemaError where a required one cannot be spelt.
    """
    object_rule = _one_object(rule)
    if len(object_rule.keys) > MAX_PARAMETERS:
        raise LimitExceededError(
            f"{len(object_rule.keys)} parameters; written one by one, the limit is {MAX_PARAMETERS} (max_parameters)",
            keyword="properties",
        )
    if object_rule.free:
        restrict("written one by one, no parameters but those that the schema names", "")
    found: list[Parameter] = []
    for key, choices, is_required in zip(object_rule.keys, object_rule.choices, object_rule.required, strict=True):
        if not choices:
            continue
        name: str = json.loads(b'"' + key)
        [(_, number)] = choices
        pointer = _pointer(name)
        kind = kinds.get(name, ParameterKind.TEXT)
        value = (
            _json(rules, number, pointer, restrict)
            if kind is ParameterKind.JSON
            else _texts(rules[number], kind, pointer, restrict)
        )
        if value is not None:
            found.append(Parameter(name, is_required, value))
        elif is_required:
            what = "values that are no strings" if kind is ParameterKind.JSON else "strings"
            raise UnsatisfiableSchemaError(
                f"the required parameter {name!r} is written by {what}, of which its schema allows none",
                keyword="properties",
                pointer=pointer,
            )
        else:
            restrict("never written: nothing that it may be can be spelt in this format", pointer)
    return found


def add_parameters(
    parameters: Sequence[Parameter],
    form: ParameterFormat,
    raw: RawTextBuilder,
    vocabulary: Vocabulary,
    *,
    end: bytes,
    done: int,
    restrict: Restrict,
) -> int:
    """The state before the first parameter, from which the call's end leads to `done`, once all required ones came."""
    places = [raw.state() for _ in range(len(parameters) + 1)]
    values = []
    for parameter, following in zip(parameters, places[1:], strict=True):
        pointer = _pointer(parameter.name)
        _check_name(parameter, form, vocabulary, pointer)
        if isinstance(parameter.value, int):
            after = raw.state()
            raw.literal(after, (form.end + form.after).encode(), following)
            values.append(raw.value(parameter.value, after))
            continue
        ended = raw.state()
        raw.literal(ended, form.after.encode(), following)
        has_breaks = parameter.value.num_states * len(form.end) <= MAX_END_STATES
        if not has_breaks:
            restrict(f"no text with {form.end[0]!r} in it: telling it from the end would take too many states", pointer)
        elif _may_hold(parameter.value, form.end):
            restrict(f"no text with {form.end!r} in it, which ends a parameter", pointer)
        if parameter.value.is_everything:
            values.append(raw.free_text(form.end.encode(), ended, may_end=False))
            continue
        values.append(raw.text_until(parameter.value, form.end.encode(), ended, may_hold_first=has_breaks))
    for index, place in enumerate(places):
        for parameter, value in zip(parameters[index:], values[index:], strict=True):
            raw.literal(place, (form.begin + parameter.name + form.name_end).encode(), value)
            if parameter.is_required:
                break
        else:
            raw.literal(place, end, done)
    return places[0]


def _pointer(name: str) -> str:
    """Where a parameter's schema stands in the function's."""
    return "/properties/" + name.replace("~", "~0").replace("/", "~1")


def _may_hold(language: Language, text: str) -> bool:
    """Whether a word of the language has the text somewhere in it."""
    for start in range(language.num_states):
        state = start
        for character in text:
            if not language.is_live(state):
                break
            state = language.step(state, ord(character))
        else:
            if language.is_live(state):
                return True
    return False


def _one_object(rule: Rule) -> ObjectRule:
    if len(rule.objects) != 1:
        raise UnsupportedSchemaError(
            "alternatives of arguments cannot be told apart where parameters are written one by one", keyword="anyOf"
        )
    [found] = rule.objects
    is_counted = found.min_properties > sum(found.required) or (
        found.max_properties is not None and found.max_properties < len(found.keys)
    )
    if is_counted or found.num_witnesses:
        raise UnsupportedSchemaError(
            "how many parameters there are cannot be enforced where they are written one by one",
            keyword="minProperties" if found.min_properties else "maxProperties",
        )
    return found


def _texts(rule: Rule, kind: ParameterKind, pointer: str, restrict: Restrict) -> Language | None:
    strings = StringSet(rule.terms, tuple(json.loads(b'"' + text) for text in rule.strings)).language()
    if kind is ParameterKind.TEXT_OR_NULL:
        null = Language.of(["null"])
        strings = strings | null if b"null" in rule.literals else strings - null
    others = [text for text in rule.literals if text != b"null" or kind is ParameterKind.TEXT]
    if others or rule.numbers is not None or rule.objects or rule.arrays:
        restrict("written one by one, a parameter that may be a string is one", pointer)
    return None if strings.is_empty else strings


def _json(rules: list[Rule], number: int, pointer: str, restrict: Restrict) -> int | None:
    rule = rules[number]
    if not (rule.strings or rule.terms):
        return number
    rule = replace(rule, strings=(), terms=())
    restrict("written one by one, a parameter that is first of all no string is none", pointer)
    if not (rule.literals or rule.numbers is not None or rule.objects or rule.arrays):
        return None
    rules.append(rule)
    return len(rules) - 1


def _check_name(parameter: Parameter, form: ParameterFormat, vocabulary: Vocabulary, pointer: str) -> None:
    name = raw_bytes(parameter.name, "properties", pointer)
    if form.name_end[0] in parameter.name:
        raise UnsupportedSchemaError(
            f"the parameter {parameter.name!r} holds {form.name_end[0]!r}, which ends a name in this format",
            keyword="properties",
            pointer=pointer,
        )
    if not vocabulary.spells(name):
        raise UnsatisfiableSchemaError(
            f"the vocabulary cannot spell the name of the parameter {parameter.name!r}",
            keyword="properties",
            pointer=pointer,
        )
