"""Patterns as ECMA-262 reads them with the flag u, or as Annex B does where the flag would make them an error.

Code points are matched in both cases, never halves of surrogate pairs. A pattern that needs the flag for one construct
and Annex B for another has no meaning in any engine and is refused; escaped punctuation counts for neither, as it means
itself everywhere.

Three readings are Python's, because ECMA-262 has none and authors mean the same: \\A and \\Z, and (?P<name>...).
An escaped ASCII letter without a meaning is refused, not read as itself: it meant something in another dialect.
"""

from __future__ import annotations

import re

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError, UnsupportedSchemaError
from specdec.grammars.pattern_sets import (
    DIGIT,
    NOT_LINE_END,
    SPACE,
    WORD,
    Ranges,
    as_ranges,
    complement,
    property_set,
)
from specdec.grammars.pattern_syntax import (
    END,
    START,
    Characters,
    Look,
    Node,
    Repetition,
    choice,
    sequence,
    word_boundary,
)

MAX_LENGTH = 20_000
"""Characters of one pattern."""
MAX_DEPTH = 64
"""Groups inside one another."""

_CLASSES: dict[str, Ranges] = {
    "d": DIGIT, "w": WORD, "s": SPACE, "D": complement(DIGIT), "W": complement(WORD), "S": complement(SPACE),
}  # fmt: skip
_CONTROLS = {"f": 0x0C, "n": 0x0A, "r": 0x0D, "t": 0x09, "v": 0x0B}
_GROUP = re.compile(r"\((?:\?(?:(?P<look><?[=!])|:|P?<(?P<name>[^\W\d]\w*)>|(?P<bad>)))?")
_QUANTIFIER = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<low>[0-9]+)(?P<comma>,(?P<high>[0-9]+)?)?\})(?P<after>[?+]?)")
_UNICODE = re.compile(r"u(?:\{(?P<braced>[0-9a-fA-F]+)\}|(?P<four>[0-9a-fA-F]{4}))")
_LOW_SURROGATE = re.compile(r"\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_CLASS_CONTROL = re.compile(r"c([0-9_])")


class _Group:
    """A group that is still open; `look` is None, or the is_ahead and is_negative of a look."""

    __slots__ = ("branches", "look", "parts")

    def __init__(self, look: tuple[bool, bool] | None = None) -> None:
        self.look = look
        self.branches: list[Node] = []
        self.parts: list[Node] = []

    def close(self) -> Node:
        body = choice([*self.branches, sequence(self.parts)])
        return body if self.look is None else Look(body, is_ahead=self.look[0], is_negative=self.look[1])


def read_pattern(source: str) -> Node:
    """The pattern's tree.

    Raises InvalidSchemaError where it is malformed, UnsupportedSchemaError for back-references and unknown properties,
    LimitExceededError where it is too long or too deep.
    """
    if len(source) > MAX_LENGTH:
        raise LimitExceededError(
            f"a pattern of {len(source)} characters is over the limit max_pattern_length = {MAX_LENGTH}",
            keyword="pattern",
        )
    return _Reader(source).read()


class _Reader:
    __slots__ = ("_has_names", "_names", "_needs_annex_b", "_needs_flag", "_num_groups", "_position", "_source")

    def __init__(self, source: str) -> None:
        self._source = source
        self._position = 0
        # What \1 and \k mean depends on groups that may come later.
        bare = re.sub(r"(?s)\\.|\[(?:\\.|[^\]\\])*\]?", "_", source)
        self._num_groups = len(re.findall(r"\((?!\?)|\(\?P?<(?![=!])", bare))
        self._has_names = re.search(r"\(\?P?<(?![=!])", bare) is not None
        self._names: set[str] = set()
        # The first construct that only the flag u has, and the first that it forbids.
        self._needs_flag: str | None = None
        self._needs_annex_b: str | None = None

    def read(self) -> Node:
        node = self._read()
        if self._needs_flag is not None and self._needs_annex_b is not None:
            raise InvalidSchemaError(
                f"{self._source!r} is not a pattern of ECMA-262: {self._needs_flag} needs the flag u, "
                f"which forbids {self._needs_annex_b}",
                keyword="pattern",
            )
        return node

    def _read(self) -> Node:
        source = self._source
        groups = [_Group()]
        can_repeat = is_after_look = False
        while self._position < len(source):
            character = source[self._position]
            top = groups[-1]
            quantifier = _QUANTIFIER.match(source, self._position)
            if quantifier is not None:
                if not can_repeat:
                    raise self._malformed(f"nothing to repeat before {quantifier[0]!r}")
                if quantifier["after"] == "+":
                    raise self._malformed(f"the quantifier {quantifier[0]!r}")
                top.parts[-1] = self._repetition(top.parts[-1], quantifier)
                self._position = quantifier.end()
                if is_after_look:
                    self._note_annex_b(f"{quantifier[0]!r} after a look-ahead")
                can_repeat = False
                continue
            can_repeat, is_after_look = True, False
            self._position += 1
            if character == "(":
                groups.append(self._open_group())
                if len(groups) > MAX_DEPTH:
                    raise LimitExceededError(
                        f"a pattern of groups {len(groups)} deep is over the limit max_pattern_depth = {MAX_DEPTH}",
                        keyword="pattern",
                    )
                can_repeat = False
            elif character == ")":
                if len(groups) == 1:
                    raise self._malformed("a ')' without '('")
                groups.pop()
                groups[-1].parts.append(top.close())
                # Annex B lets a look-ahead be repeated, but not a look-behind.
                is_after_look = top.look is not None
                can_repeat = top.look is None or top.look[0]
            elif character == "|":
                top.branches.append(sequence(top.parts))
                top.parts = []
                can_repeat = False
            elif character in "^$":
                top.parts.append(START if character == "^" else END)
                can_repeat = False
            elif character == "[":
                top.parts.append(Characters(self._class()))
            elif character == "\\":
                node = self._escape()
                top.parts.append(node)
                can_repeat = isinstance(node, Characters)
            else:
                if character in "]{}":
                    self._note_annex_b(f"a single {character!r}")
                ranges = NOT_LINE_END if character == "." else as_ranges([(ord(character), ord(character))])
                top.parts.append(Characters(ranges))
        if len(groups) > 1:
            raise self._malformed("a '(' without ')'")
        return groups[0].close()

    def _malformed(self, what: str) -> InvalidSchemaError:
        return InvalidSchemaError(
            f"{self._source!r} is not a pattern of ECMA-262: {what}, before position {self._position}",
            keyword="pattern",
        )

    def _note_flag(self, start: int) -> None:
        """What is in the source from start to here has this meaning only with the flag u."""
        self._needs_flag = self._needs_flag or repr(self._source[start : self._position])

    def _note_annex_b(self, what: str) -> None:
        self._needs_annex_b = self._needs_annex_b or what

    def _open_group(self) -> _Group:
        group = _GROUP.match(self._source, self._position - 1)
        assert group is not None
        if group["bad"] is not None:
            raise self._malformed(f"the group {self._source[group.start() : group.start() + 4]!r}")
        self._position = group.end()
        if group["name"] in self._names:
            raise self._malformed(f"the second group of the name {group['name']!r}")
        if group["name"] is not None:
            self._names.add(group["name"])
        look = group["look"]
        return _Group(None if look is None else ("<" not in look, "!" in look))

    def _repetition(self, item: Node, quantifier: re.Match[str]) -> Node:
        sign, low, high = quantifier["sign"], quantifier["low"], quantifier["high"]
        if sign is not None:
            return Repetition(item, 1 if sign == "+" else 0, 1 if sign == "?" else None)
        minimum = self._count(low)
        maximum = (self._count(high) if high is not None else None) if quantifier["comma"] else minimum
        if maximum is not None and maximum < minimum:
            raise self._malformed(f"the quantifier {quantifier[0]!r}")
        return item if (minimum, maximum) == (1, 1) else Repetition(item, minimum, maximum)

    def _count(self, digits: str) -> int:
        if len(digits.lstrip("0")) > 9:
            raise LimitExceededError(
                f"a pattern that repeats {digits[:20]} times is over the limit max_pattern_repeats = {10**9 - 1}",
                keyword="pattern",
            )
        return int(digits.lstrip("0") or "0")

    def _escape(self) -> Node:
        character = self._source[self._position : self._position + 1]
        if character and character in "bB":
            self._position += 1
            return word_boundary(WORD, is_negative=character == "B")
        if character and character in "AZ":
            self._position += 1
            return START if character == "A" else END
        digits = re.compile(r"[1-9][0-9]{0,5}").match(self._source, self._position)
        if (digits is not None and int(digits[0]) <= self._num_groups) or (character == "k" and self._has_names):
            raise UnsupportedSchemaError(
                f"the back-reference \\{digits[0] if digits is not None else 'k'} in the pattern {self._source!r}",
                keyword="pattern",
            )
        return Characters(self._escaped_set())

    def _escaped_set(self) -> Ranges:
        """What an escape matches that means the same inside and outside a class; the position is after its \\."""
        source = self._source
        if self._position == len(source):
            raise self._malformed("a \\ at the end")
        character = source[self._position]
        self._position += 1
        if character in _CLASSES:
            return _CLASSES[character]
        if character in "pP":
            return self._property(is_negative=character == "P")
        point = self._escaped_code_point(character)
        return as_ranges([(point, point)])

    def _escaped_code_point(self, character: str) -> int:
        source = self._source
        if character in _CONTROLS:
            return _CONTROLS[character]
        if character in "01234567":
            octal = re.compile(r"[0-3]?[0-7]{1,2}").match(source, self._position - 1)
            assert octal is not None
            self._position = octal.end()
            if octal[0] != "0" or source[self._position : self._position + 1] in {"8", "9"}:
                self._note_annex_b(f"'\\{octal[0]}'")
            return int(octal[0], 8)
        if character == "c":
            letter = source[self._position : self._position + 1]
            if letter.isascii() and letter.isalpha():
                self._position += 1
                return ord(letter) % 32
            # Annex B reads the \ as itself.
            self._note_annex_b("'\\c' without a letter")
            self._position -= 1
            return ord("\\")
        if character == "x":
            two = re.compile(r"[0-9a-fA-F]{2}").match(source, self._position)
            if two is not None:
                self._position += 2
                return int(two[0], 16)
        if character == "u":
            return self._unicode_escape()
        if character.isascii() and character.isalpha() and (character != "k" or self._has_names):
            raise self._malformed(f"the escape \\{character}")
        if character in "89k":
            self._note_annex_b(f"'\\{character}'")
        return ord(character)

    def _unicode_escape(self) -> int:
        start = self._position - 2
        escape = _UNICODE.match(self._source, self._position - 1)
        if escape is None:
            raise self._malformed("the escape \\u")
        self._position = escape.end()
        point = int(escape["braced"] or escape["four"], 16)
        if point > 0x10FFFF:
            raise self._malformed(f"the escape \\{escape[0]}")
        if escape["braced"]:
            self._note_flag(start)
        low = _LOW_SURROGATE.match(self._source, self._position)
        if escape["four"] and 0xD800 <= point < 0xDC00 and low is not None:
            self._position = low.end()
            self._note_flag(start)
            return 0x10000 + ((point - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        return point

    def _property(self, *, is_negative: bool) -> Ranges:
        name = re.compile(r"\{([A-Za-z0-9_]+(?:=[A-Za-z0-9_]+)?)\}").match(self._source, self._position)
        if name is None:
            raise self._malformed("the escape \\p without a property in braces")
        start, self._position = self._position - 2, name.end()
        self._note_flag(start)
        ranges = property_set(name[1])
        if ranges is None:
            raise UnsupportedSchemaError(
                f"the Unicode property {name[1]!r} in the pattern {self._source!r}", keyword="pattern"
            )
        return complement(ranges) if is_negative else ranges

    def _class(self) -> Ranges:
        source = self._source
        is_negative = source[self._position : self._position + 1] == "^"
        self._position += is_negative
        spans: list[tuple[int, int]] = []
        while True:
            if self._position >= len(source):
                raise self._malformed("a '[' without ']'")
            if source[self._position] == "]":
                self._position += 1
                break
            low = self._class_atom()
            if source[self._position : self._position + 1] != "-" or source[
                self._position + 1 : self._position + 2
            ] in {
                "]",
                "",
            }:
                spans.extend([(low, low)] if isinstance(low, int) else low)
                continue
            self._position += 1
            high = self._class_atom()
            if isinstance(low, int) and isinstance(high, int):
                if low > high:
                    raise self._malformed("a range out of order")
                spans.append((low, high))
            else:
                # Annex B: beside a class such as \w the hyphen is a character.
                self._note_annex_b("a '-' beside a set in a class")
                for end in (low, high, ord("-")):
                    spans.extend([(end, end)] if isinstance(end, int) else end)
        ranges = as_ranges(spans)
        return complement(ranges) if is_negative else ranges

    def _class_atom(self) -> int | Ranges:
        """A code point, or the set of an escape such as \\w."""
        character = self._source[self._position]
        self._position += 1
        if character != "\\":
            return ord(character)
        following = self._source[self._position : self._position + 1]
        if following == "b":
            self._position += 1
            return 0x08
        if following and following in "dDwWsSpP":
            return self._escaped_set()
        if not following:
            raise self._malformed("a \\ at the end")
        control = _CLASS_CONTROL.match(self._source, self._position)
        if control is not None:
            # Annex B's ClassControlLetter, which outside a class there is not.
            self._note_annex_b(f"'\\{control[0]}'")
            self._position = control.end()
            return ord(control[1]) % 32
        self._position += 1
        return self._escaped_code_point(following)
