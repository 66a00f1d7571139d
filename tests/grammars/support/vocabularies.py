"""Small vocabularies that have what real ones have: tokens over several symbols, partial UTF-8, holes, padding."""

from __future__ import annotations

import functools
import random

from specdec.grammars import Vocabulary

_BYTES = [bytes([byte]) for byte in (*range(0x20, 0x7F), 0xC3, 0xA9, 0xA8, 0xF0, 0x9F, 0x98, 0x80)]
_WORDS = [
    b'{"', b'{"a":', b'":', b'":"', b'","', b'",', b'"}', b'"}]', b"}}", b"[[", b"]]", b'["', b'"]', b"],", b"},{",
    b"true", b"ue,", b"null", b"12", b"1,", b"0.5", b"-1", b"a", b"ab", b"abc", b'a"', b'b":1,"b', b'":1,"a":',
    b'":1,"b":2}', b'":1,"x', b"\\u00", b"\\n", b'\\"', "é".encode(), "éa".encode(), b"\x98\x80", b"\x9f\x98\x80x",
    "😀".encode(), b'\x80"', b'""', b"{}", b"[]", b"[1,2", b'":{}}', b'":[]', b"  ", b"\n", b"e5", b"00", b'x":',
]  # fmt: skip


def _vocabulary(words: list[bytes]) -> Vocabulary:
    tokens: list[bytes | None] = [None, None, b"<eos>", *_BYTES, *words, None, b""]
    # Two ends of sequence, one of them with text of its own; two special ids; padding to an odd size.
    return Vocabulary(tokens, [2, 1], len(tokens) + 7)


@functools.cache
def small_vocabulary() -> Vocabulary:
    """About 150 tokens."""
    return _vocabulary(_WORDS)


@functools.cache
def merged_vocabulary() -> Vocabulary:
    """About 700 tokens, grown as byte pair encoding grows them: by joining tokens that exist."""
    rng = random.Random(7)
    pieces = _WORDS + [bytes([byte]) for byte in b'"{}[]:,ab01\\u\xc3\xa9']
    words = dict.fromkeys(_WORDS)
    while len(words) < 600:
        joined = rng.choice(pieces) + rng.choice(pieces)
        if len(joined) <= 12:
            words[joined] = None
            pieces.append(joined)
    return _vocabulary(list(words))
