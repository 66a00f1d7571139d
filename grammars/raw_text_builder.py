"""RawTextBuilder: raw text put together of languages, literals, values and free text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from specdec.grammars.byte_rows import ByteRows
from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsatisfiableSchemaError
from specdec.grammars.languages import MAX_CODE_POINT, Language
from specdec.grammars.raw_text import RawText, ValueStart
from specdec.grammars.text_automaton import MAX_TEXT_STATES

MAX_RAW_STATES = 200_000
"""Byte states of one raw text; those of a language in it are at most MAX_TEXT_STATES."""


class RawTextBuilder:
    """Parts of a raw text, joined by the states at which one ends and the next begins."""

    def __init__(self, spellable: frozenset[int], special_tokens: Mapping[bytes, int]) -> None:
        """Bytes that are not spellable occur nowhere; special tokens stand for the text by which they are known."""
        self._rows = ByteRows(spellable, _spell_raw)
        self._spellable = spellable
        self._special_tokens = special_tokens
        self._accepting: set[int] = set()
        self._values: dict[int, ValueStart] = {}
        self._special: dict[int, dict[int, int]] = {}

    def state(self, *, accepting: bool = False) -> int:
        """A new state between code points, from which nothing leads yet."""
        if len(self._rows.rows) >= MAX_RAW_STATES:
            raise LimitExceededError(f"the text needs more than {MAX_RAW_STATES} byte states (max_raw_states)")
        row = self._rows.add()
        if accepting:
            self._accepting.add(row)
        return row

    def value(self, goal: int, after: int | None) -> int:
        """A new state at which a JSON value begins."""
        row = self.state()
        self._values[row] = ValueStart(goal, after)
        return row

    def object_or(self, source: int, goal: int) -> int:
        """A new state, from which lead the bytes that lead from another, and an object with which the text ends."""
        start, begun = self.state(), self.value(goal, None)
        self._values[begun] = ValueStart(goal, None, b"{")
        self._rows.rows[start].update(self._rows.rows[source])
        assert ord("{") not in self._rows.rows[start], "the object cannot be told from what else begins here"
        self._rows.rows[start][ord("{")] = begun
        for token_id, target in self._special.get(source, {}).items():
            self._add_special(start, token_id, target)
        return start

    def literal(self, source: int, text: bytes, target: int | None = None) -> int:
        """Lead from a state by the bytes, or by special tokens in their place, to a state: the target, or any.

        Literals from one state share their common beginning; with a target, none may be the beginning of another.
        """
        specials = [(special, token_id) for special, token_id in self._special_tokens.items() if special in text]
        path = [source]
        for position, byte in enumerate(text):
            row = self._rows.rows[path[-1]]
            is_last = position + 1 == len(text)
            if is_last and target is not None:
                assert byte not in row, "a literal begins another"
                row[byte] = target
            elif byte not in row:
                row[byte] = self.state()
            path.append(row[byte])
        for position, state in enumerate(path[:-1] if specials else ()):
            for special, token_id in specials:
                if text.startswith(special, position):
                    self._add_special(state, token_id, path[position + len(special)])
        return path[-1]

    def blanks(self, source: int, max_length: int) -> list[int]:
        """The state and those after each length of JSON's whitespace, up to a maximum."""
        states = [source]
        for _ in range(max_length):
            row = self._rows.rows[states[-1]]
            following = row[0x20] if 0x20 in row else self.state()
            row.update(dict.fromkeys(b" \t\n\r", following))
            states.append(following)
        return states

    def copy(self, source: int, target: int, byte: int) -> None:
        """Let a state lead by a byte where another one does."""
        self._rows.rows[target][byte] = self._rows.rows[source][byte]

    def language(self, language: Language) -> int:
        """A new state, from which the words of a language lead to where the text may end."""
        first = len(self._rows.rows)
        rows = {
            state: self.state(accepting=language.accepting[state])
            for state in range(language.num_states)
            if language.is_live(state)
        }
        if not rows:
            return self.state()
        spans = list(
            zip(language.boundaries, (*language.boundaries[1:], MAX_CODE_POINT + 1), language.columns, strict=True)
        )
        for state, row in rows.items():
            self._open_language(row, language.rows[state].tolist(), spans, rows)
            if len(self._rows.rows) - first > MAX_TEXT_STATES:
                raise LimitExceededError(
                    f"the pattern needs more than {MAX_TEXT_STATES} byte states (max_text_states)", keyword="pattern"
                )
        return rows[0]

    def text_until(self, language: Language, end: bytes, after: int, *, may_hold_first: bool) -> int:
        """A new state, from which each word of a language, and the end behind it, lead to `after`.

        Words that hold the end are left out, and without `may_hold_first` those that hold its first byte, which takes
        far fewer states. The end is ASCII, and its first byte comes but once in it.
        """
        begins = {state: self.state() for state in range(language.num_states) if language.is_live(state)}
        spans = list(
            zip(language.boundaries, (*language.boundaries[1:], MAX_CODE_POINT + 1), language.columns, strict=True)
        )
        for state, row in begins.items():
            self._open_language(row, language.rows[state].tolist(), spans, begins)
        first, rest = end[0], end[1:]
        if not may_hold_first:
            ended = self.state()
            self.literal(ended, rest, after)
            for state, row in begins.items():
                if language.accepting[state]:
                    self._rows.rows[row][first] = ended
                else:
                    self._rows.rows[row].pop(first, None)
            return begins[0]
        parts = {state: [self.state() for _ in rest] for state in begins}
        for state, row in begins.items():
            self._rows.rows[row][first] = parts[state][0]
        for state in begins:
            reached = state
            for num_read, part in enumerate(parts[state], 1):
                reached = language.step(reached, end[num_read - 1]) if reached in begins else reached
                targets = self._rows.rows[part]
                if reached in begins:
                    # What was read of the end is a part of the word, should anything else follow.
                    targets.update(self._rows.rows[begins[reached]])
                if num_read < len(rest):
                    targets[end[num_read]] = parts[state][num_read]
                elif language.accepting[state]:
                    targets[end[num_read]] = after
                else:
                    targets.pop(end[num_read], None)
        return begins[0]

    def choice(self, texts: Iterable[bytes]) -> int:
        """A new state, from which each of the texts leads to where the text may end."""
        start = self.state()
        for text in texts:
            state = start
            for byte in text:
                row = self._rows.rows[state]
                if byte not in row:
                    row[byte] = self.state()
                state = row[byte]
            self._accepting.add(state)
        return start

    def other_text(self, source: int, *, blanks: bool = False) -> int:
        """A new state, from which lead the bytes that lead from another, and any text that begins with none of them.

        With `blanks` either may come after any amount of JSON's whitespace.
        """
        text, start = self.state(accepting=True), self.state(accepting=True)
        for state in (text, start):
            self._rows.open(state, {text: [(0, MAX_CODE_POINT)]})
        if blanks:
            self._rows.rows[start].update(dict.fromkeys(b" \t\n\r", start))
        self._rows.rows[start].update(self._rows.rows[source])
        return start

    def first_of(self, source: int, other: int) -> int:
        """A new state, from which lead the bytes that lead from a state, and those others that lead from the other.

        The text may end where it may in the other.
        """
        start = self.state(accepting=other in self._accepting)
        for state in (other, source):
            self._rows.rows[start].update(self._rows.rows[state])
            for token_id, target in self._special.get(state, {}).items():
                self._add_special(start, token_id, target)
        return start

    def free_text(self, marker: bytes, after: int, *, may_end: bool) -> int:
        """A new state, from which any text leads to `after` by the first occurrence of a marker.

        Knuth, Morris, Pratt 1977, over bytes: the marker is whole code points, so that no occurrence begins within
        one. A special token that the marker begins with commits to the marker.
        """
        # The rows of all texts, made into a product with how much of the marker the text ends with.
        plain = ByteRows(self._spellable, _spell_raw)
        between = plain.add()
        plain.open(between, {between: [(0, MAX_CODE_POINT)]})
        matches = _Matches(marker)
        start = (between, 0)
        states = {start: self.state(accepting=may_end)}
        pending = [start]
        committed = self._commitments(marker, after)
        for place in pending:
            row, matched = place
            source = states[place]
            for byte, reached in plain.rows[row].items():
                length = matches.after(matched, byte)
                if length == len(marker):
                    self._rows.rows[source][byte] = after
                    continue
                following = (reached, length)
                if following not in states:
                    states[following] = self.state(accepting=may_end and reached == between)
                    pending.append(following)
                self._rows.rows[source][byte] = states[following]
            if row == between and committed and matches.is_first_after(matched):
                for token_id, target in committed.items():
                    self._add_special(source, token_id, target)
        return states[start]

    def _open_language(
        self, row: int, targets: list[int], spans: list[tuple[int, int, int]], rows: Mapping[int, int]
    ) -> None:
        """Give a row the transitions of a state of a language, of which `rows` are those that are live."""
        ranges: dict[int, list[tuple[int, int]]] = {}
        for low, after, column in spans:
            if targets[column] in rows:
                ranges.setdefault(rows[targets[column]], []).append((low, after - 1))
        self._rows.open(row, ranges)

    def _commitments(self, marker: bytes, after: int) -> dict[int, int]:
        """Where each special token leads that the marker begins with: to the rest of the marker."""
        found: dict[int, int] = {}
        for special, token_id in self._special_tokens.items():
            if marker == special:
                found[token_id] = after
            elif marker.startswith(special):
                found[token_id] = self.state()
                self.literal(found[token_id], marker[len(special) :], after)
        return found

    def build(self, start: int) -> RawText:
        """The automaton of all texts from a state; UnsatisfiableSchemaError where the vocabulary can spell none."""
        live = self._live()
        if start not in live:
            raise UnsatisfiableSchemaError("no text that the vocabulary can spell satisfies the constraint")
        rows = (
            {byte: target for byte, target in targets.items() if byte in self._spellable and target in live}
            for targets in self._rows.rows
        )
        accepting = np.zeros(len(self._rows.rows), np.uint8)
        accepting[[row for row in self._accepting if row in live]] = 1
        special = {
            row: {token_id: target for token_id, target in targets.items() if target in live}
            for row, targets in self._special.items()
            if row in live
        }
        values = {row: value for row, value in self._values.items() if row in live}
        return RawText(rows, accepting, start, values, special)

    def _live(self) -> set[int]:
        """The states from which the text can be completed by spellable bytes."""
        sources: dict[int, list[int]] = {}
        for row, targets in enumerate(self._rows.rows):
            for target in {target for byte, target in targets.items() if byte in self._spellable}:
                sources.setdefault(target, []).append(row)
        for row, value in self._values.items():
            if value.after is not None:
                sources.setdefault(value.after, []).append(row)
        live = {*self._accepting, *(row for row, value in self._values.items() if value.after is None)}
        pending = list(live)
        for target in pending:
            for row in sources.get(target, ()):
                if row not in live:
                    live.add(row)
                    pending.append(row)
        return live

    def _add_special(self, source: int, token_id: int, target: int) -> None:
        self._special.setdefault(source, {})[token_id] = target


class _Matches:
    """How many bytes of a marker a text ends with."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._borders = [0]
        length = 0
        for byte in marker[1:]:
            length = self.after(length, byte)
            self._borders.append(length)

    def after(self, matched: int, byte: int) -> int:
        """How many after one more byte."""
        while matched and self._marker[matched] != byte:
            matched = self._borders[matched - 1]
        return matched + 1 if self._marker[matched] == byte else 0

    def is_first_after(self, matched: int) -> bool:
        """Whether the whole marker, written now, is the first occurrence of it."""
        for byte in self._marker[:-1]:
            matched = self.after(matched, byte)
            if matched == len(self._marker):
                return False
        return True


def raw_bytes(text: str, keyword: str, pointer: str) -> bytes:
    """The text as UTF-8; InvalidSchemaError where it has a lone surrogate, which no text has."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidSchemaError(
            f"{keyword} has a lone surrogate at character {error.start}", keyword=keyword, pointer=pointer
        ) from None


def _spell_raw(point: int) -> bytes:
    return bytes((point,))
