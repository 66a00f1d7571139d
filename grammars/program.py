"""Program: what a constraint was compiled to: rules for its JSON values, and the raw text around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from specdec.grammars.layout import Layout
from specdec.grammars.raw_text import RawText
from specdec.grammars.report import EnforcementReport
from specdec.grammars.rules import Rule
from specdec.grammars.scalar_automata import ScalarAutomata


@dataclass(frozen=True, slots=True)
class ShortTexts:
    """What is known of short values before any text is walked (short_values.py)."""

    most_per_frame: int | None = None
    """No fewer bytes than what was begun of any frame takes to end; None where that was not worked out."""
    of_rules: dict[bool, dict[int, bytes | None]] = field(default_factory=dict)
    """Short values by number of the rule, for canonical numbers and for others; None where all are too long."""


class Program(NamedTuple):
    """The texts are the values of rule 0, or those of the raw text if there is one."""

    rules: list[Rule]
    canonical_goals: range | frozenset[int]
    """The rules of which every number has one spelling, and not only those of remembered items."""
    raw_text: RawText | None
    report: EnforcementReport
    layout: Layout
    automata: ScalarAutomata
    """Of the scalars in the rules."""
    short_texts: ShortTexts
    num_bytes: int
    """Memory, roughly."""
