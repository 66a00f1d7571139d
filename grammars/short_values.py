"""ShortValues: for each rule a value that few tokens spell, and how an object or array that was begun ends soonest.

What is chosen is short, not always shortest: of the ways to go on that a rule allows, the one that is cheapest now and
leaves least to show. That a rule allows it means that it can be finished, so each of them does end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from specdec.grammars.any_order import KeyRule
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ObjectRun
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.numerals import NumeralAutomaton
from specdec.grammars.rules import ArrayRule, ObjectRule, Rule
from specdec.grammars.speller import Speller
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.strings import StringTerm
from specdec.grammars.tails import Tails
from specdec.grammars.text_automaton import TextAutomaton

_MAX_BYTES = 100_000
"""Longer values are taken for endless."""
_MAX_COMPARED = 64
"""Of many single texts, the shortest in bytes are compared by their tokens."""
_MAX_BOUNDED_RULES = 500
_MAX_LOADED = 250
"""Rules."""
_LONGEST_NUMERAL = 32
_LONGEST_CODE_POINT = 6
_MAX_DISTINCT = 1024
"""Values of one rule that are told apart."""
_MAX_VISITED = 20_000
"""States that a search for members visits."""

Progress = tuple[int, int, int]


class ShortValues:
    """Of the rules of one grammar. `is_canonical` says which numerals its numbers have."""

    def __init__(
        self,
        rules: Sequence[Rule],
        lexicon: Lexicon,
        speller: Speller,
        tails: Tails,
        *,
        is_canonical: bool,
        known: Mapping[int, bytes | None],
    ) -> None:
        self._rules = rules
        self._lexicon = lexicon
        self._speller = speller
        self._tails = tails
        self._is_canonical = is_canonical
        self.known: dict[int, bytes | None] = dict(known)
        """What `text` has found."""
        self._num_tokens: dict[int, int | None] = {}
        self._unsettled: dict[int, bytes | None] = {}
        """Of the rules that are being settled together, the shortest so far."""
        self._known_object_rests: BoundedCache[tuple[object, ...], bytes] = BoundedCache(8192)
        self._known_most_tokens: BoundedCache[tuple[ObjectRule, int], int] = BoundedCache(1024)
        self._known_array_rests: BoundedCache[tuple[object, ...], bytes] = BoundedCache(8192)

    def text(self, number: int) -> bytes | None:
        """A short value of the rule, the same whenever it is asked for; None where the shortest is too long."""
        if number not in self.known:
            self.known[number] = self._settle(number)
        return self.known[number]

    def num_tokens(self, number: int) -> int | None:
        """The tokens of `text`."""
        if number not in self._num_tokens:
            text = self.text(number)
            self._num_tokens[number] = None if text is None else self._speller.num_tokens(text)
        return self._num_tokens[number]

    def load(self) -> None:
        """Set up ahead what the first walk in a budget would wait for, where texts are known."""
        for number, rule in enumerate(self._rules[:_MAX_LOADED]):
            if self.known.get(number) is None:
                continue
            self.num_tokens(number)
            for one in rule.any_order or rule.objects:
                start = ObjectRun(number, one, pending=one.all_witnesses)
                self.object_rest(start, frozenset(), has_keys=False, must_continue=False, has_one_free_key=False)

    def most_tokens(self, rule: ObjectRule, position: int) -> int | None:
        """The most tokens of a short value of any key that may come next; None where some value has none."""
        known = self._known_most_tokens.get((rule, position))
        if known is None:
            choices = [*rule.choices[position : rule.next_required[position] + 1]]
            if rule.takes_free_keys(position):
                choices += (free.choices for free in rule.free)
            costs = [self.num_tokens(child) for child in {child for one in choices for _, child in one}]
            if None in costs:
                return None
            known = max((cost for cost in costs if cost is not None), default=0)
            self._known_most_tokens.put((rule, position), known)
        return known

    def object_rest(
        self, run: ObjectRun, seen: frozenset[bytes], *, has_keys: bool, must_continue: bool, has_one_free_key: bool
    ) -> bytes | None:
        """From after a value, or with `has_keys` false from before a key, to the closing brace.

        `seen` are the free keys so far; `must_continue` asks for a key before the brace.
        """
        rule, progress = run.rule, run.progress
        if isinstance(rule, ObjectRule) and rule.is_plain and not must_continue:
            # Keys that need not come do not.
            progress = (rule.next_required[progress[0]], 0, 0)
        kept = seen if rule.free else frozenset[bytes]()
        key = (rule, progress, kept, must_continue, has_one_free_key)
        rest = self._known_object_rests.get(key)
        if rest is None:
            rest = self._find_object_rest(rule, progress, kept, False, must_continue, has_one_free_key)
            if rest is None:
                return None
            self._known_object_rests.put(key, rest)
        return b"," + rest if has_keys and rest.startswith(b'"') else rest

    def array_rest(
        self,
        rule: ArrayRule,
        num_items: int,
        counted: tuple[int, ...],
        seen: frozenset[bytes] | None,
        *,
        has_items: bool,
        must_continue: bool = False,
    ) -> bytes | None:
        """From after an item, or with `has_items` false from before one, to the closing bracket.

        `seen` are the texts of the items so far where none may come again.
        """
        key = (rule, num_items, counted, seen, has_items, must_continue)
        rest = self._known_array_rests.get(key)
        if rest is None:
            rest = self._find_array_rest(*key)
            if rest is not None:
                self._known_array_rests.put(key, rest)
        return rest

    def most_bytes(self, stopwatch: Stopwatch) -> int | None:
        """No fewer bytes than what was begun of any rule's object or array, or of a scalar in one, takes to end.

        None where there are too many rules, a rule has no short value, or half of the time to compile is over.
        """
        if len(self._rules) > _MAX_BOUNDED_RULES:
            return None
        texts = list[bytes]()
        for number in range(len(self._rules)):
            if stopwatch.is_half_over():
                return None
            text = self.text(number)
            texts += [] if text is None else [text]
        if len(texts) < len(self._rules) or any(array.is_unique for rule in self._rules for array in rule.arrays):
            return None
        most = 0
        for text, rule in zip(texts, self._rules, strict=True):
            most = max(most, len(text), *map(len, rule.literals), *map(len, rule.strings), _LONGEST_NUMERAL)
            for term in rule.terms:
                num_code_points = term.min_length + term.language.longest_of_shortest_rests()
                most = max(most, _LONGEST_CODE_POINT * num_code_points + 2)
        longest_key = max((len(key) for rule in self._rules for one in rule.objects for key in one.keys), default=2)
        longest_key = max([longest_key, *map(self._longest_free_key, self._rules)])
        member = longest_key + most + 4
        return most + member * max(map(self._most_members, self._rules), default=0)

    def _longest_free_key(self, rule: Rule) -> int:
        # Of a class of free keys, a key that none of those before it is may be longer than the shortest.
        rests = [
            0 if free.language is None else free.language.longest_of_shortest_rests()
            for one in rule.objects
            for free in one.free
        ]
        return _LONGEST_CODE_POINT * (max(rests, default=0) + 4)

    @staticmethod
    def _most_members(rule: Rule) -> int:
        """No fewer keys or items than what was begun of the rule has to show."""
        objects = [sum(one.required) + one.min_properties + one.num_witnesses for one in rule.objects]
        arrays = [
            max(array.min_items, len(array.prefix)) + sum(count.minimum for count in array.counts)
            for array in rule.arrays
        ]
        return 1 + max((*objects, *arrays), default=0)

    def _settle(self, number: int) -> bytes | None:
        """Find the texts of a rule and of those that it may need, again and again until none gets shorter."""
        outer, self._unsettled = self._unsettled, {}
        texts = self._unsettled
        pending, needed = [number], {number}
        while pending:
            for child in self._children(self._rules[pending.pop()]):
                if child not in needed and child not in self.known:
                    needed.add(child)
                    pending.append(child)
        for child in needed:
            texts[child] = None
        # Children mostly have higher numbers than those that first asked for them.
        order = sorted(needed, reverse=True)
        is_changed = True
        while is_changed:
            is_changed = False
            for one in order:
                text, known = self._find_text(self._rules[one]), texts[one]
                if text is not None and (known is None or self._cost(text) < self._cost(known)):
                    texts[one] = text
                    is_changed = True
        self._unsettled = outer
        return texts[number]

    def _children(self, rule: Rule) -> Iterator[int]:
        """The rules whose values a short value may hold."""
        for one in rule.objects:
            for choices, is_required in zip(one.choices, one.required, strict=True):
                if is_required or not one.is_plain:
                    yield from (child for _, child in choices)
            if not one.is_plain:
                yield from (child for free in one.free for _, child in free.choices)
        for array in rule.arrays:
            if array.min_items or array.counts:
                yield from (child for choices in (*array.prefix, array.items) for _, child in choices)

    def _cost(self, text: bytes) -> tuple[int, int]:
        return self._speller.num_tokens(text), len(text)

    def _find_text(self, rule: Rule) -> bytes | None:
        found = [text for text in self._scalars(rule) if len(text) <= _MAX_BYTES]
        for one in rule.objects:
            rest = self._find_object_rest(one, (0, 0, one.all_witnesses), frozenset(), False, False, False)
            found += [] if rest is None else [b"{" + rest]
        for array in rule.arrays:
            seen = frozenset[bytes]() if array.is_unique else None
            rest = self._find_array_rest(array, 0, array.none_counted, seen, False, False)
            found += [] if rest is None else [b"[" + rest]
        return min(found, key=self._cost, default=None)

    def _scalars(self, rule: Rule) -> Iterator[bytes]:
        yield from sorted(rule.literals, key=len)[:_MAX_COMPARED]
        yield from (b'"' + text for text in sorted(rule.strings, key=len)[:_MAX_COMPARED])
        if rule.numbers is not None:
            automaton = self._numerals(rule)
            assert automaton is not None, "the rule has numbers"
            if not automaton.is_empty():
                yield self._tails.of_number(automaton, automaton.START)[0]
        for term in rule.terms:
            if term.language.is_everything:
                if term.min_length <= _MAX_BYTES:
                    yield b'"' + self._speller.padding * term.min_length + b'"'
                continue
            texts = self._lexicon.text_automaton((term,))
            tail = self._tails.of_text(texts, texts.start, 0, 0)
            if tail is not None:
                yield b'"' + tail

    def _numerals(self, rule: Rule) -> NumeralAutomaton | None:
        return None if rule.numbers is None else self._lexicon.numerals(rule.numbers, canonical=self._is_canonical)

    def _find_object_rest(
        self,
        rule: KeyRule,
        progress: Progress,
        seen: frozenset[bytes],
        has_keys: bool,
        must_continue: bool,
        has_one_free_key: bool,
    ) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        taken = set(seen)
        while must_continue or not rule.may_close(*progress):
            step = self._next_key(rule, progress, taken, has_one_free_key)
            if step is None:
                return None
            key, is_free, following, text = step
            is_needed = (
                must_continue
                or progress[1] < rule.min_properties
                or following[2] != progress[2]
                or (not is_free and rule.required[rule.positions[key]])
            )
            if not is_needed:
                # What is still to be shown needs a value that has no text yet.
                return None
            progress = following
            if is_free:
                taken.add(key)
            parts += [b',"' if has_keys else b'"', key, b":", text]
            size += len(key) + len(text)
            if size > _MAX_BYTES:
                return None
            has_keys, must_continue = True, False
        return b"".join((*parts, b"}"))

    def _next_key(
        self, rule: KeyRule, progress: Progress, taken: set[bytes], has_one_free_key: bool
    ) -> tuple[bytes, bool, Progress, bytes] | None:
        """(key, whether it is free, progress after it, value)."""
        keys = rule.candidates(*progress)
        required = [key for key in keys if rule.required[rule.positions[key]]]
        steps = list(self._declared_steps(rule, progress, required))
        if not steps:
            steps = list(self._declared_steps(rule, progress, keys))
            if not (has_one_free_key and taken):
                steps += self._free_steps(rule, progress, taken)
        return min(steps, key=self._rank, default=None)

    def _rank(self, step: tuple[bytes, bool, Progress, bytes]) -> tuple[int, int, int, bytes]:
        key, _, (_, _, pending), text = step
        whole = b'"' + key + b":" + text
        return pending.bit_count(), *self._cost(whole), whole

    def _declared_steps(
        self, rule: KeyRule, progress: Progress, keys: list[bytes]
    ) -> Iterator[tuple[bytes, bool, Progress, bytes]]:
        for key in keys:
            for position, num_keys, pending, child in rule.after_declared(*progress, rule.positions[key]):
                text = self._known_text(child)
                if text is not None:
                    yield key, False, (position, num_keys, pending), text

    def _free_steps(
        self, rule: KeyRule, progress: Progress, taken: set[bytes]
    ) -> Iterator[tuple[bytes, bool, Progress, bytes]]:
        for number in range(len(rule.free)):
            key: bytes | None = None
            for position, num_keys, pending, child in rule.after_free(*progress, number):
                text = self._known_text(child)
                key = key or self.free_key(rule, number, taken)
                if text is not None and key is not None:
                    yield key, True, (position, num_keys, pending), text

    def _known_text(self, number: int) -> bytes | None:
        return self._unsettled[number] if number in self._unsettled else self.text(number)

    def free_key(self, rule: KeyRule, number: int, taken: set[bytes]) -> bytes | None:
        """A key of `rule.free[number]` that is neither declared nor taken, spelt with its closing quote."""
        language = rule.free[number].language
        if language is None:
            key = b'"'
            while key in taken or key in rule.positions:
                key = self._speller.padding + key
            return key
        term = self._lexicon.text_automaton((StringTerm(language),))
        return next((key for key in self.members(term, 0) if key not in taken and key not in rule.positions), None)

    def members(self, automaton: TextAutomaton, term: int, state: int | None = None) -> Iterator[bytes]:
        """Tails of members of a term from a state on, closing quote included, the fewest code points first.

        Of code points beyond ASCII one stands for all that lead to the same state. Not all members are found: the
        search has a bound.
        """
        first = automaton.start if state is None else state
        low = int(automaton.lows[term]) if automaton.is_counted else 0
        num_left = _MAX_VISITED
        for length in range(max(low, int(automaton.shortest[term, first])), _MAX_VISITED):
            pending = [(first, 0, b"")]
            is_cut = False
            while pending:
                current, begun, text = pending.pop()
                num_left -= 1
                if num_left < 0:
                    return
                if begun == length and automaton.is_boundary[current]:
                    if term in automaton.accepts[current]:
                        yield text + b'"'
                    is_cut = True
                    continue
                after = begun + 1 if automaton.is_boundary[current] else begun
                for data, target in reversed(list(self._all_code_points(automaton, current))):
                    if automaton.longest[term, target] >= 0 and after + automaton.shortest[term, target] <= length:
                        pending.append((target, after, text + data))
            if not is_cut or (automaton.is_counted and length >= automaton.highs[term]):
                return

    def _all_code_points(self, automaton: TextAutomaton, state: int) -> Iterator[tuple[bytes, int]]:
        """ASCII ones each, others one for each target."""
        for byte in range(0x20, 0x7F):
            target = automaton.steps[state][byte]
            if target > 1 and automaton.is_boundary[target]:
                yield bytes((byte,)), target
        for data, target in self._tails.code_points(automaton, state):
            if len(data) > 1 or data[0] >= 0x80:
                yield data, target

    def _find_array_rest(
        self,
        rule: ArrayRule,
        num_items: int,
        counted: tuple[int, ...],
        seen: frozenset[bytes] | None,
        has_items: bool,
        must_continue: bool,
    ) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        taken = set(seen or ())
        # An item is a byte and a comma at least, and claims at most one of each.
        fewest = max(rule.min_items - num_items, *_missing(rule, counted), 0)
        if 2 * fewest > _MAX_BYTES:
            return None
        while must_continue or not rule.may_close(num_items, counted):
            best: tuple[tuple[int, int, int], bytes, tuple[int, ...]] | None = None
            missing_before = _num_missing(rule, counted)
            for child, claimed in rule.after_item(num_items, counted):
                text = self._known_text(child) if seen is None else self._distinct_text(child, taken)
                if text is None:
                    continue
                rank = (_num_missing(rule, claimed), *self._cost(text))
                if best is None or rank < best[0]:
                    best = rank, text, claimed
            is_past_all = num_items >= max(rule.min_items, len(rule.prefix))
            if best is None or (is_past_all and best[0][0] >= missing_before > 0):
                # Where items may not repeat, some of those that are asked for may have been used up.
                return None
            _, text, claimed = best
            repeats = 1
            if seen is not None:
                taken.add(text)
            elif num_items >= len(rule.prefix):
                repeats = _num_alike(rule, num_items, counted, claimed)
            counted = _after(counted, claimed, repeats)
            size += (len(text) + 1) * repeats
            if size > _MAX_BYTES:
                return None
            parts += [b"," if has_items else b"", text, (b"," + text) * (repeats - 1)]
            num_items += repeats
            has_items, must_continue = True, False
        return b"".join((*parts, b"]"))

    def _distinct_text(self, number: int, taken: set[bytes]) -> bytes | None:
        """A value of the rule that is not taken."""
        known = self._known_text(number)
        if known is None or known not in taken:
            return known
        return next((text for text in islice(self.texts(number), _MAX_DISTINCT) if text not in taken), None)

    def texts(self, number: int, depth: int = 3) -> Iterator[bytes]:
        """Values of the rule that may be remembered items, many if it has many, short ones first within their kind.

        Nested ones to a depth; each number has one spelling.
        """
        rule = self._rules[number]
        known = self._known_text(number)
        if known is not None:
            yield known
        if depth == 0:
            return
        yield from sorted(rule.literals, key=len)
        yield from (b'"' + text for text in sorted(rule.strings, key=len))
        if rule.numbers is not None:
            yield from _numerals_of(self._lexicon.numerals(rule.numbers, canonical=True))
        for term in rule.terms:
            automaton = self._lexicon.text_automaton((term,))
            for tail in self.members(automaton, 0):
                if term.is_unbounded() or not automaton.is_counted or self._fits(automaton, tail):
                    yield b'"' + tail
        for one in rule.objects:
            yield from (
                b"{" + rest for rest in self._object_rests(one, (0, 0, one.all_witnesses), depth - 1, has_keys=False)
            )
        for array in rule.arrays:
            yield from self._arrays(array, depth - 1)

    @staticmethod
    def _fits(automaton: TextAutomaton, tail: bytes) -> bool:
        before, state, length, _ = automaton.scan(automaton.start, 0, tail, 0)
        return state == 1 and 0 in automaton.accepted(before, length)

    def _object_rests(self, rule: KeyRule, progress: Progress, depth: int, *, has_keys: bool) -> Iterator[bytes]:
        """From a place between keys to the brace: with each key that may come next, and each value that it may have."""
        if rule.may_close(*progress):
            yield b"}"
        after: list[tuple[bytes, Progress, int]] = []
        for key in rule.candidates(*progress):
            for position, num_keys, pending, child in rule.after_declared(*progress, rule.positions[key]):
                after.append((key, (position, num_keys, pending), child))
        if not has_keys:
            for number in range(len(rule.free)):
                free = self.free_key(rule, number, set())
                for position, num_keys, pending, child in rule.after_free(*progress, number) if free else ():
                    assert free is not None, "the loop is over nothing without one"
                    after.append((free, (position, num_keys, pending), child))
        comma = b',"' if has_keys else b'"'
        for key, following, child in after:
            rest = self._find_object_rest(rule, following, frozenset(), True, False, True)
            if rest is not None:
                yield from (comma + key + b":" + text + rest for text in self.texts(child, depth))
        for key, following, child in after:
            text = self._known_text(child)
            if text is not None:
                begun = comma + key + b":" + text
                yield from (begun + rest for rest in self._object_rests(rule, following, depth, has_keys=True))

    def _arrays(self, rule: ArrayRule, depth: int) -> Iterator[bytes]:
        for child, claimed in rule.after_item(0, rule.none_counted):
            rest = self._find_array_rest(rule, 1, claimed, None, True, False)
            if rest is None:
                continue
            for text in self.texts(child, depth):
                yield b"[" + text + rest


def _numerals_of(automaton: NumeralAutomaton) -> Iterator[bytes]:
    """Numerals, the shortest first."""
    frontier = [(automaton.START, b"")]
    num_visited = 0
    while frontier and num_visited < _MAX_DISTINCT:
        following: list[tuple[int, bytes]] = []
        for state, text in frontier:
            num_visited += 1
            if automaton.accepting[state]:
                yield text
            for byte in b"0123456789-.eE+":
                target = automaton.steps[state][byte]
                if target >= 0 and len(following) < _MAX_DISTINCT:
                    following.append((target, text + bytes((byte,))))
        frontier = following


def _missing(rule: ArrayRule, counted: tuple[int, ...]) -> tuple[int, ...]:
    """How many claims the array still has to show, for each of its counts."""
    return tuple(max(0, count.minimum - done) for count, done in zip(rule.counts, counted, strict=True))


def _num_missing(rule: ArrayRule, counted: tuple[int, ...]) -> int:
    return sum(_missing(rule, counted))


def _num_alike(rule: ArrayRule, num_items: int, counted: tuple[int, ...], claimed: tuple[int, ...]) -> int:
    """How many items in a row can be the one that turns `counted` into `claimed`, past the prefix, where items repeat.

    Until it makes up for one of the things that are missing, nothing tells one item from the next.
    """
    missing = _missing(rule, counted)
    steps = [each for each, done, after in zip(missing, counted, claimed, strict=True) if each and after > done]
    num = max(1, min(steps, default=rule.min_items - num_items))
    return num if rule.can_finish(num_items + num, _after(counted, claimed, num)) else 1


def _after(counted: tuple[int, ...], claimed: tuple[int, ...], num_times: int) -> tuple[int, ...]:
    """The counts after as many steps as the one between both."""
    return tuple(done + num_times * (after - done) for done, after in zip(counted, claimed, strict=True))
