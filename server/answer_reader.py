"""AnswerReader: the text of one choice as reasoning, text and calls, while it grows."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from specdec.server.reasoning import ReasoningReader
from specdec.server.tool_calls import CallReader, Piece, TextPiece


class ReasoningPiece(msgspec.Struct, frozen=True):
    """Reasoning that goes on."""

    text: str


AnswerPiece = Piece | ReasoningPiece


class AnswerReader:
    """`reasoning` and `calls` are None where an answer has none of them."""

    def __init__(self, reasoning: ReasoningReader | None, calls: CallReader | None) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._num_characters = 0
        self._text_start = 0 if reasoning is None else None

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and none is open."""
        return self._calls is not None and self._calls.has_whole_calls

    @property
    def num_reasoning_characters(self) -> int:
        """Of the text so far, those before the answer."""
        return 0 if self._reasoning is None else self._reasoning.num_characters

    @property
    def is_in_reasoning(self) -> bool:
        """Whether reasoning goes on."""
        return self._reasoning is not None and self._reasoning.is_inside

    @property
    def text_start(self) -> int | None:
        """The place of the answer's first character, text or call; None where nothing has been read of it."""
        return self._text_start

    @property
    def text_read(self) -> int:
        """The place up to which is known what is text."""
        if self._calls is None:
            return self._num_characters
        return (self._text_start or 0) + self._calls.num_text_characters

    @property
    def text_end(self) -> int | None:
        """The place at which calls begin; None where they have not."""
        return self.text_read if self._calls is not None and self._calls.is_after_text else None

    def read(self, text: str) -> Iterator[AnswerPiece]:
        """What the next piece of the answer says."""
        self._num_characters += len(text)
        if self._reasoning is not None:
            reasoning, text = self._reasoning.read(text)
            if reasoning:
                yield ReasoningPiece(reasoning)
        yield from self._answer(text)

    def end(self) -> Iterator[AnswerPiece]:
        """What is still held back, once the answer has ended."""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.end()
            if reasoning:
                yield ReasoningPiece(reasoning)
            yield from self._answer(text)
        if self._calls is not None:
            yield from self._calls.end()

    def _answer(self, text: str) -> Iterator[AnswerPiece]:
        """The end of all that was read so far."""
        if text and self._text_start is None:
            self._text_start = self._num_characters - len(text)
        if self._calls is not None:
            yield from self._calls.read(text)
        elif text:
            yield TextPiece(text)
