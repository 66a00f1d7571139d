"""What a reader of calls says of an answer that comes in pieces, put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from specdec.server.tool_calls import ArgumentsPiece, CallBegin, Piece, TextPiece


class Reader(Protocol):
    def read(self, text: str) -> Iterator[Piece]: ...

    def end(self) -> Iterator[Piece]: ...


def read(reader: Reader, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The free text, and each call's name and arguments."""
    said = [piece for one in pieces for piece in reader.read(one)] + list(reader.end())
    text, found = "", list[tuple[str, str]]()
    for piece in said:
        match piece:
            case TextPiece(shown):
                assert not found, "no text comes after calls"
                text += shown
            case CallBegin(index, _, name):
                assert index == len(found)
                found.append((name, ""))
            case ArgumentsPiece(index, added):
                assert index == len(found) - 1
                assert added
                found[index] = (found[index][0], found[index][1] + added)
    assert len({piece.id for piece in said if isinstance(piece, CallBegin)}) == len(found)
    return text, found
