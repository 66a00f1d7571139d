"""Mask peers: other libraries over the same vocabulary, each through the Python call that its documentation names.

Both are set to compact JSON, which is what the texts are: llguidance with fixed separators, xgrammar without
whitespace and with open objects left open (`strict_mode=False`). One thread each.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specdec.evals.mask_engine import MaskEngine
from specdec.evals.schema_engine import CompileOptions, RefusedSchemaError
from specdec.evals.schema_peers import import_peer
from specdec.evals.vocabularies import EvalVocabulary, Splitter, load_vocabulary

MaskPeerName = Literal["llguidance", "xgrammar"]

# The peers ship no types that strict checking accepts, and may be absent: every object of theirs is Any.


def load_mask_peer(name: MaskPeerName, vocabulary: EvalVocabulary) -> MaskEngine:
    """Raises MissingPeerError."""
    module = import_peer(name)
    if name == "xgrammar":
        return XgrammarMasks(module, vocabulary)
    _, splitter = load_vocabulary(vocabulary.name)
    return LlguidanceMasks(module, vocabulary, splitter)


def _refused(error: Exception | str) -> RefusedSchemaError:
    message = " ".join(str(error).split())
    return RefusedSchemaError(message[:80] or type(error).__name__, message=message)


class _Tokenizer:
    """What llguidance asks of a tokenizer. It splits what is forced: its mask there is the one token of the split."""

    def __init__(self, vocabulary: EvalVocabulary, splitter: Splitter) -> None:
        self._splitter = splitter
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.bos_token_id = None
        self.tokens = [token or b"" for token in vocabulary.token_bytes]
        self.tokens += [b""] * (vocabulary.size - len(self.tokens))
        self.special_token_ids = [token_id for token_id, token in enumerate(self.tokens) if not token]
        for token_id in self.special_token_ids:
            self.tokens[token_id] = b"<special %d>" % token_id

    def __call__(self, text: bytes) -> list[int]:
        return self._splitter.token_ids(text)


class LlguidanceMasks:
    def __init__(self, module: Any, vocabulary: EvalVocabulary, splitter: Splitter) -> None:
        self._module = module
        self._numpy: Any = importlib.import_module("llguidance.numpy")
        self._num_tokens = vocabulary.size
        self._tokenizer: Any = module.LLTokenizer(
            module.TokenizerWrapper(_Tokenizer(vocabulary, splitter)),
            n_vocab=vocabulary.size,
            eos_token=list(vocabulary.eos_token_ids),
            slices=module.LLTokenizer.json_slices(),
        )

    def compile(self, schema_text: str, options: CompileOptions) -> _LlguidanceGrammar:
        del options
        try:
            grammar = self._module.LLMatcher.grammar_from_json_schema(
                schema_text, defaults={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise _refused(error) from error
        matcher = self._module.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return _LlguidanceGrammar(self._numpy, matcher, self._num_tokens)

    def table(self) -> None:
        return None


class _LlguidanceGrammar:
    def __init__(self, numpy_module: Any, matcher: Any, num_tokens: int) -> None:
        self._numpy = numpy_module
        self._matcher = matcher
        self._num_tokens = num_tokens

    def walk(self) -> _LlguidanceWalk:
        return _LlguidanceWalk(self._numpy, self._matcher.deep_copy(), self._num_tokens)

    def guarded_walk(self, num_tokens: int) -> None:
        """It knows no budget."""


class _LlguidanceWalk:
    def __init__(self, numpy_module: Any, matcher: Any, num_tokens: int) -> None:
        self._fill = numpy_module.fill_next_token_bitmask
        self._matcher = matcher
        self._bitmask: Any = numpy_module.allocate_token_bitmask(1, num_tokens)
        self.words: NDArray[np.uint32] = self._bitmask[0].view(np.uint32)

    def fill(self) -> None:
        self._fill(self._matcher, self._bitmask)

    def advance(self, token_id: int) -> bool:
        return bool(self._matcher.consume_token(token_id))

    def num_computed(self) -> None:
        return None


class XgrammarMasks:
    def __init__(self, module: Any, vocabulary: EvalVocabulary) -> None:
        self._module = module
        tokens = [token or b"" for token in vocabulary.token_bytes]
        info = module.TokenizerInfo(
            tokens,
            vocab_type=module.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(vocabulary.eos_token_ids),
        )
        self._num_tokens = vocabulary.size
        self._compiler: Any = module.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema_text: str, options: CompileOptions) -> _XgrammarGrammar:
        del options
        try:
            compiled = self._compiler.compile_json_schema(
                schema_text, any_whitespace=False, strict_mode=False, separators=(",", ":")
            )
        except (RuntimeError, ValueError) as error:
            raise _refused(error) from error
        return _XgrammarGrammar(self._module, compiled, self._num_tokens)

    def table(self) -> None:
        return None


class _XgrammarGrammar:
    def __init__(self, module: Any, compiled: Any, num_tokens: int) -> None:
        self._module = module
        self._compiled = compiled
        self._num_tokens = num_tokens

    def walk(self) -> _XgrammarWalk:
        return _XgrammarWalk(self._module, self._module.GrammarMatcher(self._compiled), self._num_tokens)

    def guarded_walk(self, num_tokens: int) -> None:
        """It knows no budget."""


class _XgrammarWalk:
    def __init__(self, module: Any, matcher: Any, num_tokens: int) -> None:
        self._matcher = matcher
        self._bitmask: Any = module.allocate_token_bitmask(1, num_tokens)
        self.words: NDArray[np.uint32] = self._bitmask.numpy()[0].view(np.uint32)

    def fill(self) -> None:
        self._matcher.fill_next_token_bitmask(self._bitmask)

    def advance(self, token_id: int) -> bool:
        return bool(self._matcher.accept_token(token_id))

    def num_computed(self) -> None:
        return None
