"""EnforcementReport: what a compiled grammar guarantees and how its texts are narrower than the schema."""

from __future__ import annotations

import msgspec


class Restriction(msgspec.Struct, frozen=True, kw_only=True):
    """Some instances or spellings of the schema that the grammar never produces; always sound."""

    reason: str
    pointer: str


class EnforcementReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every keyword that was reached is either enforced or annotation only; all others were refused."""

    enforced: tuple[str, ...]
    """Constraint keywords, and fields of constraints that are no schema; each enforced wherever it occurs."""
    restrictions: tuple[Restriction, ...]
    annotations: tuple[str, ...]
    """Keywords that constrain nothing: annotations and names that are no JSON Schema keyword."""
