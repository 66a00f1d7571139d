"""Hostile schemas: every one is answered by a grammar or a named error, in bounded time and memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from vocabularies import small_vocabulary

from specdec.evals.hostile_schemas import HostileSchema, hostile_schemas
from specdec.grammars import (
    GrammarCompiler,
    InvalidSchemaError,
    LimitExceededError,
    Limits,
    UnsatisfiableSchemaError,
)
from specdec.grammars.combinations import known_combinations
from specdec.grammars.rules import FreeKeys, ObjectRule, Rule

_SCHEMAS = {schema.name: schema for schema in hostile_schemas()}
_GRAMMARS = (
    "pattern (a|b)*a(a|b){12}", "pattern nested quantifiers", "anyOf shared 2^16 times", "allOf shared 2^60 times",
    "not, 25 deep, around oneOf", "unevaluatedProperties over 2^6 cells", "items nested 500 deep",
    "allOf nested 300 deep", "not nested 500 deep", "const nested 900 deep", "multipleOf 1e308 and 1e-300",
    "const of 3,000 digits", "minLength 10^9", "minItems and maxItems 10^9", "minProperties 10^9",
    "contains from 10^6 to 10^6", "contains 2,000 times among 30,000 items", "enum of 5,000 strings",
    "uniqueItems over 5,000 strings", "required of 1,000 keys",
    "1,000 optional properties", "a constant of 1 MB", "20,000 definitions, 50 reached",
    "5,000 definitions, all reached", "NUL and lone surrogates",
)  # fmt: skip
_PREPARED = "anyOf of 12 objects with a large pattern each at one key"
"""What its positions need takes most of the time to compile, and none of the time to walk."""
_SLOW = {"20,000 definitions, all reached", "enum of 10,000 objects", "$dynamicRef among 12 resources"}
"""More than two seconds."""
_ERRORS = {
    "pattern (a|b)*a(a|b){30}": LimitExceededError,
    "pattern ((a{0,100}){0,100}){0,100}": LimitExceededError,
    "patternProperties, 200 of them overlapping": LimitExceededError,
    "allOf of 20 anyOf of 20": LimitExceededError,
    "enum of 3,000 objects, negated": LimitExceededError,
    "oneOf shared 2^16 times": UnsatisfiableSchemaError,
    "recursion without an end": UnsatisfiableSchemaError,
    "cyclic anyOf": InvalidSchemaError,
    "cyclic allOf": InvalidSchemaError,
    "cyclic if": InvalidSchemaError,
    "JSON nested 100,000 deep": LimitExceededError,
    "20,000 keys, the last one repeated": InvalidSchemaError,
}

if sys.platform != "linux":
    pytest.skip("memory is limited and measured by the means of Linux", allow_module_level=True)

from specdec.evals.hostile import MAX_PEAK_BYTES, MAX_SECONDS, failures_of  # noqa: E402
from specdec.evals.hostile_worker import HostileOutcome, HostileWorker  # noqa: E402


@pytest.fixture(scope="module")
def worker() -> Iterator[HostileWorker]:
    with HostileWorker() as worker:
        yield worker


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in _SCHEMAS]
)
def test_a_hostile_schema_is_answered_within_bounds(name: str, worker: HostileWorker) -> None:
    outcome = worker.run(_SCHEMAS[name])
    assert failures_of(_SCHEMAS[name], outcome) == []
    if name in _GRAMMARS:
        assert outcome.error is None
    if name == _PREPARED:
        assert outcome.slowest_token_seconds < 0.25 * outcome.compile_seconds
    if name in _ERRORS:
        assert outcome.error == _ERRORS[name].__name__


def test_combinations_that_are_known_are_those_of_all_alternatives_left() -> None:
    numbers = (b'"a"', b'"b"', b'"z"')
    rules = [
        _rule(_object(numbers[:2], [1, 2], free=5), _object(numbers[1:], [3, 4])),
        _rule(_object(numbers[:1], [5])),
        *[_rule(_object((), []))] * 4,
    ]
    # b is declared by both; a is declared by the first alone; z is free to the first; other keys are its own.
    assert set(known_combinations(rules)) == {(2, 3), (4, 5)}


def _object(keys: tuple[bytes, ...], children: list[int], free: int | None = None) -> ObjectRule:
    return ObjectRule(
        keys=keys,
        choices=tuple(((0, child),) for child in children),
        required=(False,) * len(keys),
        free=() if free is None else (FreeKeys(None, ((0, free),)),),
    )


def _rule(*objects: ObjectRule) -> Rule:
    return Rule(literals=(), numbers=None, strings=(), terms=(), objects=objects, arrays=())


def test_the_names_of_expectations_are_those_of_schemas() -> None:
    assert _SCHEMAS.keys() >= {*_GRAMMARS, *_ERRORS}


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (HostileOutcome(name="x", error="RecursionError", is_fault=True), "RecursionError"),
        (HostileOutcome(name="x", error=None, is_closed=True, compile_seconds=MAX_SECONDS + 1), "compiling took"),
        (HostileOutcome(name="x", error=None, is_closed=True, walk_seconds=MAX_SECONDS + 1), "a walk took"),
        (HostileOutcome(name="x", error="LimitExceededError", peak_bytes=MAX_PEAK_BYTES + 2**20), "1025 MiB"),
        (HostileOutcome(name="x", error=None, num_tokens=3000), "did not end"),
    ],
)
def test_what_is_out_of_bounds_is_a_failure(outcome: HostileOutcome, words: str) -> None:
    (failure,) = failures_of(HostileSchema(name="x", text="{}"), outcome)
    assert words in failure


def test_the_message_of_the_parsers_depth_does_not_blame_max_depth() -> None:
    compiler = GrammarCompiler(small_vocabulary(), limits=Limits(max_depth=5000))
    with pytest.raises(LimitExceededError, match="whatever max_depth is"):
        compiler.compile_json_schema(_SCHEMAS["JSON nested 100,000 deep"].text)


def test_definitions_that_are_not_reached_are_not_compiled() -> None:
    reached = _SCHEMAS["20,000 definitions, 50 reached"]
    compiler = GrammarCompiler(small_vocabulary(), limits=Limits(max_schema_bytes=16 * 2**20, max_nodes=102))
    compiler.compile_json_schema(reached.text)
