"""Forced runs: bytes that every text goes on with, and the tokens that spell them as the tokenizer would.

A run is found byte by byte, by the walk of masks.py over a vocabulary of single bytes: it goes on while one byte may
come next and the text may not end.

Its tokens are those of the tokenizer, not any that spell the bytes, for a model writes what it was trained on. The
tokenizer splits a text into pre-tokens, and each of these by itself. Hence three rules:

- The run is split together with the text before it, from the pre-token on that its first byte belongs to. Where that
  pre-token begins with other tokens than the text's own, nothing is given.
- A token is given only if it stays as it is whatever byte comes after the run. The last pre-tokens are split again with
  each byte that may follow, and the tokens that all of these splits begin with are kept. What more bytes would change
  is not looked into: a forced token is a draft, and verified as any other.
- Tokens that do not spell the run are dropped, with all after them. So each one given is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import RawFrame
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.masks import MaskWalker
from specdec.grammars.next_items import NextItems
from specdec.grammars.positions import Literal, Raw
from specdec.grammars.stacks import Config
from specdec.grammars.string_bodies import StringBodies
from specdec.grammars.vocabulary import Vocabulary
from specdec.grammars.walk import DEAD

MAX_RUN_BYTES = 512
_MAX_BYTES_BEFORE = 64
"""Of the text before a run, as much is split with it."""
_NUM_OPEN_PRE_TOKENS = 2
"""The last pre-tokens of a text, which what follows may still change."""
_END_OF_SEQUENCE = 256


class Retokenizer(Protocol):
    """How a tokenizer splits a text."""

    def __call__(self, text: bytes, /) -> Sequence[Sequence[int]]:
        """The tokens of a text in UTF-8, by pre-token; they need not spell it."""


class Run(msgspec.Struct, frozen=True):
    data: bytes
    """What the text goes on with, whatever it becomes."""
    following: bytes
    """The bytes of which each may come after that."""
    may_end: bool
    """Whether the text may end after it, or go on with a special token."""


class ByteWalks:
    """Which bytes may come next, for all grammars of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, lexicon: Lexicon) -> None:
        spellable = vocabulary.spellable_bytes
        tokens = [bytes((byte,)) if byte in spellable else None for byte in range(256)]
        self._bytes = Vocabulary([*tokens, None], [_END_OF_SEQUENCE])
        self._bodies = StringBodies(self._bytes, lexicon)

    def run(self, automaton: Automaton, config: Config) -> Run:
        """The longest run from a configuration, of at most MAX_RUN_BYTES."""
        data = bytearray()
        while True:
            following, may_end = self._following(automaton, config)
            if may_end or len(following) != 1 or len(data) == MAX_RUN_BYTES:
                return Run(bytes(data), following, may_end)
            after = automaton.feed(config, following)
            assert after is not None, "the walk allows what the automaton takes"
            config = after
            data += following

    def _following(self, automaton: Automaton, config: Config) -> tuple[bytes, bool]:
        position, stack = config
        if isinstance(position, Raw):
            text, state = automaton.raw_text, position.state
            found = bytes(byte for byte in range(256) if text.step(state, byte) != DEAD)
            return found, text.is_accepting(state) or bool(text.special.get(state))
        if isinstance(position, Literal) and stack is not None and isinstance(stack.frame, RawFrame):
            # The walk would look for special tokens, of which a vocabulary of bytes knows nothing.
            return bytes(byte for byte in range(256) if automaton.feed(config, bytes((byte,))) is not None), False
        walker = MaskWalker(self._bytes, self._bodies, automaton, NextItems(automaton), config)
        allowed = np.unpackbits(walker.words.view(np.uint8), bitorder="little")[:256]
        return bytes(np.flatnonzero(allowed).tolist()), walker.may_end


class RunTokens:
    """Runs as tokens, by one tokenizer."""

    def __init__(self, vocabulary: Vocabulary, retokenizer: Retokenizer) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._retokenizer = retokenizer
        # By (last pre-tokens, what may follow them): how many of their tokens stay.
        self._kept: BoundedCache[tuple[bytes, bytes, bool], int] = BoundedCache(4096)

    def of(self, run: Run, preceding: Sequence[int]) -> tuple[int, ...]:
        """Tokens that spell a beginning of the run, after the tokens before it; often fewer than spell all of it."""
        spelt = self._spell(run, preceding)
        return () if spelt is None else spelt[0]

    def likely(self, run: Run, preceding: Sequence[int]) -> tuple[int, ...]:
        """Tokens that spell a beginning of the run, and of which what follows may change some.

        They are the tokenizer's of a text that ends after the run; where the text before it has other tokens than the
        tokenizer's, those of the run by itself.
        """
        spelt = self._spell(run, preceding)
        if spelt is not None:
            return spelt[1]
        pre_tokens, _ = self._split(run.data[: _num_whole_points(run.data)])
        return tuple(token_id for pre_token in pre_tokens for token_id in pre_token)

    def _spell(self, run: Run, preceding: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """(the tokens that stay, all tokens) after those before; None where those are not the tokenizer's."""
        own, is_whole = self._window(preceding)
        before = b"".join(data for _, data in own)
        text, following, may_end = before + run.data, run.following, run.may_end
        num_whole = _num_whole_points(text)
        if num_whole < len(text):
            text, following, may_end = text[:num_whole], text[num_whole : num_whole + 1], False
        if len(text) <= len(before):
            return (), ()
        pre_tokens, starts = self._split(text)
        first = max((i for i, start in enumerate(starts) if start <= len(before)), default=0)
        if not pre_tokens or (first == 0 and starts[0] < len(before) and not is_whole):
            return None
        begin, shared = starts[first], list[int]()
        end = len(before)
        while end > begin:
            token_id, data = own.pop()
            shared.insert(0, token_id)
            end -= len(data)
        token_ids = [token_id for pre_token in pre_tokens[first:] for token_id in pre_token]
        if end != begin or token_ids[: len(shared)] != shared:
            return None
        tail = max(first, len(starts) - _NUM_OPEN_PRE_TOKENS)
        num_tokens = sum(map(len, pre_tokens[first:tail]))
        # A split that does not spell the whole text ends before its tail.
        if starts[-1] + self._num_bytes(pre_tokens[-1]) == len(text):
            num_tokens += self._num_kept(text[starts[tail] :], token_ids[num_tokens:], following, may_end=may_end)
        return tuple(token_ids[len(shared) : num_tokens]), tuple(token_ids[len(shared) :])

    def _window(self, preceding: Sequence[int]) -> tuple[list[tuple[int, bytes]], bool]:
        """(the last tokens with their bytes, whether they begin where a special token or nothing was before)."""
        own: list[tuple[int, bytes]] = []
        num_bytes = 0
        is_whole = True
        for token_id in reversed(preceding):
            data = self._token_bytes(token_id)
            if data is None:
                break
            if num_bytes >= _MAX_BYTES_BEFORE:
                is_whole = False
                break
            own.append((token_id, data))
            num_bytes += len(data)
        own.reverse()
        while own and 0x80 <= own[0][1][0] < 0xC0:
            # Inside a code point, of which the rest is further back.
            del own[0]
            is_whole = False
        return own, is_whole

    def _split(self, text: bytes) -> tuple[list[list[int]], list[int]]:
        """The text's pre-tokens as far as their tokens spell it, and where each begins; none where it is no UTF-8."""
        pre_tokens, starts, end = list[list[int]](), list[int](), 0
        try:
            split = self._retokenizer(text)
        except UnicodeDecodeError:
            return [], []
        for token_ids in split:
            begin = end
            for token_id in token_ids:
                data = self._token_bytes(token_id)
                if data is None or not text.startswith(data, end):
                    return pre_tokens, starts
                end += len(data)
            pre_tokens.append(list(token_ids))
            starts.append(begin)
        return pre_tokens, starts

    def _num_bytes(self, token_ids: Sequence[int]) -> int:
        return sum(len(self._token_bytes(token_id) or b"") for token_id in token_ids)

    def _num_kept(self, text: bytes, token_ids: Sequence[int], following: bytes, *, may_end: bool) -> int:
        """How many of the text's tokens stay as they are, whichever of the bytes follows."""
        key = text, following, may_end
        kept = self._kept.get(key)
        if kept is None:
            kept = len(token_ids)
            for byte in following:
                pre_tokens = self._retokenizer(text + _code_point(byte))
                others = [token_id for pre_token in pre_tokens for token_id in pre_token]
                kept = next((i for i in range(kept) if i >= len(others) or others[i] != token_ids[i]), kept)
            self._kept.put(key, kept)
        return kept


def _num_whole_points(text: bytes) -> int:
    """Bytes of the text without a code point at its end that is cut short."""
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if byte >= 0xC0:
            return len(text) - back if back < len(_code_point(byte)) else len(text)
        if byte < 0x80:
            break
    return len(text)


def _code_point(lead: int) -> bytes:
    """A code point that begins with this byte."""
    if lead < 0x80:
        return bytes((lead,))
    if lead < 0xE0:
        return bytes((lead, 0xA9))
    # The second byte is one that is allowed after every lead of its length.
    if lead < 0xF0:
        return bytes((lead, 0xA0 if lead == 0xE0 else 0x9D, 0x90))
    return bytes((lead, 0x9F if lead < 0xF4 else 0x8F, 0x98, 0x80))
