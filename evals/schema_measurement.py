"""SchemaMeasurement: one engine over the labelled cases of a suite."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from specdec.evals.schema_count import Outcome, SchemaCount
from specdec.evals.schema_engine import CompileOptions
from specdec.evals.schema_labels import LabelledCase
from specdec.evals.schema_worker import Answer, Compiled, SchemaWorker

_COMPILED = "(compiled)"


@dataclass(slots=True)
class SchemaMeasurement:
    total: SchemaCount = field(default_factory=SchemaCount)
    by_keyword: defaultdict[str, SchemaCount] = field(default_factory=lambda: defaultdict(SchemaCount))
    """By file of the official suite; elsewhere by the keyword or reason of a refusal, and what compiled together."""
    refusals: Counter[str] = field(default_factory=Counter)
    refused: list[dict[str, str]] = field(default_factory=list)
    wrong: list[dict[str, str]] = field(default_factory=list)
    disputed: list[dict[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Where the engine neither answered nor refused: out of time, crashed, or an error that is no refusal."""
    num_second_renderings: int = 0
    """Instances whose first rendering is refused and whose second one is accepted."""
    compile_ms: list[float] = field(default_factory=list)
    """Of schemas that compiled or that ran out of time."""
    refusal_ms: list[float] = field(default_factory=list)
    compiled_cases: list[LabelledCase] = field(default_factory=list)

    @classmethod
    def of(
        cls, cases: Sequence[LabelledCase], worker: SchemaWorker, on_case: Callable[[str], None]
    ) -> SchemaMeasurement:
        measurement = cls()
        for labelled in cases:
            on_case(labelled.case.name)
            texts = [each for each in labelled.renderings if each]
            compiled = worker.run(labelled.schema_text, options_of(labelled), texts)
            measurement._add(labelled, compiled)
        return measurement

    def _add(self, labelled: LabelledCase, compiled: Compiled) -> None:
        case, refusal = labelled.case, compiled.refusal
        is_called_unsatisfiable = refusal is not None and refusal.is_unsatisfiable
        has_valid = any(instance.is_valid for instance in case.instances)
        if refusal is None:
            self.compile_ms.append(compiled.milliseconds)
            self.compiled_cases.append(labelled)
            outcomes = list(self._outcomes(labelled, compiled.answers))
            key = _COMPILED
        else:
            (self.compile_ms if refusal.is_fault else self.refusal_ms).append(compiled.milliseconds)
            self.refusals[refusal.reason] += 1
            self.refused.append({"schema": case.name, "reason": refusal.reason, "message": refusal.message})
            if refusal.is_fault:
                self.faults.append(f"{case.name}: {refusal.message}")
            outcomes = ["refused_at_compile"] * len(case.instances)
            key = refusal.keyword or refusal.reason
        if is_called_unsatisfiable:
            self.wrong += [
                {"schema": case.name, "test": instance.name, "kind": "called_unsatisfiable", "reason": refusal.message}
                for instance, is_contradicted in zip(case.instances, labelled.contradicted, strict=True)
                if instance.is_valid and not is_contradicted and refusal is not None
            ]
        for count in (self.total, self.by_keyword[case.group or key]):
            count.add(
                outcomes,
                is_compiled=refusal is None,
                is_rightly_unsatisfiable=is_called_unsatisfiable and not has_valid,
            )

    def _outcomes(self, labelled: LabelledCase, answers: Sequence[Answer]) -> Iterator[Outcome]:
        remaining = iter(answers)
        for instance, unrenderable, is_contradicted in zip(
            labelled.case.instances, labelled.unrenderable, labelled.contradicted, strict=True
        ):
            answer = next(remaining) if unrenderable is None else Answer(rendering=None, refusal=unrenderable)
            if answer.is_fault:
                self.faults.append(f"{labelled.case.name}, {instance.name}: {answer.refusal}")
                yield "faulted"
                continue
            is_accepted = answer.rendering is not None
            self.num_second_renderings += answer.rendering == 1
            if is_accepted == instance.is_valid:
                yield "right"
                continue
            kind: Outcome = "invalid_accepted" if is_accepted else "valid_refused"
            entry = {
                "schema": labelled.case.name,
                "test": instance.name,
                "kind": kind,
                "reason": answer.refusal or "accepted",
            }
            if is_contradicted:
                self.disputed.append(entry)
                yield "disputed"
                continue
            self.wrong.append(entry)
            yield kind

    def figures(self) -> dict[str, object]:
        return {
            "total": self.total,
            "by_keyword": dict(sorted(self.by_keyword.items())),
            "refusals": dict(self.refusals.most_common()),
            "wrong": self.wrong,
            "disputed": self.disputed,
            "refused": self.refused,
            "faults": self.faults,
            "second_renderings_accepted": self.num_second_renderings,
            "compile_ms": percentiles(self.compile_ms),
            "refusal_ms": percentiles(self.refusal_ms),
        }


def options_of(labelled: LabelledCase) -> CompileOptions:
    """How a case is to be compiled."""
    return CompileOptions(format=labelled.case.format, with_documents=labelled.case.refers_to_documents)


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """By nearest rank, so that each is a value that was measured."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p95": None, "max": None}
    rank = {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in (("p50", 0.5), ("p95", 0.95))}
    return {**{name: round(value, 3) for name, value in rank.items()}, "max": round(ordered[-1], 3)}
