"""Budget: walks that must close inside their budget, refusals below the minimum, and how near the minimum is.

A schema of the suite counts where it compiles and its minimum is known. A walk that meets an empty mask, that is not
complete when its budget is spent, or whose text does not validate is a failure, and so is a budget of one token less
than the minimum that is not refused by name. How often the minimum is the fewest tokens of all is a measurement.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from specdec.evals.budget_worker import BudgetWorker, WalksOfSchema
from specdec.evals.environment import describe_environment
from specdec.evals.result import EvalResult
from specdec.evals.schema_engine import CompileOptions
from specdec.evals.schema_suite import SchemaCase, SchemaSuite
from specdec.evals.shortest_answer import ShortestAnswer
from specdec.evals.terminal import Terminal
from specdec.evals.vocabularies import EvalVocabulary
from specdec.grammars.judge import Judge, UnjudgeableError, documents_registry

_MAX_NAMED = 20
_WALKS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class _Subject:
    """A schema that is walked and searched."""

    case: SchemaCase
    text: str
    options: CompileOptions
    minimum: int


def run_budget(
    suite: SchemaSuite,
    vocabulary: EvalVocabulary,
    *,
    num_schemas: int,
    num_walks: int,
    seed: int,
    search_seconds: float,
    terminal: Terminal,
) -> EvalResult:
    """No time is spent on the search where `search_seconds` is 0, and its figures are then left out."""
    environment = describe_environment()
    with BudgetWorker(vocabulary, suite.documents) as worker:
        chosen = _choose(suite, worker, num_schemas, seed, terminal)
        walks = _walk(chosen.subjects, suite, worker, num_walks, seed, terminal)
        tightness = _search(chosen.subjects, worker, search_seconds, terminal) if search_seconds else None
    failures = [*_first(chosen.failures, "schemas that failed"), *_first(walks.failures, "walks that failed")]
    if not chosen.subjects:
        failures.append("no schema of the suite compiles and has a known minimum")
    figures: dict[str, object] = {
        **walks.figures(),
        "schemas": len(chosen.subjects),
        "refused_below_minimum": chosen.num_refused_below,
        "left_out": chosen.left_out,
    }
    if tightness is not None:
        figures["tightness"] = tightness.figures()
    _show(figures, tightness, terminal)
    return EvalResult(
        eval_name="budget",
        failures=tuple(failures),
        warnings=(),
        settings={
            "suite": suite.path,
            "schemas": num_schemas,
            "walks": num_walks,
            "seed": seed,
            "search_seconds": search_seconds,
            "vocabulary": vocabulary.name,
            "vocabulary_size": vocabulary.size,
            "budgets": "drawn for each walk, from the schema's minimum to three times it",
        },
        figures=figures,
        environment=environment,
    )


@dataclass(slots=True)
class _Chosen:
    subjects: list[_Subject] = field(default_factory=list)
    num_refused_below: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Schemas that were looked at and have no grammar, or no known minimum."""
    failures: list[str] = field(default_factory=list)


def _choose(suite: SchemaSuite, worker: BudgetWorker, number: int, seed: int, terminal: Terminal) -> _Chosen:
    """So many schemas with a minimum, in an order drawn by the seed; fewer where the suite has no more."""
    order = list(suite.cases)
    random.Random(seed).shuffle(order)
    chosen = _Chosen()
    with terminal.progress("schemas", min(number, len(order))) as steps:
        for case in order:
            if len(chosen.subjects) == number:
                break
            steps.note(case.name[:60])
            text = json.dumps(case.schema)
            options = CompileOptions(format=case.format, with_documents=case.refers_to_documents)
            compiled = worker.compile(text, options)
            if compiled.minimum is None:
                chosen.left_out["fault" if compiled.is_fault else "refused"] += 1
                if compiled.is_fault:
                    chosen.failures.append(f"{case.name}: {compiled.refusal}")
                continue
            chosen.subjects.append(_Subject(case, text, options, compiled.minimum))
            chosen.num_refused_below += compiled.is_refused_below
            if not compiled.is_refused_below:
                chosen.failures.append(
                    f"{case.name}: a budget of {compiled.minimum - 1} is not refused with {compiled.minimum}"
                )
            steps.advance()
    return chosen


@dataclass(slots=True)
class _WalkCount:
    num_walks: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    num_valid: int = 0
    num_unjudged: int = 0
    num_at_budget: int = 0
    num_tokens: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, walked: WalksOfSchema, judge: Judge) -> None:
        if walked.fault is not None:
            self.failures.append(f"{name}: a walk ended with {walked.fault}")
        for walk in walked.walks:
            self.num_walks += 1
            self.ends[walk.end] += 1
            self.styles[walk.style] += 1
            self.num_tokens += walk.num_tokens
            self.num_at_budget += walk.num_tokens == walk.budget
            shown = f"{name}: a walk of {walk.num_tokens} tokens in a budget of {walk.budget}"
            if walk.end != "closed":
                self.failures.append(f"{shown} ended as {walk.end}: {walk.text[-200:]!r}")
                continue
            try:
                why = judge.violation(walk.text.decode(errors="surrogateescape"))
            except UnjudgeableError:
                self.num_unjudged += 1
                continue
            self.num_valid += why is None
            if why is not None:
                self.failures.append(f"{shown} does not validate, {why}: {walk.text[:200]!r}")

    def figures(self) -> dict[str, object]:
        return {
            "walks": self.num_walks,
            "closed": self.ends["closed"],
            "valid": self.num_valid,
            "unjudged": self.num_unjudged,
            "dead_ends": self.ends["dead_end"],
            "overruns": self.ends["overrun"],
            "disagreements": self.ends["disagreement"],
            "spent_to_the_last_token": self.num_at_budget,
            "tokens": self.num_tokens,
            "styles": dict(sorted(self.styles.items())),
        }


def _walk(
    subjects: Sequence[_Subject], suite: SchemaSuite, worker: BudgetWorker, number: int, seed: int, terminal: Terminal
) -> _WalkCount:
    """Walks spread evenly over the schemas, each judged."""
    registry = documents_registry(suite.documents)
    count = _WalkCount()
    with terminal.progress("walks", number if subjects else 0) as steps:
        for i, subject in enumerate(subjects):
            remaining = number // len(subjects) + (i < number % len(subjects))
            case = subject.case
            steps.note(case.name[:60])
            judge = Judge(case.schema, assert_formats=case.format == "assert", registry=registry)
            while remaining:
                num_asked = min(remaining, _WALKS_AT_ONCE)
                walk_seed = seed * 1_000_003 + i * 1_009 + remaining
                count.add(case.name, worker.walks(subject.text, subject.options, num_asked, walk_seed), judge)
                remaining -= num_asked
                for _ in range(num_asked):
                    steps.advance()
    return count


@dataclass(slots=True)
class _Tightness:
    num_tight: int = 0
    excesses: list[tuple[int, _Subject, ShortestAnswer]] = field(default_factory=list)
    """Of every schema that was decided."""
    undecided: list[tuple[_Subject, ShortestAnswer]] = field(default_factory=list)

    def add(self, subject: _Subject, found: ShortestAnswer) -> None:
        if found.num_tokens is None:
            self.undecided.append((subject, found))
            return
        excess = subject.minimum - found.num_tokens
        self.num_tight += excess == 0
        self.excesses.append((excess, subject, found))

    def figures(self) -> dict[str, object]:
        num_decided = len(self.excesses)
        excesses = [excess for excess, _, _ in self.excesses]
        worst = sorted((each for each in self.excesses if each[0]), key=lambda each: -each[0])
        return {
            "decided": num_decided,
            "undecided": len(self.undecided),
            "tight": self.num_tight,
            "share": self.num_tight / num_decided if num_decided else None,
            "largest_excess": max(excesses, default=None),
            "mean_excess": sum(excesses) / num_decided if num_decided else None,
            "worst": [
                {
                    "schema": subject.case.name,
                    "minimum": subject.minimum,
                    "true": found.num_tokens,
                    "text": (found.text or b"").decode(errors="replace")[:500],
                }
                for _, subject, found in worst[:_MAX_NAMED]
            ],
            "not_decided": [
                {"schema": subject.case.name, "minimum": subject.minimum, "at_least": found.at_least, "why": found.why}
                for subject, found in self.undecided
            ],
        }


def _search(subjects: Sequence[_Subject], worker: BudgetWorker, seconds: float, terminal: Terminal) -> _Tightness:
    tightness = _Tightness()
    with terminal.progress("shortest answers", len(subjects)) as steps:
        for subject in subjects:
            steps.note(subject.case.name[:60])
            tightness.add(subject, worker.shortest(subject.text, subject.options, seconds))
            steps.advance()
    return tightness


def _first(failures: Sequence[str], what: str) -> Iterator[str]:
    yield from failures[:_MAX_NAMED]
    if len(failures) > _MAX_NAMED:
        yield f"{len(failures) - _MAX_NAMED} more {what}"


_COLUMNS = (
    "schemas", "refused_below_minimum", "walks", "closed", "valid", "unjudged", "dead_ends", "overruns",
    "disagreements", "tokens",
)  # fmt: skip


def _show(figures: dict[str, object], tightness: _Tightness | None, terminal: Terminal) -> None:
    terminal.table("budgets", ("what", "number"), ((name.replace("_", " "), str(figures[name])) for name in _COLUMNS))
    if tightness is None:
        return
    found = tightness.figures()
    names = ("decided", "undecided", "tight", "share", "largest_excess", "mean_excess")
    cells = (f"{found[name]:.3f}" if isinstance(found[name], float) else str(found[name]) for name in names)
    terminal.table(
        "the minimum beside the fewest tokens of any answer",
        ("what", "number"),
        zip((name.replace("_", " ") for name in names), cells, strict=True),
    )
