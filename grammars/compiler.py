"""GrammarCompiler: constraints in, grammars out, for one vocabulary."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from specdec.grammars import language_kernels
from specdec.grammars.constraints import Constraint, JsonSchema
from specdec.grammars.grammar import Grammar, Runtime
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.limits import Limits
from specdec.grammars.mask_table import MaskTable
from specdec.grammars.masks import StringBodies
from specdec.grammars.options import DEFAULT_OPTIONS, SchemaOptions
from specdec.grammars.pattern_kernels import load_determinise
from specdec.grammars.program_builder import build_program
from specdec.grammars.schema import schema_text
from specdec.grammars.vocabulary import Vocabulary

_DEFAULT_LIMITS = Limits()


class GrammarCompiler:
    """Owns the mask table shared by all its grammars and a bounded cache of them by constraint; thread-safe.

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

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of the texts that satisfy the constraint; GrammarError where there is none."""
        begin = time.perf_counter()
        if isinstance(constraint, JsonSchema):
            schema_text(constraint.schema, self.limits)
        digest = _digest(constraint)
        with self._lock:
            entry = self._grammars.get(digest)
            if entry is not None:
                self.cache_hits += 1
                self._grammars.move_to_end(digest)
                return entry[0]
            self.cache_misses += 1
        try:
            program = build_program(constraint, self.vocabulary, self._lexicon, self._runtime.speller, self.limits)
            grammar = Grammar(constraint, program, self._runtime)
        finally:
            with self._lock:
                self.compile_seconds += time.perf_counter() - begin
        self._keep(digest, grammar, program.num_bytes)
        return grammar

    # A schema is any JSON value that a caller parsed; its shape is what compiling checks.
    def compile_json_schema(
        self, schema: str | Mapping[str, Any] | bool, options: SchemaOptions = DEFAULT_OPTIONS
    ) -> Grammar:
        """The grammar of the schema's instances; GrammarError where there is none. A str is JSON text."""
        return self.compile(JsonSchema(schema=schema_text(schema, self.limits), options=options))

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


def _digest(constraint: Constraint) -> bytes:
    """Of the constraint as JSON, which escapes the lone surrogates that no encoding takes."""
    return hashlib.sha256(json.dumps(msgspec.to_builtins(constraint)).encode()).digest()
