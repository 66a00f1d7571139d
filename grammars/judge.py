"""Judge: whether a text is an instance of a schema, and whether the schema can be judged at all.

Structure is jsonschema's: the dialect that `$schema` names, else 2020-12 after normalisation.py. Two things are ours.
`multipleOf` is exact on the decimals as they were written, where float division would be off (1.1 is a multiple of
0.1). Parsing is strict: a repeated key, a lone surrogate and a number that is not finite are violations, though Python
would take them. Formats are those of the 2020-12 checker in every dialect, where they are asserted; formats that it
does not know assert nothing. References lead to the documents given, and never to the network.
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import referencing
from referencing.jsonschema import DRAFT3, DRAFT4, DRAFT6, DRAFT7, DRAFT201909, DRAFT202012

from specdec.grammars.iri_syntax import jsonschema
from specdec.grammars.normalisation import normalised

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

# Schemas and instances are whatever JSON holds.
Json = Any
_Result = TypeVar("_Result")

_KNOWN_DIALECT = re.compile(r"https?://json-schema\.org/(draft-0[3467]|draft/20(?:19-09|20-12))/(?:hyper-)?schema#?")
_DIALECTS: dict[str, type[Validator]] = {
    "draft-03": jsonschema.Draft3Validator,
    "draft-04": jsonschema.Draft4Validator,
    "draft-06": jsonschema.Draft6Validator,
    "draft-07": jsonschema.Draft7Validator,
    "draft/2019-09": jsonschema.Draft201909Validator,
    "draft/2020-12": jsonschema.Draft202012Validator,
}
_SPECIFICATIONS = {
    "draft-03": DRAFT3,
    "draft-04": DRAFT4,
    "draft-06": DRAFT6,
    "draft-07": DRAFT7,
    "draft/2019-09": DRAFT201909,
    "draft/2020-12": DRAFT202012,
}
_DEEPEST = 10_000
_DEEP_STACK_BYTES = 512 * 2**20
_DEEP_RECURSION_LIMIT = 200_000
_one_at_a_time = threading.Lock()

# What jsonschema raises on a schema that it cannot apply: it does not check one before.
_SCHEMA_FAULTS = (
    jsonschema.exceptions.UnknownType,
    jsonschema.exceptions.UndefinedTypeCheck,
    referencing.exceptions.Unresolvable,
    re.error,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
)


class UnjudgeableError(Exception):
    """The judge cannot apply the schema: it has a pattern that is not Python's, a reference to nothing, or worse."""


class Numeral(float):
    """A number with a fraction or an exponent, as a double for all but `exact`: the decimal that was written."""

    __slots__ = ("exact",)
    exact: Decimal


class Judge:
    """One schema, ready to be applied to any number of texts."""

    def __init__(self, schema: Json, *, assert_formats: bool = True, registry: Registry | None = None) -> None:
        self._schema = schema
        self._assert_formats = assert_formats
        self._registry = documents_registry({}) if registry is None else registry
        self._built: Validator | None = None

    def violation(self, text: str) -> str | None:
        """Why a text is no instance; None if it is one. UnjudgeableError where there is no saying."""
        return at_any_depth(text, lambda: self._violation(text))

    def violation_by(self, value: Json) -> str | None:
        """The same of a value that `strict_loads` or `strict_scan` gave; RecursionError where it is too deep."""
        try:
            if self._built is None:
                self._built = _build(self._schema, assert_formats=self._assert_formats, registry=self._registry)
            fault = jsonschema.exceptions.best_match(self._built.iter_errors(value))
        except _SCHEMA_FAULTS as error:
            raise UnjudgeableError(f"{type(error).__name__}: {error}"[:300]) from error
        return None if fault is None else f"{fault.json_path}: {fault.message}"

    def _violation(self, text: str) -> str | None:
        try:
            value = strict_loads(text)
        except ValueError as error:
            return str(error)
        return self.violation_by(value)


def at_any_depth(text: str, judge: Callable[[], str | None]) -> str | None:
    """What `judge` says of a text, whatever room on the stack its nesting takes; a lone surrogate is a violation."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"lone surrogate in the text at character {error.start}"
    try:
        return judge()
    except RecursionError:
        pass
    if _depth(text) > _DEEPEST:
        return f"not JSON that can be parsed: nested too deeply, more than {_DEEPEST} levels"
    try:
        return _with_deep_stack(judge)
    except RecursionError:
        return "not JSON that can be judged: nested too deeply"


class Registry:
    """The documents that references may lead to.

    One that names no dialect is read in that of the schema, and is normalised like it where neither names one.
    """

    def __init__(self, documents: Mapping[str, Json]) -> None:
        self._documents = dict(documents)
        self._of_dialect: dict[str | None, referencing.Registry[Any]] = {}

    def documents(self, dialect: str | None) -> referencing.Registry[Any]:
        """What the referencing package calls a SchemaRegistry, for a schema of the dialect."""
        if dialect not in self._of_dialect:
            specification = _SPECIFICATIONS[dialect or "draft/2020-12"]
            resources = [
                (
                    uri,
                    referencing.Resource.from_contents(
                        normalised(document) if dialect is None and dialect_of(document) is None else document,
                        default_specification=specification,
                    ),
                )
                for uri, document in self._documents.items()
            ]
            self._of_dialect[dialect] = referencing.Registry().with_resources(resources).crawl()
        return self._of_dialect[dialect]


def documents_registry(documents: Mapping[str, Json]) -> Registry:
    """A few documents by URI, for any number of schemas."""
    return Registry(documents)


def dialect_of(schema: Json) -> str | None:
    """The dialect that `$schema` names, as "draft-07" or "draft/2020-12"; None where it names none that is known."""
    uri = schema.get("$schema") if isinstance(schema, dict) else None
    known = _KNOWN_DIALECT.fullmatch(uri) if isinstance(uri, str) else None
    return None if known is None else known[1]


def strict_loads(text: str) -> Json:
    """The value of a JSON text; ValueError where it is none, or where Python alone would take it."""
    try:
        value = _decoder().decode(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return _without_surrogates(value)


def strict_scan(text: str, start: int) -> tuple[Json, int]:
    """The value of the JSON that begins at a character, and where it ends; ValueError as `strict_loads`."""
    try:
        value, end = _decoder().raw_decode(text, start)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return _without_surrogates(value), end


@cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_numeral)


def _without_surrogates(value: Json) -> Json:
    if (place := _lone_surrogate(value)) is not None:
        raise ValueError(f"lone surrogate in {place!r}")
    return value


def _build(schema: Json, *, assert_formats: bool, registry: Registry) -> Validator:
    dialect = dialect_of(schema)
    if dialect is None:
        schema = normalised(schema)
    elif isinstance(schema, dict):
        # Where `$schema` is, jsonschema would put its own class in place of ours at every reference to the root.
        schema = {keyword: value for keyword, value in schema.items() if keyword != "$schema"}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER if assert_formats else None
    # Any: the stubs do not know the registry.
    make: Any = _validator_class(dialect or "draft/2020-12")
    validator: Validator = make(schema, registry=registry.documents(dialect), format_checker=checker)
    return validator


@cache
def _validator_class(dialect: str) -> type[Validator]:
    base = _DIALECTS[dialect]
    keyword = "divisibleBy" if dialect == "draft-03" else "multipleOf"
    # Any: the stubs know neither `extend`'s keyword functions nor that it gives a class of the protocol.
    extend: Any = jsonschema.validators.extend
    extended: type[Validator] = extend(base, {keyword: _multiple_of})
    return extended


# Any: jsonschema's signature of a keyword function.
def _multiple_of(validator: Any, divisor: Json, instance: Json, schema: Json) -> Iterator[jsonschema.ValidationError]:
    del schema
    if validator.is_type(instance, "number") and _exact(instance) % _exact(divisor):
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {divisor!r}")


def _exact(number: Json) -> Fraction:
    if isinstance(number, Numeral):
        return Fraction(number.exact)
    return Fraction(Decimal(repr(number))) if isinstance(number, float) else Fraction(number)


def _with_deep_stack(work: Callable[[], _Result]) -> _Result:
    """The result of work that recurses further than Python's limit, on a stack that has room for it."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001, raised again in the caller's thread
            errors.append(error)

    with _one_at_a_time:
        stack_bytes, limit = threading.stack_size(_DEEP_STACK_BYTES), sys.getrecursionlimit()
        # The limit holds for every thread; those of the caller are waiting here.
        sys.setrecursionlimit(_DEEP_RECURSION_LIMIT)
        try:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        finally:
            sys.setrecursionlimit(limit)
            threading.stack_size(stack_bytes)
    if errors:
        raise errors[0]
    return results[0]


def _depth(text: str) -> int:
    """Brackets that are open at once at most, those in strings left out."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*+"|[][{}]', text):
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in "]}":
            depth -= 1
    return deepest


def _object(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {repeated!r} is repeated")
    return value


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON number")


def _numeral(digits: str) -> Numeral:
    value = Numeral(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is not finite as a float64")
    exact = Decimal(digits)
    # Far below the smallest double, a decimal is zero to everyone, and too long to compute with.
    value.exact = exact if not exact or exact.adjusted() > -400 else Decimal(0)
    return value


def _lone_surrogate(value: Json) -> str | None:
    """The first string, key or value, that has no UTF-8 form."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if any("\ud800" <= char <= "\udfff" for char in item):
                return ascii(item)
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item
    return None
