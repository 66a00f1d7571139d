"""SchemaLabels: what a suite says of its instances, and where the judge says otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from specdec.evals.schema_rendering import Renderer, UnrenderableError
from specdec.evals.schema_suite import SchemaCase, SchemaSuite
from specdec.grammars.judge import Judge, Registry, UnjudgeableError, documents_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """A case with the texts of its instances and the judge's word on each."""

    case: SchemaCase
    schema_text: str
    renderings: tuple[tuple[bytes, ...], ...]
    """None at all for an instance that has no text."""
    unrenderable: tuple[str | None, ...]
    contradicted: tuple[bool, ...]
    """Whether the judge contradicts the label; where it cannot judge, it does not."""


@dataclass(slots=True)
class SchemaLabels:
    cases: list[LabelledCase] = field(default_factory=list)
    contradictions: list[dict[str, object]] = field(default_factory=list)
    unjudged: list[dict[str, str]] = field(default_factory=list)
    """Schemas that the judge cannot apply."""

    @classmethod
    def of(cls, suite: SchemaSuite, on_case: Callable[[], None]) -> SchemaLabels:
        registry = documents_registry(suite.documents)
        labels = cls()
        for case in suite.cases:
            labels._add(case, suite, registry)
            on_case()
        return labels

    def _add(self, case: SchemaCase, suite: SchemaSuite, registry: Registry) -> None:
        renderer = Renderer(case.schema, suite.documents)
        judge = Judge(case.schema, assert_formats=case.format == "assert", registry=registry)
        renderings: list[tuple[bytes, ...]] = []
        unrenderable: list[str | None] = []
        contradicted: list[bool] = []
        unjudgeable = None
        for instance in case.instances:
            try:
                texts = renderer.renderings(instance.data)
                unrenderable.append(None)
            except UnrenderableError as error:
                texts = ()
                unrenderable.append(str(error))
            renderings.append(texts)
            contradicted.append(False)
            if not texts:
                continue
            try:
                violation = judge.violation(texts[0].decode())
            except UnjudgeableError as error:
                unjudgeable = str(error)
                continue
            if (violation is None) != instance.is_valid:
                contradicted[-1] = True
                self.contradictions.append(
                    {
                        "schema": case.name,
                        "test": instance.name,
                        "label": "valid" if instance.is_valid else "invalid",
                        "judge": violation or "valid",
                    }
                )
        if unjudgeable is not None:
            self.unjudged.append({"schema": case.name, "reason": unjudgeable})
        self.cases.append(
            LabelledCase(
                case=case,
                schema_text=json.dumps(case.schema),
                renderings=tuple(renderings),
                unrenderable=tuple(unrenderable),
                contradicted=tuple(contradicted),
            )
        )
