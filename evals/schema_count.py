"""SchemaCount: labelled instances by what an engine made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["right", "invalid_accepted", "valid_refused", "refused_at_compile", "disputed", "faulted"]
"""`disputed`: the engine disagrees with the label, and so does the judge. `faulted`: it gave no answer."""


@dataclass(slots=True)
class SchemaCount:
    """`tests` is the sum of the six outcomes."""

    tests: int = 0
    right: int = 0
    invalid_accepted: int = 0
    valid_refused: int = 0
    refused_at_compile: int = 0
    disputed: int = 0
    faulted: int = 0
    refused_as_unsatisfiable: int = 0
    """Of `right`: the engine said of the schema that no instance is valid, and none of the labelled ones is."""
    schemas: int = 0
    compiled: int = 0
    fully_right: int = 0
    """Schemas that compiled, and no instance of which is wrongly accepted or refused, or that rightly have none."""

    def add(self, outcomes: list[Outcome], *, is_compiled: bool, is_rightly_unsatisfiable: bool) -> None:
        """One schema with the outcomes of its instances."""
        self.tests += len(outcomes)
        self.schemas += 1
        if is_rightly_unsatisfiable:
            self.right += len(outcomes)
            self.refused_as_unsatisfiable += len(outcomes)
            self.fully_right += 1
            return
        self.right += outcomes.count("right")
        self.invalid_accepted += outcomes.count("invalid_accepted")
        self.valid_refused += outcomes.count("valid_refused")
        self.refused_at_compile += outcomes.count("refused_at_compile")
        self.disputed += outcomes.count("disputed")
        self.faulted += outcomes.count("faulted")
        self.compiled += is_compiled
        self.fully_right += is_compiled and all(outcome in {"right", "disputed"} for outcome in outcomes)

    def cells(self) -> tuple[str, ...]:
        """For a table with the columns of COLUMNS."""
        return tuple(str(getattr(self, column.replace(" ", "_"))) for column in COLUMNS)


COLUMNS = (
    "schemas",
    "compiled",
    "fully right",
    "tests",
    "right",
    "invalid accepted",
    "valid refused",
    "refused at compile",
    "disputed",
    "faulted",
)
