"""TextLogprobs: of the log-probabilities of an answer's tokens, those of its text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from specdec import TokenLogprob
from specdec.server.answer_reader import AnswerReader


class TextLogprobs:
    """One choice; `pieces` are what each token adds to it, in bytes.

    A token with a part in the text is one of the text, be the other part a think tag's or a call's.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0
        self._waiting: list[tuple[int, int, TokenLogprob]] = []
        """Tokens of which it is not known what they are part of, with the places at which each begins and ends."""

    def add(self, entries: Iterable[TokenLogprob]) -> None:
        """The tokens by which the answer goes on."""
        for entry in entries:
            begin = self._num_characters
            self._num_characters += len(self._decoder.decode(self._pieces[entry.token_id]))
            self._waiting.append((begin, self._num_characters, entry))

    def of_text(self, reader: AnswerReader, *, is_last: bool) -> list[TokenLogprob]:
        """Those of text that has been read since, by a reader that has read all that was added."""
        start, read, end = reader.text_start, reader.text_read, reader.text_end
        if start is None:
            if reader.is_in_reasoning:
                self._waiting.clear()
            return []
        found, waiting = [], []
        for token in self._waiting:
            token_begin, token_end, entry = token
            if token_begin < start >= token_end or (end is not None and token_begin >= end):
                continue
            if token_begin < read or is_last:
                found.append(entry)
            else:
                waiting.append(token)
        self._waiting = waiting
        return found
