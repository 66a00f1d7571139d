"""Vocabularies as large as real ones, and of their makes, made up from syllables and pieces of JSON.

Each is written as a tokenizer.json and read by the product's own tokenizer.
"""

from __future__ import annotations

import functools
import random
from typing import Literal

import tokenizers
from tokenizers import AddedToken, decoders, models

from specdec.grammars import Vocabulary
from specdec.tokenizer import Tokenizer

VocabularyName = Literal["byte_level_49k", "byte_level_128k", "byte_level_151k", "byte_fallback_262k"]
"""After SmolLM2, Llama 3, Qwen and Gemma."""

_CONSONANTS, _VOWELS = "bcdfghklmnprstvwz", "aeiou"
_SYMBOLS = [
    '"', "{", "}", "[", "]", ":", ",", "\\", '":', '",', '","', '":"', '"},{"', '{"', '["', '"]', '"}', "}]", "[[",
    "{}", '""', '":[', '":{"', "],", "},", "true", "false", "null", ",-", '\\"', "\\n", "\\u00", "\\ud83d", "e+", ".5",
    "0.", " ", "  ", "\n", "\n\n", "\t", "\r\n", ": ", ", ", '": ', '", "', "{\n", "_", "-", "/", "http", "://", "@",
]  # fmt: skip
_CHARACTERS = "éüñßøжшяцλπأبשनमกทひカ中国日本語한글—“”…€😀🎉👍🏽"
_UNUSED = "<unused0>"


class LargeVocabulary:
    """What tests ask of one."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.vocabulary = Vocabulary(tokenizer.token_bytes(), tokenizer.eos_token_ids, size)
        self.special_ids = sorted(tokenizer.special_token_ids)
        self.id_of: dict[bytes, int] = {}
        """One of the tokens with these bytes."""
        for token_id in range(size):
            token = self.vocabulary.token_bytes(token_id)
            if token is not None:
                self.id_of[token] = token_id


@functools.cache
def made_vocabulary(name: VocabularyName) -> LargeVocabulary:
    """Some 0.5 to 4 seconds."""
    if name == "byte_fallback_262k":
        return LargeVocabulary(_byte_fallback(262_144), 262_144)
    num_tokens, size, longest_number, missing = {
        # Without 21 control characters and bytes that no UTF-8 text has; ids beyond the last token of the others.
        "byte_level_49k": (49_135, 49_152, 1, {*range(8), *range(14, 22), 0xC0, 0xC1, 0xF5, 0xF6, 0xFF}),
        "byte_level_128k": (128_000, 128_256, 3, set[int]()),
        "byte_level_151k": (151_643, 151_936, 1, set[int]()),
    }[name]
    return LargeVocabulary(_byte_level(num_tokens, longest_number, missing), size)


def _byte_level(num_tokens: int, longest_number: int, missing: set[int]) -> Tokenizer:
    """Of joined byte strings, whether or not they begin and end between characters."""
    rng = random.Random(num_tokens)
    characters = [char.encode().decode("latin-1") for char in _CHARACTERS]
    # Within this function a character stands for a byte.
    halves = [char[:end] for char in characters for end in range(1, len(char))]
    halves += [char[begin:] for char in characters for begin in range(1, len(char))]
    singles = [chr(byte) for byte in range(256) if byte not in missing]
    tokens = _grown(rng, [*singles, *_numbers(rng, longest_number)], [*_words(rng), *characters, *halves], num_tokens)
    of_byte = {chr(byte): char for byte, char in _alphabet().items()}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={"".join(map(of_byte.__getitem__, token)): i for i, token in enumerate(tokens)}, merges=[])
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|end|>", "<|start|>")])
    return _read(backend, num_tokens)


def _byte_fallback(num_tokens: int) -> Tokenizer:
    """Of joined characters, with U+2581 for a space; each byte has a token beside those of characters."""
    rng = random.Random(num_tokens)
    first = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), _UNUSED]
    singles = [chr(code) for code in range(0x20, 0x7F)] + list(_CHARACTERS)
    singles += [" " * num for num in range(2, 32)] + ["\n" * num for num in range(1, 32)]
    grown = _grown(rng, [*singles, *_numbers(rng, 1)], _words(rng), num_tokens - len(first))
    vocab = {token: i for i, token in enumerate([*first, *(token.replace(" ", "\u2581") for token in grown)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*first[:4], _UNUSED)])
    return _read(backend, 1)


def _read(backend: tokenizers.Tokenizer, eos_token_id: int) -> Tokenizer:
    return Tokenizer(backend.to_str().encode(), named_tokens={}, eos_token_ids=(eos_token_id,), chat_templates={})


def _grown(rng: random.Random, singles: list[str], words: list[str], num_tokens: int) -> list[str]:
    """These, and as many joined from two that exist as are missing; each once."""
    tokens = dict.fromkeys([*singles, *words, *_SYMBOLS])
    pieces = [*words, *words, *_SYMBOLS]
    while len(tokens) < num_tokens:
        joined = rng.choice(pieces) + rng.choice(pieces)
        if len(joined) <= 24 and joined not in tokens:
            tokens[joined] = None
            if len(joined) <= 12:
                pieces.append(joined)
    return list(tokens)


def _words(rng: random.Random) -> list[str]:
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(800)]
    return [*syllables, *words, *(" " + word for word in words), *(word.capitalize() for word in words[:200])]


def _numbers(rng: random.Random, longest: int) -> list[str]:
    return [str(number).zfill(digits) for digits in range(2, longest + 1) for number in range(10**digits)]


def _alphabet() -> dict[int, str]:
    """GPT-2's characters by the bytes that they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
