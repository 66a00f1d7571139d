"""Validity: what a constrained answer may be once it is finished, judged by jsonschema.

Parsing is stricter than `json.loads`: a repeated key, a lone surrogate and a number that is not finite are violations,
though Python would take them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema
from jsonschema.protocols import Validator


def violation(text: str, schema: Mapping[str, Any]) -> str | None:
    """Why a text is no instance of the schema; None if it is one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"lone surrogate in the text at character {error.start}"
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "not JSON that can be parsed: nested too deeply"
    if (place := _lone_surrogate(value)) is not None:
        return f"lone surrogate in {place!r}"
    fault = jsonschema.exceptions.best_match(_validator(schema).iter_errors(value))
    return None if fault is None else f"{fault.json_path}: {fault.message}"


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


def _validator(schema: Mapping[str, Any]) -> Validator:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema)


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {repeated!r} is repeated")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is not finite as a float64")
    return value


def _lone_surrogate(value: object) -> str | None:
    """The first string, key or value, that has no UTF-8 form."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if any("\ud800" <= char <= "\udfff" for char in item):
                return ascii(item)
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item
    return None
