"""Program: what a constraint was compiled to: rules for its JSON values, and the raw text around them."""

from __future__ import annotations

from typing import NamedTuple

from specdec.grammars.layout import Layout
from specdec.grammars.raw_text import RawText
from specdec.grammars.report import EnforcementReport
from specdec.grammars.rules import Rule
from specdec.grammars.stopwatch import Stopwatch


class Program(NamedTuple):
    """The texts are the values of rule 0, or those of the raw text if there is one."""

    rules: list[Rule]
    canonical_goals: range | frozenset[int]
    """The rules of which every number has one spelling, and not only those of remembered items."""
    raw_text: RawText | None
    report: EnforcementReport
    num_bytes: int
    """Memory, roughly."""
    layout: Layout
    stopwatch: Stopwatch
    """Of the time that compiling has taken so far."""
