"""Patterns as Python's `re` reads them: its own parser's tree, in our terms."""

from __future__ import annotations

import functools
import importlib
import re
import threading
import warnings
from typing import Any

from specdec.grammars.errors import InvalidSchemaError, UnsupportedSchemaError
from specdec.grammars.pattern_sets import Ranges, as_ranges, complement, of_characters, python_class
from specdec.grammars.pattern_syntax import (
    ANY,
    END,
    START,
    Alternation,
    Characters,
    Concatenation,
    Look,
    Node,
    Repetition,
    choice,
    sequence,
    word_boundary,
)

_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip

_END_OR_LAST_NEWLINE = Look(
    Concatenation((Repetition(Characters(of_characters("\n")), 0, 1), END)), is_ahead=True, is_negative=False
)

_warnings_lock = threading.Lock()


def read_python_pattern(source: str) -> Node | None:
    """The pattern's tree, or None where `re` cannot compile it.

    The caller has bounded its depth. Raises UnsupportedSchemaError for back-references, InvalidSchemaError for what
    ECMA-262 cannot read.
    """
    # What is restored at the end belongs to the whole process: one thread at a time.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(source)
            tree = _parser().parse(source)
        except (re.error, OverflowError, RecursionError):
            return None
    if tree.state.flags & ~re.UNICODE:
        raise InvalidSchemaError(f"inline flags in the pattern {source!r} are not of ECMA-262", keyword="pattern")
    return _sequence(tree, source)


# The parser is re's own, and has no types.
@functools.cache
def _parser() -> Any:
    return importlib.import_module("re._parser")


def _sequence(tree: Any, source: str) -> Node:
    return sequence([_node(str(operator), operand, source) for operator, operand in tree])


def _node(operator: str, operand: Any, source: str) -> Node:
    if operator == "LITERAL":
        return Characters(as_ranges([(operand, operand)]))
    if operator == "NOT_LITERAL":
        return Characters(complement(as_ranges([(operand, operand)])))
    if operator == "ANY":
        return Characters(complement(of_characters("\n")))
    if operator == "IN":
        return Characters(_set(operand))
    if operator == "BRANCH":
        return choice([_sequence(branch, source) for branch in operand[1]])
    if operator == "SUBPATTERN":
        return _sequence(operand[3], source)
    if operator in {"MAX_REPEAT", "MIN_REPEAT"}:
        low, high, item = operand
        maximum = None if str(high) == "MAXREPEAT" else int(high)
        body = _sequence(item, source)
        return body if (low, maximum) == (1, 1) else Repetition(body, int(low), maximum)
    if operator in {"ASSERT", "ASSERT_NOT"}:
        direction, body = operand
        return Look(_sequence(body, source), is_ahead=direction > 0, is_negative=operator == "ASSERT_NOT")
    if operator == "AT":
        return _edge(str(operand))
    if operator == "FAILURE":
        # A negative look at nothing.
        return Characters(())
    if operator in {"GROUPREF", "GROUPREF_EXISTS"}:
        raise UnsupportedSchemaError(f"a back-reference in the pattern {source!r}", keyword="pattern")
    raise InvalidSchemaError(f"{operator} in the pattern {source!r} is not of ECMA-262", keyword="pattern")


def _edge(where: str) -> Node:
    if where in {"AT_BEGINNING", "AT_BEGINNING_STRING"}:
        return START
    if where == "AT_END":
        return _END_OR_LAST_NEWLINE
    if where == "AT_END_STRING":
        return END
    word = python_class(r"\w")
    boundary = word_boundary(word, is_negative=where == "AT_NON_BOUNDARY")
    if where == "AT_NON_BOUNDARY" and re.search(r"\B", "") is None:
        # Before 3.14 \B does not match in the empty string.
        sides = tuple(Look(ANY, is_ahead=is_ahead, is_negative=False) for is_ahead in (False, True))
        return Concatenation((Alternation(sides), boundary))
    return boundary


def _set(items: Any) -> Ranges:
    spans: list[tuple[int, int]] = []
    is_negative = False
    for operator, operand in items:
        name = str(operator)
        if name == "NEGATE":
            is_negative = True
        elif name == "LITERAL":
            spans.append((operand, operand))
        elif name == "RANGE":
            spans.append((operand[0], operand[1]))
        else:
            assert name == "CATEGORY", name
            spans.extend(python_class(_CATEGORIES[str(operand)]))
    ranges = as_ranges(spans)
    return complement(ranges) if is_negative else ranges
