"""Vocabulary: the byte strings of a tokenizer's tokens, as a trie that masks are walked over.

Liveness needs more than bytes: after any allowed token the rest of the text must be spelt with tokens. A byte
counts as spellable if some token is that one byte; the automaton uses spellable bytes only, so that whatever
bytes can complete a text, tokens can too. Printable ASCII must be spellable (every byte-level or byte-fallback
tokenizer has it); other bytes may be missing (SmolLM2 lacks 21), and the code points that need them are then
never generated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from specdec.grammars.walk import load_kernels

_PRINTABLE_ASCII = frozenset(range(0x20, 0x7F))


class Vocabulary:
    """Token id to bytes of one tokenizer.

    Ids without bytes (special, padded) are never allowed by a mask, except end-of-sequence ids where the text
    may end, and special tokens that a grammar asks for by their text, which `special_tokens` gives the ids of.
    `size` is the padded vocabulary: the width of the logits. ValueError where there is no end-of-sequence id, an id
    is out of range, a special token has bytes or no text, or some printable ASCII byte is no token.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        eos_token_ids: Collection[int],
        size: int | None = None,
        *,
        special_tokens: Mapping[str, int] | None = None,
    ) -> None:
        self.size = len(token_bytes) if size is None else size
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        if self.size < len(token_bytes):
            raise ValueError(f"size is {self.size}, fewer than the {len(token_bytes)} tokens given")
        if not self.eos_token_ids:
            raise ValueError("a vocabulary needs an end-of-sequence token id: no text could end")
        if self.eos_token_ids[0] < 0 or self.eos_token_ids[-1] >= self.size:
            raise ValueError(f"end-of-sequence ids {self.eos_token_ids} must be between 0 and {self.size - 1}")
        eos = set(self.eos_token_ids)
        # An empty token would leave the state as it is: allowing it could stop the text from ever ending.
        self._token_bytes = tuple(
            token or None if token_id not in eos else None for token_id, token in enumerate(token_bytes)
        )
        self.special_tokens = {
            text.encode(): token_id for text, token_id in (special_tokens or {}).items() if token_id not in eos
        }
        """Ids by text of tokens without bytes, but for those that end the sequence."""
        for text, token_id in self.special_tokens.items():
            if not text or not 0 <= token_id < self.size or self.token_bytes(token_id) is not None:
                raise ValueError(
                    f"special token {text.decode()!r} with id {token_id} needs a text, an id between 0 and "
                    f"{self.size - 1}, and no bytes of its own"
                )
        ordered = sorted((token, token_id) for token_id, token in enumerate(self._token_bytes) if token)
        self.spellable_bytes = frozenset(token[0] for token, _ in ordered if len(token) == 1)
        missing = _PRINTABLE_ASCII - self.spellable_bytes
        if missing:
            named = "".join(chr(byte) for byte in sorted(missing))
            raise ValueError(f"no token is the single byte of these ASCII characters: {named!r}")
        self.token_ids = np.array([token_id for _, token_id in ordered], np.int32)
        offsets = np.zeros(len(ordered) + 1, np.int64)
        np.cumsum([len(token) for token, _ in ordered], out=offsets[1:])
        data = np.frombuffer(bytearray().join(token for token, _ in ordered), np.uint8)
        self.kernels = load_kernels()
        self.trie_bytes, self.trie_skips, self.trie_starts = self.kernels.build_trie(data, offsets)
        self.max_token_bytes = max(len(token) for token, _ in ordered)
        self.num_words = (self.size + 31) // 32
        self.digest = self._compute_digest()

    def __reduce__(self) -> tuple[object, ...]:
        special = {text.decode(): token_id for text, token_id in self.special_tokens.items()}
        return _restored, (self._token_bytes, self.eos_token_ids, self.size, special)

    def __len__(self) -> int:
        return self.size

    def tokens(self) -> Iterator[bytes]:
        """The bytes of every token that has some."""
        return (token for token in self._token_bytes if token)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The token's bytes; None for special, padded, empty and end-of-sequence tokens."""
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else None

    def spells(self, text: bytes) -> bool:
        """Whether every byte of the text is spellable."""
        return self.spellable_bytes.issuperset(text)

    def _compute_digest(self) -> str:
        digest = hashlib.sha256(f"{self.size} {self.eos_token_ids}".encode())
        for token in self._token_bytes:
            digest.update(b"-" if token is None else b"%d:%s" % (len(token), token))
        for text, token_id in sorted(self.special_tokens.items()):
            digest.update(b" %d=%d:%s" % (token_id, len(text), text))
        return digest.hexdigest()


def _restored(
    token_bytes: Sequence[bytes | None], eos_token_ids: Collection[int], size: int, special_tokens: Mapping[str, int]
) -> Vocabulary:
    return Vocabulary(token_bytes, eos_token_ids, size, special_tokens=special_tokens)
