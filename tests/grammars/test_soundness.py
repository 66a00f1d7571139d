"""Random schemas: what a grammar accepts are instances, and instances are accepted."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, Literal

import all_keywords
import dialect_schemas
import pytest
import schemas
from checks import check_against_judge, check_negation
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import (
    GrammarCompiler,
    InvalidSchemaError,
    LimitExceededError,
    SchemaOptions,
    UnsupportedSchemaError,
)
from specdec.grammars.judge import UnjudgeableError

_REFUSED = (InvalidSchemaError, LimitExceededError, UnsupportedSchemaError, UnjudgeableError)
"""References that lead in circles, combinations past a limit, and what cannot be enforced."""


def _num_checked(seeds: range, check: Callable[[random.Random], None]) -> int:
    num_refused = 0
    for seed in seeds:
        try:
            check(random.Random(seed))
        except _REFUSED:
            num_refused += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return len(seeds) - num_refused


def _check(seeds: range, random_schema: Callable[[random.Random], Any], **options: Any) -> None:
    vocabulary = options.pop("vocabulary", small_vocabulary())

    def check(rng: random.Random) -> None:
        check_against_judge(vocabulary, GrammarCompiler(vocabulary), random_schema(rng), rng, **options)

    assert _num_checked(seeds, check) > 0.8 * len(seeds)


def _check_negations(seeds: range) -> None:
    vocabulary = small_vocabulary()

    def check(rng: random.Random) -> None:
        check_negation(vocabulary, GrammarCompiler(vocabulary), all_keywords.random_definitions(rng), rng)

    assert _num_checked(seeds, check) > 0.8 * len(seeds)


def test_walks_validate_and_instances_are_accepted() -> None:
    _check(range(40), schemas.random_schema, num_checked=4)


def test_walks_validate_and_instances_are_accepted_with_every_keyword() -> None:
    _check(range(40), all_keywords.random_schema, num_checked=3)


@pytest.mark.parametrize("dialect", dialect_schemas.DIALECTS)
def test_walks_validate_and_instances_are_accepted_in_every_dialect(dialect: str | None) -> None:
    _check(range(40_000, 40_014), functools.partial(dialect_schemas.random_schema, dialect=dialect), num_checked=2)


@pytest.mark.slow
@pytest.mark.parametrize("whitespace", ["pretty", "flexible"])
def test_walks_validate_with_whitespace_in_every_dialect(whitespace: Literal["pretty", "flexible"]) -> None:
    options = SchemaOptions(whitespace=whitespace)
    for dialect in dialect_schemas.DIALECTS:
        random_schema = functools.partial(dialect_schemas.random_schema, dialect=dialect)
        _check(range(41_000, 41_008), random_schema, num_checked=4, num_instances=0, options=options)


def test_tokens_over_many_symbols_change_nothing() -> None:
    _check(range(1000, 1015), schemas.random_schema, vocabulary=merged_vocabulary(), num_checked=3, num_instances=3)
    _check(range(1015, 1030), all_keywords.random_schema, vocabulary=merged_vocabulary(), num_checked=3)


def test_every_value_is_an_instance_of_a_schema_or_of_its_negation_and_never_of_both() -> None:
    _check_negations(range(2000, 2025))


@pytest.mark.slow
def test_walks_validate_over_many_schemas() -> None:
    _check(range(10_000, 10_400), schemas.random_schema, num_checked=6, num_walks=6, num_instances=30)


@pytest.mark.slow
def test_walks_validate_over_many_schemas_with_every_keyword() -> None:
    _check(range(20_000, 20_800), all_keywords.random_schema, num_checked=4, num_walks=4, num_instances=20)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", dialect_schemas.DIALECTS)
def test_walks_validate_over_many_schemas_of_every_dialect(dialect: str | None) -> None:
    random_schema = functools.partial(dialect_schemas.random_schema, dialect=dialect)
    _check(range(50_000, 50_200), random_schema, num_checked=4, num_walks=4, num_instances=20)


@pytest.mark.slow
def test_negations_part_the_values_over_many_schemas() -> None:
    _check_negations(range(30_000, 30_500))
