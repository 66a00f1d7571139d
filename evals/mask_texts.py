"""MaskTexts: the valid instances of a suite as tokens, the same tokens for every engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from specdec.evals.mask_worker import TokenIds
from specdec.evals.schema_rendering import Renderer, UnrenderableError
from specdec.evals.schema_suite import SchemaCase, SchemaSuite
from specdec.evals.vocabularies import EvalVocabulary, Splitter


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedCase:
    """A case with the tokens of its valid instances, each by its renderings; end-of-sequence is the last of them."""

    case: SchemaCase
    schema_text: str
    texts: tuple[tuple[TokenIds, ...], ...]


@dataclass(slots=True)
class MaskTexts:
    cases: list[TokenizedCase] = field(default_factory=list)
    """Those with at least one text."""
    num_texts: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Valid instances without tokens, by reason."""

    @classmethod
    def of(
        cls, suite: SchemaSuite, vocabulary: EvalVocabulary, splitter: Splitter, on_case: Callable[[], None]
    ) -> MaskTexts:
        found = cls()
        for case in suite.cases:
            found._add(case, suite, vocabulary, splitter)
            on_case()
        return found

    def _add(self, case: SchemaCase, suite: SchemaSuite, vocabulary: EvalVocabulary, splitter: Splitter) -> None:
        renderer = Renderer(case.schema, suite.documents)
        texts: list[tuple[TokenIds, ...]] = []
        for instance in case.instances:
            if not instance.is_valid:
                continue
            try:
                renderings = renderer.renderings(instance.data)
            except UnrenderableError:
                self.left_out["it has no JSON text"] += 1
                continue
            tokens = [tuple(splitter.token_ids(text)) for text in renderings]
            if not all(vocabulary.joins_to(ids, text) for ids, text in zip(tokens, renderings, strict=True)):
                self.left_out["the vocabulary's tokens do not spell it"] += 1
                continue
            texts.append(tuple((*ids, vocabulary.eos_token_ids[0]) for ids in tokens))
        if texts:
            self.num_texts += len(texts)
            self.cases.append(TokenizedCase(case=case, schema_text=json.dumps(case.schema), texts=tuple(texts)))
