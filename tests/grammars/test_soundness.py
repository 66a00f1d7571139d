"""Random schemas: what a grammar accepts are instances, and instances are accepted."""

from __future__ import annotations

import random

import pytest
from checks import check_against_validator
from hypothesis import given, settings
from hypothesis import strategies as st
from schemas import random_schema
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import GrammarCompiler, InvalidSchemaError, UnsatisfiableSchemaError


def _check(seed: int, vocabulary, **options) -> None:
    rng = random.Random(seed)
    schema = random_schema(rng)
    compiler = GrammarCompiler(vocabulary)
    try:
        compiler.compile_json_schema(schema)
    except (UnsatisfiableSchemaError, InvalidSchemaError):
        return
    check_against_validator(vocabulary, compiler, schema, rng, **options)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_walks_validate_and_instances_are_accepted(seed: int) -> None:
    _check(seed, small_vocabulary(), num_checked=4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_tokens_over_many_symbols_change_nothing(seed: int) -> None:
    _check(seed, merged_vocabulary(), num_checked=4, num_instances=3)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_walks_validate_over_many_schemas(seed: int) -> None:
    _check(seed, small_vocabulary(), num_checked=6, num_walks=6, num_instances=30)
