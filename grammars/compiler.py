"""GrammarCompiler: schemas in, grammars out, for one vocabulary."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from specdec.grammars import language_kernels
from specdec.grammars.constraints import Constraint, JsonSchema
from specdec.grammars.errors import UnsupportedSchemaError
from specdec.grammars.goals import compile_rules
from specdec.grammars.grammar import Grammar, Runtime
from specdec.grammars.layout import layout_of
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.limits import Limits
from specdec.grammars.lowering import Lowering
from specdec.grammars.mask_table import MaskTable
from specdec.grammars.masks import StringBodies
from specdec.grammars.options import DEFAULT_OPTIONS, SchemaOptions
from specdec.grammars.pattern_kernels import load_determinise
from specdec.grammars.rules import Rule
from specdec.grammars.schema import SchemaDocument, schema_text
from specdec.grammars.vocabulary import Vocabulary

_DEFAULT_LIMITS = Limits()


class GrammarCompiler:
    """Owns the mask table shared by all its grammars and a bounded cache of them by schema; thread-safe.

    `cache_hits`, `cache_misses` and `compile_seconds` (of the misses) only grow.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        limits: Limits = _DEFAULT_LIMITS,
        max_cache_entries: int = 512,
        max_cache_bytes: int = 128 * 1024 * 1024,
        max_mask_table_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self.vocabulary = vocabulary
        self.limits = limits
        self.mask_table = MaskTable(vocabulary, max_bytes=max_mask_table_bytes)
        # Whatever has to be compiled to machine code is now, and not while a request waits.
        language_kernels.load_kernels()
        load_determinise()
        self._lexicon = Lexicon(vocabulary.spellable_bytes)
        self._runtime = Runtime(vocabulary, self.mask_table, self._lexicon, StringBodies(vocabulary, self._lexicon))
        self._max_cache_entries = max_cache_entries
        self._max_cache_bytes = max_cache_bytes
        self._lock = threading.Lock()
        self._grammars: OrderedDict[bytes, tuple[Grammar, int]] = OrderedDict()
        self._cache_bytes = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.compile_seconds = 0.0

    @property
    def cache_entries(self) -> int:
        return len(self._grammars)

    @property
    def num_computed_masks(self) -> int:
        """How many masks were computed, for any grammar, rather than found in a cache; only grows."""
        return self._runtime.num_computed_masks

    # A schema is any JSON value that a caller parsed; its shape is what compiling checks.
    def compile_json_schema(
        self, schema: str | Mapping[str, Any] | bool, options: SchemaOptions = DEFAULT_OPTIONS
    ) -> Grammar:
        """The grammar of the schema's instances; GrammarError where there is none. A str is JSON text."""
        begin = time.perf_counter()
        text = schema_text(schema, self.limits)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass") + msgspec.json.encode(options)).digest()
        with self._lock:
            entry = self._grammars.get(digest)
            if entry is not None:
                self.cache_hits += 1
                self._grammars.move_to_end(digest)
                return entry[0]
            self.cache_misses += 1
        try:
            document = SchemaDocument(text, self.limits, options.documents)
            lowering = Lowering(document, self.limits, options)
            rules = compile_rules(lowering, self._lexicon)
            grammar = Grammar(
                rules,
                lowering.report,
                self._runtime,
                canonical_numbers=document.has_canonical_numbers,
                layout=layout_of(options),
            )
            grammar.prepare(lowering.stopwatch)
        finally:
            with self._lock:
                self.compile_seconds += time.perf_counter() - begin
        self._keep(digest, grammar, len(text) + _estimated_bytes(rules))
        return grammar

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of the texts that satisfy the constraint; GrammarError where there is none."""
        if isinstance(constraint, JsonSchema):
            return self.compile_json_schema(constraint.schema, constraint.options)
        raise UnsupportedSchemaError(f"{type(constraint).__name__} constraints are not supported yet")

    def compile_json_object(self) -> Grammar:
        """The grammar of every JSON object without repeated keys."""
        return self.compile_json_schema({"type": "object"})

    def _keep(self, digest: bytes, grammar: Grammar, size: int) -> None:
        with self._lock:
            if digest in self._grammars:
                return
            self._grammars[digest] = (grammar, size)
            self._cache_bytes += size
            while self._grammars and (
                len(self._grammars) > self._max_cache_entries or self._cache_bytes > self._max_cache_bytes
            ):
                _, (_, evicted) = self._grammars.popitem(last=False)
                self._cache_bytes -= evicted


def _estimated_bytes(rules: list[Rule]) -> int:
    """Memory of the rules, by the number of their parts."""
    total = 0
    for rule in rules:
        total += 400 + sum(60 + len(text) for texts in (rule.literals, rule.strings) for text in texts)
        total += sum(term.language.rows.nbytes for term in rule.terms)
        total += sum(400 + sum(150 + len(key) for key in shape.keys) for shape in rule.objects)
        total += sum(200 + 8 * len(shape.prefix) for shape in rule.arrays)
    return total
