"""GrammarCompiler: constraints in, grammars out, for one vocabulary."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from specdec.grammars import language_kernels
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.compile_pool import CompileJob, CompilePool
from specdec.grammars.constraints import Constraint, JsonSchema
from specdec.grammars.errors import CompileResourceError, GrammarError
from specdec.grammars.flights import Flight, Interest
from specdec.grammars.forced import Retokenizer, RunTokens
from specdec.grammars.grammar import Grammar, Runtime
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.limits import Limits
from specdec.grammars.mask_table import MaskTable
from specdec.grammars.options import DEFAULT_OPTIONS, SchemaOptions
from specdec.grammars.pattern_kernels import load_determinise
from specdec.grammars.program import Program
from specdec.grammars.program_builder import build_program
from specdec.grammars.schema import schema_text
from specdec.grammars.string_bodies import StringBodies
from specdec.grammars.vocabulary import Vocabulary

_DEFAULT_LIMITS = Limits()
_MAX_REFUSALS = 1024
"""Constraints that are known to have no grammar."""


class GrammarCompiler:
    """Owns the mask table shared by all its grammars and a bounded cache of them by constraint; thread-safe.

    With `num_workers` constraints are compiled in so many processes of their own (compile_pool.py), else on the thread
    that asks. With `retokenizer` grammars give forced tokens. `cache_hits`, `cache_misses` and `compile_seconds` (of
    the misses, as they were waited for) only grow.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        limits: Limits = _DEFAULT_LIMITS,
        retokenizer: Retokenizer | None = None,
        num_workers: int = 0,
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
        bodies = StringBodies(vocabulary, self._lexicon)
        bodies.prepare()
        run_tokens = None if retokenizer is None else RunTokens(vocabulary, retokenizer)
        self._runtime = Runtime(vocabulary, self.mask_table, self._lexicon, bodies, run_tokens)
        # Last, so that its process finds the machine code in its cache.
        self._pool = CompilePool(vocabulary, limits, num_workers=num_workers) if num_workers else None
        self._max_cache_entries = max_cache_entries
        self._max_cache_bytes = max_cache_bytes
        self._lock = threading.Lock()
        self._grammars: OrderedDict[bytes, Grammar] = OrderedDict()
        self._num_bytes: dict[bytes, int] = {}
        """Of each grammar kept, as it was last found."""
        self._cache_bytes = 0
        self._flights: dict[bytes, tuple[Flight[Grammar], CompileJob]] = {}
        self._refusals: BoundedCache[bytes, GrammarError] = BoundedCache(_MAX_REFUSALS)
        self.cache_hits = 0
        self.cache_misses = 0
        self.compile_seconds = 0.0

    @property
    def cache_entries(self) -> int:
        return len(self._grammars)

    @property
    def cache_bytes(self) -> int:
        """Memory of the grammars kept, roughly."""
        return self._cache_bytes

    @property
    def num_killed(self) -> int:
        """Compilations that were ended before they had a result; only grows."""
        return 0 if self._pool is None else self._pool.num_killed

    def pool_process_ids(self) -> list[int]:
        """Of the processes that compile, as far as they have been started."""
        return [] if self._pool is None else self._pool.process_ids()

    @property
    def num_computed_masks(self) -> int:
        """How many masks were computed, for any grammar, rather than found in a cache; only grows."""
        return self._runtime.num_computed_masks

    def compile(self, constraint: Constraint, interest: Interest | None = None) -> Grammar:
        """The grammar of the texts that satisfy the constraint; GrammarError where there is none.

        Whoever asks for the same constraint at the same time gets the same grammar. `interest` can be left from another
        thread: then this raises LeftError. With workers it also raises CompilePoolError.
        """
        if isinstance(constraint, JsonSchema):
            schema_text(constraint.schema, self.limits)
        digest = _digest(constraint)
        interest = interest or Interest()
        with self._lock:
            known = self._grammars.get(digest)
            if known is not None:
                self.cache_hits += 1
                self._grammars.move_to_end(digest)
                self._weigh(digest, known)
                return known
            refusal = self._refusals.get(digest)
            if refusal is not None:
                self.cache_hits += 1
                raise copy.copy(refusal)
            flight, job = self._flights.get(digest, (None, None))
            is_first = flight is None or flight.is_over
            if flight is None or job is None or flight.is_over:
                self.cache_misses += 1
                job = CompileJob()
                flight = Flight(self._lock, functools.partial(self._abandon, job))
                self._flights[digest] = flight, job
            else:
                self.cache_hits += 1
            flight.join()
        if not interest.watch(flight.leave):
            flight.leave()
        if is_first:
            self._fly(flight, constraint, digest, job, interest.caller)
        elif self._pool is not None:
            self._pool.hasten(job, interest.caller)
        try:
            return flight.wait(interest)
        finally:
            interest.unwatch()

    def _fly(
        self, flight: Flight[Grammar], constraint: Constraint, digest: bytes, job: CompileJob, caller: str
    ) -> None:
        begin = time.perf_counter()
        grammar: Grammar | None = None
        error: BaseException | None = None
        try:
            program = self._program(constraint, job, caller)
            grammar = Grammar(constraint, program, self._runtime)
            self._keep(digest, grammar)
        except BaseException as caught:  # noqa: BLE001, those that wait raise it, and an interrupt leaves none waiting
            error = caught
            if isinstance(caught, GrammarError) and not isinstance(caught, CompileResourceError):
                with self._lock:
                    self._refusals.put(digest, caught.with_traceback(None))
        with self._lock:
            self.compile_seconds += time.perf_counter() - begin
            if self._flights.get(digest) == (flight, job):
                del self._flights[digest]
        flight.land(grammar, error)

    def _program(self, constraint: Constraint, job: CompileJob, caller: str) -> Program:
        if self._pool is not None:
            return self._pool.build(constraint, job, caller)
        return build_program(constraint, self.vocabulary, self._lexicon, self._runtime.speller, self.limits)

    def _abandon(self, job: CompileJob) -> None:
        if self._pool is not None:
            self._pool.abandon(job)

    def close(self) -> None:
        """End the workers; nothing is compiled any more where there were some."""
        if self._pool is not None:
            self._pool.close()

    # A schema is any JSON value that a caller parsed; its shape is what compiling checks.
    def compile_json_schema(
        self, schema: str | Mapping[str, Any] | bool, options: SchemaOptions = DEFAULT_OPTIONS
    ) -> Grammar:
        """The grammar of the schema's instances; GrammarError where there is none. A str is JSON text."""
        return self.compile(JsonSchema(schema=schema_text(schema, self.limits), options=options))

    def compile_json_object(self) -> Grammar:
        """The grammar of every JSON object without repeated keys."""
        return self.compile_json_schema({"type": "object"})

    def _keep(self, digest: bytes, grammar: Grammar) -> None:
        with self._lock:
            self._grammars[digest] = grammar
            # They grow as they are walked, so that what they take is known only now.
            self._num_bytes = {key: kept.num_bytes for key, kept in self._grammars.items()}
            self._cache_bytes = sum(self._num_bytes.values())
            self._drop_oldest()

    def _weigh(self, digest: bytes, grammar: Grammar) -> None:
        """Count one that is kept as it has grown: where no other comes, nothing else would."""
        num_bytes = grammar.num_bytes
        self._cache_bytes += num_bytes - self._num_bytes.get(digest, 0)
        self._num_bytes[digest] = num_bytes
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop what was asked for longest ago while all take too much."""
        while len(self._grammars) > 1 and (
            len(self._grammars) > self._max_cache_entries or self._cache_bytes > self._max_cache_bytes
        ):
            key, _ = self._grammars.popitem(last=False)
            self._cache_bytes -= self._num_bytes.pop(key)


def _digest(constraint: Constraint) -> bytes:
    try:
        text = msgspec.json.encode(constraint)
    except (UnicodeEncodeError, OverflowError, ValueError):
        # Lone surrogates, which no encoding takes, and whole numbers of more than 64 bits.
        text = json.dumps(msgspec.to_builtins(constraint)).encode()
    return hashlib.sha256(text).digest()
