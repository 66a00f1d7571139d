"""Keywords about numbers and strings, and type: what satisfies them, and what certainly does not."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec

from specdec.grammars.constants import constants
from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsupportedSchemaError
from specdec.grammars.format_restrictions import FORMAT_RESTRICTIONS
from specdec.grammars.formats import FORMATS, format_language, format_outer, number_format
from specdec.grammars.languages import NOTHING, Language
from specdec.grammars.lowering import Lowering, unsupported
from specdec.grammars.numbers import NumberSet
from specdec.grammars.patterns import PatternLanguages, pattern_language, standard_language
from specdec.grammars.requirements import is_number, require_count, require_list
from specdec.grammars.schema import Json, Place, child_pointer, type_name
from specdec.grammars.strings import StringSet, bounded
from specdec.grammars.values import (
    ALL_VALUES,
    NO_VALUES,
    ValueSet,
)

_DIGITS = (
    "integers have no fraction or exponent and at most 18 digits; other numbers at most 15 significant digits, and an "
    "exponent only where every number is allowed"
)

_TWO_READINGS = (
    "strings on which ECMA-262 and Python's re differ are generated neither as matching the pattern nor as violating it"
)

_TYPES = {
    "null": ValueSet(null=True),
    "boolean": ValueSet(booleans=ALL_VALUES.booleans),
    "integer": ValueSet(numbers=NumberSet.INTEGERS),
    "number": ValueSet(numbers=ALL_VALUES.numbers),
    "string": ValueSet(strings=ALL_VALUES.strings),
    "object": ValueSet(objects=ALL_VALUES.objects),
    "array": ValueSet(arrays=ALL_VALUES.arrays),
}


def lower_type(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    pointer = child_pointer(place.pointer, "type")
    names = place.schema["type"] if isinstance(place.schema["type"], list) else [place.schema["type"]]
    if not names:
        raise InvalidSchemaError("type is an empty array", keyword="type", pointer=pointer)
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            raise InvalidSchemaError(f"{name!r} is not a JSON type", keyword="type", pointer=pointer)
        if name in {"integer", "number"}:
            lowering.restrict(_DIGITS, pointer)
    values = ValueSet.union([_TYPES[name] for name in names])
    if positive:
        return values
    return ValueSet(
        null=not values.null,
        booleans=frozenset() if values.booleans else ALL_VALUES.booleans,
        numbers=~values.numbers,
        strings=StringSet() if values.strings.terms else ALL_VALUES.strings,
        objects=() if values.objects else ALL_VALUES.objects,
        arrays=() if values.arrays else ALL_VALUES.arrays,
    )


def lower_enum(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    pointer = child_pointer(place.pointer, "enum")
    values = require_list(place.schema["enum"], pointer)
    if len(values) > lowering.limits.max_enum_values:
        raise LimitExceededError(
            f"enum has {len(values)} values; the limit is {lowering.limits.max_enum_values} (max_enum_values)",
            keyword="enum",
            pointer=pointer,
        )
    return constants(lowering, pointer, values, positive)


def lower_const(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    return constants(lowering, child_pointer(place.pointer, "const"), [place.schema["const"]], positive)


def lower_bound(keyword: str) -> Callable[[Lowering, Place, bool], ValueSet]:
    """minimum, maximum and their exclusive forms; the boolean ones are read beside what they modify."""
    exclusive_name = f"exclusive{keyword[0].upper()}{keyword[1:]}"

    def lower(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
        value = place.schema[keyword]
        exclusive = keyword.startswith("exclusive")
        if exclusive and isinstance(value, bool):
            if lowering.dialect.draft > 4 and lowering.dialect.is_named:
                raise InvalidSchemaError(
                    f"{keyword} is a boolean, not a number",
                    keyword=keyword,
                    pointer=child_pointer(place.pointer, keyword),
                )
            return ALL_VALUES if positive else NO_VALUES
        if not is_number(value):
            raise InvalidSchemaError(
                f"{keyword} is {type_name(value)}, not a number",
                keyword=keyword,
                pointer=child_pointer(place.pointer, keyword),
            )
        exclusive = exclusive or place.schema.get(exclusive_name) is True
        is_low = keyword.lower().endswith("minimum")
        if is_low:
            numbers = NumberSet.above(value) if exclusive else NumberSet.at_least(value)
        else:
            numbers = NumberSet.below(value) if exclusive else NumberSet.at_most(value)
        return _numbers(numbers, positive)

    return lower


def lower_multiple_of(_lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    value = place.schema["multipleOf"]
    if not is_number(value) or value <= 0:
        raise InvalidSchemaError(
            f"multipleOf is {value!r}, not a number above zero",
            keyword="multipleOf",
            pointer=child_pointer(place.pointer, "multipleOf"),
        )
    return _numbers(NumberSet.multiples_of(value), positive)


def _numbers(numbers: NumberSet, positive: bool) -> ValueSet:
    return msgspec.structs.replace(ALL_VALUES, numbers=numbers) if positive else ValueSet(numbers=~numbers)


def _strings(inner: StringSet, outer: StringSet, positive: bool) -> ValueSet:
    return msgspec.structs.replace(ALL_VALUES, strings=inner) if positive else ValueSet(strings=outer.complement())


def lower_length(keyword: str) -> Callable[[Lowering, Place, bool], ValueSet]:
    def lower(_lowering: Lowering, place: Place, positive: bool) -> ValueSet:
        count = require_count(place.schema[keyword], child_pointer(place.pointer, keyword))
        term = bounded(~NOTHING, count, None) if keyword == "minLength" else bounded(~NOTHING, 0, count)
        strings = StringSet(() if term is None else (term,))
        return _strings(strings, strings, positive)

    return lower


@functools.lru_cache(maxsize=1024)
def _pattern(source: str) -> PatternLanguages:
    return pattern_language(source)


def pattern_of(source: Json, place: Place, keyword: str) -> PatternLanguages:
    """The languages of a pattern that stands under a keyword."""
    pointer = child_pointer(place.pointer, keyword)
    if not isinstance(source, str):
        raise InvalidSchemaError(f"{keyword} is {type_name(source)}, not a string", keyword=keyword, pointer=pointer)
    try:
        return _pattern(source)
    except (InvalidSchemaError, UnsupportedSchemaError, LimitExceededError) as error:
        error.keyword = keyword
        error.pointer = pointer if keyword == "pattern" else child_pointer(pointer, source)
        raise


def narrow_pattern(lowering: Lowering, source: str, pointer: str, *, positive: bool) -> None:
    """Note in the report where the other reading of a pattern takes strings from ECMA-262's."""
    languages = _pattern(source)
    if (languages.inner if positive else languages.outer) != standard_language(source):
        lowering.approximate(_TWO_READINGS, pointer)


def lower_pattern(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    inner, outer = pattern_of(place.schema["pattern"], place, "pattern")
    narrow_pattern(lowering, place.schema["pattern"], child_pointer(place.pointer, "pattern"), positive=positive)
    return _strings(_strings_of(inner), _strings_of(outer), positive)


def asserts_format(lowering: Lowering, name: Json) -> bool:
    """Whether the options make the format constrain anything."""
    if lowering.options.format == "annotation" or not isinstance(name, str):
        return False
    return name in FORMATS or lowering.options.unknown_format == "refuse"


def lower_format(lowering: Lowering, place: Place, positive: bool) -> ValueSet:
    name = place.schema["format"]
    if not asserts_format(lowering, name):
        return ALL_VALUES if positive else NO_VALUES
    if name not in FORMATS:
        raise unsupported(f"the format {name!r} is not known, so it cannot be enforced", place, "format")
    pointer = child_pointer(place.pointer, "format")
    numbers = number_format(name)
    if numbers is not None:
        members = NumberSet.INTEGERS if numbers.integers_only else NumberSet.EVERYTHING
        if numbers.minimum is not None and numbers.maximum is not None:
            members &= NumberSet.at_least(numbers.minimum) & NumberSet.at_most(numbers.maximum)
        # The validators do not know these formats: what violates them is not certain to be refused.
        if positive:
            return _numbers(members, positive)
        lowering.approximate(f"nothing is generated in order to violate the format {name}", pointer)
        return NO_VALUES
    inner, outer = format_language(name), format_outer(name)
    assert inner is not None, "a format is of strings or of numbers"
    assert outer is not None, "a format of strings has both languages"
    if inner != outer:
        narrowing = FORMAT_RESTRICTIONS.get(name)
        lowering.approximate(None if narrowing is None else f"{name}: {narrowing}", pointer)
    return _strings(_strings_of(inner), _strings_of(outer), positive)


def _strings_of(language: Language) -> StringSet:
    term = bounded(language, 0, None)
    return StringSet(() if term is None else (term,))
