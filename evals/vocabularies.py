"""Vocabularies to time masks over: a model's, or one read from a tokenizer.json, GGUF or tiktoken file.

Each comes with its own way of splitting a text into tokens, so that masks are asked for where a model would ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from specdec.errors import CheckpointError, ModelNotFoundError, PullError
from specdec.models.catalog import resolve_model
from specdec.models.config import ModelConfig
from specdec.models.progress import progress_bars
from specdec.tokenizer import Tokenizer

_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<end_of_turn>")
"""Where a tokenizer.json stands alone, the first of these that it has ends a sequence."""


class EvalVocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to set up an engine."""

    name: str
    """What it was loaded by."""
    token_bytes: tuple[bytes | None, ...]
    """By id; None for special tokens and ids without a token."""
    eos_token_ids: tuple[int, ...]
    size: int
    """The padded vocabulary, in ids."""
    splitting: str
    """How texts are split into tokens, in words."""

    def joins_to(self, token_ids: Sequence[int], text: bytes) -> bool:
        """Whether the tokens spell the text, all of it and nothing else."""
        return b"".join(self.token_bytes[token_id] or b"" for token_id in token_ids) == text and all(
            self.token_bytes[token_id] for token_id in token_ids
        )


class Splitter(Protocol):
    def token_ids(self, text: bytes) -> list[int]:
        """The tokens of a text in UTF-8; they need not spell it where the vocabulary cannot."""

    def pre_tokens(self, text: bytes) -> Sequence[Sequence[int]]:
        """The same, grouped by the pieces of the text that are split each by itself."""


class VocabularyError(ValueError):
    """A name or path that leads to no vocabulary; the message says what was expected."""


def load_vocabulary(name_or_path: str) -> tuple[EvalVocabulary, Splitter]:
    """A file by its suffix, else a model as `specdec serve` names it. Raises VocabularyError."""
    path = Path(name_or_path).expanduser()
    try:
        if path.is_file():
            return _load_file(path)
        return _load_model(name_or_path)
    except (CheckpointError, ModelNotFoundError, PullError) as error:
        raise VocabularyError(str(error)) from error


def _load_file(path: Path) -> tuple[EvalVocabulary, Splitter]:
    if path.suffix == ".tiktoken":
        from specdec.evals.tiktoken_vocabulary import load_tiktoken  # noqa: PLC0415

        return load_tiktoken(path)
    if path.suffix == ".gguf":
        from specdec.evals.gguf_vocabulary import load_gguf  # noqa: PLC0415, its library is slow to import

        return load_gguf(path)
    if path.suffix != ".json":
        raise VocabularyError(f"{path} is no vocabulary; a tokenizer.json, a .gguf or a .tiktoken file is one")
    tokenizer = Tokenizer(path.read_bytes(), named_tokens={}, eos_token_ids=(), chat_templates={})
    texts = {tokenizer.token_text(token_id): token_id for token_id in tokenizer.special_token_ids}
    eos = next((texts[token] for token in _END_TOKENS if token in texts), None)
    if eos is None:
        raise VocabularyError(f"{path} has no special token that ends a sequence; known are {', '.join(_END_TOKENS)}")
    return _of_tokenizer(str(path), tokenizer, (eos,), tokenizer.vocab_size)


def _load_model(name: str) -> tuple[EvalVocabulary, Splitter]:
    with progress_bars() as progress:
        folder = resolve_model(name, progress=progress)
    tokenizer = Tokenizer.from_folder(folder)
    size = max(tokenizer.vocab_size, ModelConfig.from_folder(folder).vocab_size)
    return _of_tokenizer(name, tokenizer, tokenizer.eos_token_ids, size)


def _of_tokenizer(
    name: str, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...], size: int
) -> tuple[EvalVocabulary, Splitter]:
    vocabulary = EvalVocabulary(
        name=name,
        token_bytes=tuple(tokenizer.token_bytes()),
        eos_token_ids=eos_token_ids,
        size=size,
        splitting="the tokenizer's own",
    )
    return vocabulary, _TokenizerSplitter(tokenizer)


class _TokenizerSplitter:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def token_ids(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode())

    def pre_tokens(self, text: bytes) -> list[list[int]]:
        return self._tokenizer.encode_by_pre_token(text.decode())
