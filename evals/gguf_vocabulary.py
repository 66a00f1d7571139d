"""A vocabulary from the metadata of a GGUF file, whatever its architecture; tensors are not read.

Byte-level vocabularies come with their merges. SentencePiece ones have scores instead, and are split greedily: the
longest token first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import tokenizers

from specdec.evals.tiktoken_vocabulary import PIECES
from specdec.evals.vocabularies import EvalVocabulary, Splitter, VocabularyError
from specdec.tokenizer import group_by_pre_token

# Token types of llama.cpp's vocabulary.
_UNKNOWN, _CONTROL, _UNUSED, _BYTE = 2, 3, 5, 6
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def load_gguf(path: Path) -> tuple[EvalVocabulary, Splitter]:
    """Raises VocabularyError."""
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError) as error:
        raise VocabularyError(f"{path} cannot be read as GGUF: {error}") from error
    fields: dict[str, object] = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.ggml.")
    }
    tokens, types, eos = fields.get("tokens"), fields.get("token_type"), fields.get("eos_token_id")
    if not isinstance(tokens, list) or not isinstance(types, list) or not isinstance(eos, int):
        raise VocabularyError(f"{path} lacks the tokens, their types, or the id that ends a sequence")
    merges = fields.get("merges")
    if isinstance(merges, list):
        splitter: Splitter = _MergingSplitter(tokens, merges, digits_alone=fields.get("pre") == "smollm")
        token_bytes = _byte_level(tokens, types)
        splitting = "byte pair encoding by the file's merges, in " + (
            "SmolLM's pieces" if fields.get("pre") == "smollm" else "cl100k's pieces"
        )
    else:
        token_bytes = _sentencepiece(tokens, types)
        splitter = GreedySplitter(token_bytes)
        splitting = "greedily, the longest token first: the file has no merges"
    vocabulary = EvalVocabulary(
        name=str(path), token_bytes=token_bytes, eos_token_ids=(eos,), size=len(tokens), splitting=splitting
    )
    return vocabulary, splitter


def _byte_level(tokens: Sequence[str], types: Sequence[int]) -> tuple[bytes | None, ...]:
    byte_of_char = _byte_of_char()
    return tuple(
        bytes(byte_of_char[char] for char in token)
        if kind not in {_UNKNOWN, _CONTROL, _UNUSED} and all(char in byte_of_char for char in token)
        else None
        for token, kind in zip(tokens, types, strict=True)
    )


def _byte_of_char() -> Mapping[str, int]:
    """GPT-2's alphabet, as in specdec.tokenizer."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _sentencepiece(tokens: Sequence[str], types: Sequence[int]) -> tuple[bytes | None, ...]:
    found: list[bytes | None] = []
    for token, kind in zip(tokens, types, strict=True):
        byte = _BYTE_TOKEN.fullmatch(token) if kind == _BYTE else None
        if kind in {_UNKNOWN, _CONTROL, _UNUSED}:
            found.append(None)
        else:
            found.append(bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode())
    return tuple(found)


class _MergingSplitter:
    def __init__(self, tokens: Sequence[str], merges: Sequence[str], *, digits_alone: bool) -> None:
        self._backend = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                vocab={token: token_id for token_id, token in enumerate(tokens)},
                merges=[(left, right) for left, _, right in (merge.partition(" ") for merge in merges)],
            )
        )
        pieces = (
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
            if digits_alone
            else [
                tokenizers.pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated"),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(pieces)

    def token_ids(self, text: bytes) -> list[int]:
        ids: list[int] = self._backend.encode(text.decode(), add_special_tokens=False).ids
        return ids

    def pre_tokens(self, text: bytes) -> list[list[int]]:
        encoding = self._backend.encode(text.decode(), add_special_tokens=False)
        return group_by_pre_token(encoding.ids, encoding.word_ids)


class GreedySplitter:
    """The longest token that the text goes on with, again and again."""

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._id_of: dict[bytes, int] = {}
        for token_id, token in enumerate(token_bytes):
            if token:
                self._id_of.setdefault(token, token_id)
        self._longest = max(map(len, self._id_of), default=0)

    def token_ids(self, text: bytes) -> list[int]:
        """Ends early where no token fits: what is left cannot be spelt."""
        found: list[int] = []
        start = 0
        while start < len(text):
            lengths = range(min(self._longest, len(text) - start), 0, -1)
            length = next((each for each in lengths if text[start : start + each] in self._id_of), None)
            if length is None:
                break
            found.append(self._id_of[text[start : start + length]])
            start += length
        return found

    def pre_tokens(self, text: bytes) -> list[list[int]]:
        """Each token alone: none depends on what is before it."""
        return [[token_id] for token_id in self.token_ids(text)]
