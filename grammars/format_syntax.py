"""The syntax of one string format, as regular expressions that ECMA-262 and Python's `re` read alike."""

from __future__ import annotations

import msgspec


class FormatSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """Two bounds of what a format means, for its definitions and the validators that judge it differ in places.

    The inner one is what all of them call valid, the outer one at least what any of them does. Both are matched
    against the whole string.
    """

    inner: str
    within: str | None = None
    """A pattern that the inner strings also match, as a search."""
    outer: str | None = None
    """None stands for every string, unless the inner one is exact."""
    is_exact: bool = False
    """The outer strings are the inner ones."""
