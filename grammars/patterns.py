"""The keyword `pattern` as sets of strings: those in which ECMA-262 and Python's re both find a match, and either.

The standard is ECMA-262; the validators that judge answers use re. Where re cannot compile a pattern, ECMA-262 alone
decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from specdec.grammars.errors import GrammarError
from specdec.grammars.languages import Language
from specdec.grammars.pattern_automata import search_language, whole_language
from specdec.grammars.pattern_python import read_python_pattern
from specdec.grammars.pattern_reader import read_pattern
from specdec.grammars.pattern_syntax import Node


class PatternLanguages(NamedTuple):
    """The strings that surely match, and those that may."""

    inner: Language
    outer: Language


@functools.lru_cache(maxsize=1024)
def standard_language(source: str) -> Language:
    """The strings in which ECMA-262 alone finds a match; errors as of `pattern_language`, but for their place."""
    return search_language(read_pattern(source))


def pattern_language(source: str, *, pointer: str = "") -> PatternLanguages:
    """The strings somewhere in which the pattern matches.

    Raises InvalidSchemaError where ECMA-262 cannot read it, UnsupportedSchemaError for back-references and unknown
    Unicode properties, LimitExceededError where its automaton is too large.
    """
    return _pattern_languages(source, search_language, pointer)


def whole_pattern_language(source: str, *, pointer: str = "") -> PatternLanguages:
    """The strings that the pattern matches from beginning to end; raises what `pattern_language` does."""
    return _pattern_languages(source, whole_language, pointer)


def _pattern_languages(source: str, language_of: Callable[[Node], Language], pointer: str) -> PatternLanguages:
    try:
        tree = read_pattern(source)
        python_tree = read_python_pattern(source)
        ecma = standard_language(source) if language_of is search_language else language_of(tree)
        if python_tree is None or python_tree == tree:
            return PatternLanguages(ecma, ecma)
        python = language_of(python_tree)
        # One nearly always holds the other, and a difference needs fewer states than a union.
        if ecma <= python:
            return PatternLanguages(ecma, python)
        if python <= ecma:
            return PatternLanguages(python, ecma)
        return PatternLanguages(ecma & python, ecma | python)
    except GrammarError as error:
        error.keyword, error.pointer = "pattern", pointer
        raise
