"""Validity: constrained answers by how they ended, and whether those that stopped are instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specdec.grammars.judge import Judge, UnjudgeableError


def violation(text: str, schema: Mapping[str, Any]) -> str | None:
    """Why a text is no instance of the schema, formats included; None if it is one.

    An answer that cannot be judged is not known to be valid, so that is a violation too.
    """
    try:
        return Judge(schema).violation(text)
    except UnjudgeableError as error:
        return f"cannot be judged: {error}"


@dataclass(slots=True)
class ValidityCount:
    """Constrained answers by how they ended; those that stopped are all judged."""

    num_answers: int = 0
    num_valid: int = 0
    num_cut_by_length: int = 0
    violations: list[dict[str, str]] = field(default_factory=list)
    """A finished answer that does not validate, or one that ended for a reason it must not end for."""
    finish_reasons: Counter[str] = field(default_factory=Counter)

    def add(self, *, name: str, text: str, finish_reason: str, schema: Mapping[str, Any]) -> None:
        self.num_answers += 1
        self.finish_reasons[finish_reason] += 1
        if finish_reason == "length":
            self.num_cut_by_length += 1
            return
        why = violation(text, schema) if finish_reason == "stop" else f"finish_reason is {finish_reason}"
        if why is None:
            self.num_valid += 1
        else:
            self.violations.append({"task": name, "why": why, "text": text[:2000]})

    @property
    def is_clean(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, object]:
        return {
            "num_answers": self.num_answers,
            "num_valid": self.num_valid,
            "num_cut_by_length": self.num_cut_by_length,
            "num_violations": len(self.violations),
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            "violations": self.violations,
        }
