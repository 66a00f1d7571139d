"""A vocabulary from a tiktoken file: tokens in base64 with their ranks, lower ranks merged first.

The file says neither how texts are cut into pieces before merging nor which ids are special. Pieces are cut as cl100k
cuts them; end-of-sequence is the id after the last rank.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import tokenizers

from specdec.evals.vocabularies import EvalVocabulary, Splitter, VocabularyError

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""cl100k's. A vocabulary without tokens of several digits, as Qwen's, splits the same under its own."""


def load_tiktoken(path: Path) -> tuple[EvalVocabulary, Splitter]:
    """Raises VocabularyError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise VocabularyError(f"{path}, line {number}, is no token in base64 with its rank: {error}") from error
    if not ranks:
        raise VocabularyError(f"{path} holds no tokens")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise VocabularyError(f"{path} lacks single bytes, as {missing[0]:#04x}; a tiktoken file has all 256")
    eos = 1 + max(ranks.values())
    token_bytes: list[bytes | None] = [None] * (eos + 1)
    for piece, place in ranks.items():
        token_bytes[place] = piece
    vocabulary = EvalVocabulary(
        name=str(path),
        token_bytes=tuple(token_bytes),
        eos_token_ids=(eos,),
        size=eos + 1,
        splitting="byte pair encoding by rank, in cl100k's pieces",
    )
    return vocabulary, _RankSplitter(ranks)


class _RankSplitter:
    def __init__(self, ranks: dict[bytes, int]) -> None:
        self._ranks = ranks
        self._pieces = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
        self._known: dict[str, list[int]] = {}

    def token_ids(self, text: bytes) -> list[int]:
        return [token_id for pre_token in self.pre_tokens(text) for token_id in pre_token]

    def pre_tokens(self, text: bytes) -> list[list[int]]:
        found: list[list[int]] = []
        for piece, _ in self._pieces.pre_tokenize_str(text.decode()):
            if piece not in self._known:
                self._known[piece] = self._merged(piece.encode())
            found.append(self._known[piece])
        return found

    def _merged(self, piece: bytes) -> list[int]:
        """The tokens after merging, again and again, the first neighbours whose union has the lowest rank."""
        ranks = self._ranks
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 1:
            unions = [ranks.get(parts[i] + parts[i + 1]) for i in range(len(parts) - 1)]
            lowest = min((rank for rank in unions if rank is not None), default=None)
            if lowest is None:
                break
            at = unions.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [ranks[part] for part in parts]
