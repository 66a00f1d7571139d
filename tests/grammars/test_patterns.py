"""A pattern's inner language is what ECMA-262 and `re` both find, its outer one what either finds."""

from __future__ import annotations

import random
import re
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.grammars.errors import (
    GrammarError,
    InvalidSchemaError,
    LimitExceededError,
    UnsupportedSchemaError,
)
from specdec.grammars.patterns import pattern_language

# An independent reading of ECMA-262 for patterns as trees: each makes its own source text and its own matcher, which
# tries (text, position) and yields the positions after.
Matcher = Callable[[str, int], Iterator[int]]
Rule = tuple[str, Matcher]

ECMA_SPACES = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
EDGES = "aAbz_09-\n\r\u2028 \u00e9\u0660\ufeff\x1c\ud7ff\ue000\U0001f600\U0010ffff"


def character(source: str, holds: Callable[[str], bool]) -> Rule:
    def match(text: str, at: int) -> Iterator[int]:
        if at < len(text) and holds(text[at]):
            yield at + 1

    return source, match


def is_word(c: str) -> bool:
    return c.isascii() and (c.isalnum() or c == "_")


def is_digit(c: str) -> bool:
    return c in "0123456789"


ATOMS: list[Rule] = [
    character("a", lambda c: c == "a"),
    character("b", lambda c: c == "b"),
    character("\\n", lambda c: c == "\n"),
    character("[ab]", lambda c: c in "ab"),
    character("[^a]", lambda c: c != "a"),
    character(".", lambda c: c not in "\n\r\u2028\u2029"),
    character("\\d", is_digit),
    character("\\D", lambda c: not is_digit(c)),
    character("\\w", is_word),
    character("\\W", lambda c: not is_word(c)),
    character("\\s", lambda c: c in ECMA_SPACES),
    character("[^\\s\\d]", lambda c: c not in ECMA_SPACES and not is_digit(c)),
    character("[\\w-.]", lambda c: is_word(c) or c in "-."),
    character("\\u00e9", lambda c: c == "\u00e9"),
    character("\\-", lambda c: c == "-"),
]


def zero_width(source: str, holds: Callable[[str, int], bool]) -> Rule:
    def match(text: str, at: int) -> Iterator[int]:
        if holds(text, at):
            yield at

    return source, match


def at_boundary(text: str, at: int) -> bool:
    return (at > 0 and is_word(text[at - 1])) != (at < len(text) and is_word(text[at]))


EDGE_RULES: list[Rule] = [
    zero_width("^", lambda text, at: at == 0),
    zero_width("$", lambda text, at: at == len(text)),
    zero_width("\\b", at_boundary),
    zero_width("\\B", lambda text, at: not at_boundary(text, at)),
]


def concatenation(rules: list[Rule]) -> Rule:
    def match(text: str, at: int, first: int = 0) -> Iterator[int]:
        if first == len(rules):
            yield at
            return
        for after in set(rules[first][1](text, at)):
            yield from match(text, after, first + 1)

    return "".join(source for source, _ in rules), match


def alternation(rules: list[Rule]) -> Rule:
    def match(text: str, at: int) -> Iterator[int]:
        for _, rule in rules:
            yield from rule(text, at)

    return "(?:" + "|".join(source for source, _ in rules) + ")", match


def repetition(rule: Rule, low: int, high: int | None, source: str) -> Rule:
    def match(text: str, at: int) -> Iterator[int]:
        here, count, found = {at}, 0, set()
        # With a look inside, an empty round may hold or not: low rounds are taken in full, more only if new.
        while here and (high is None or count <= high):
            if count >= low:
                here -= found
                found |= here
            count += 1
            here = {after for start in here for after in rule[1](text, start)}
            if count > low and here <= found:
                break
        yield from found

    return f"(?:{rule[0]}){source}", match


def look(rule: Rule, *, is_ahead: bool, is_negative: bool) -> Rule:
    def holds(text: str, at: int) -> bool:
        if is_ahead:
            return any(True for _ in rule[1](text, at)) != is_negative
        return any(at in set(rule[1](text, start)) for start in range(at + 1)) != is_negative

    return zero_width(f"(?{'' if is_ahead else '<'}{'!' if is_negative else '='}{rule[0]})", holds)


QUANTIFIERS = [("*", 0, None), ("+", 1, None), ("?", 0, 1), ("{2}", 2, 2), ("{1,2}", 1, 2), ("{2,}", 2, None)]


def random_rule(rng: random.Random, depth: int, *, looks: bool) -> Rule:
    kind = rng.random()
    if depth == 0 or kind < 0.25:
        return rng.choice(EDGE_RULES if looks and rng.random() < 0.3 else ATOMS)
    if kind < 0.5:
        return concatenation([random_rule(rng, depth - 1, looks=looks) for _ in range(rng.randint(2, 3))])
    if kind < 0.65:
        return alternation([random_rule(rng, depth - 1, looks=looks) for _ in range(rng.randint(2, 3))])
    if kind < 0.85 or not looks:
        suffix, low, high = rng.choice(QUANTIFIERS)
        return repetition(random_rule(rng, depth - 1, looks=looks), low, high, suffix + rng.choice(["", "?"]))
    is_ahead = rng.random() < 0.7
    # re has no look-behind of variable width, so that what it looks at is one character.
    body = random_rule(rng, depth - 1, looks=looks) if is_ahead else rng.choice(ATOMS)
    return look(body, is_ahead=is_ahead, is_negative=rng.random() < 0.5)


def compiled_quietly(source: str) -> re.Pattern[str] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return re.compile(source)
        except re.error:
            return None


def searches(rule: Rule, text: str) -> bool:
    return any(True for start in range(len(text) + 1) for _ in rule[1](text, start))


def random_texts(rng: random.Random, alphabet: str, count: int) -> list[str]:
    return ["", *("".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(count))]


def assert_agrees(rule: Rule, texts: list[str]) -> None:
    languages = pattern_language(rule[0])
    judge = compiled_quietly(rule[0])
    for text in texts:
        ecma = searches(rule, text)
        python = judge.search(text) is not None if judge is not None else ecma
        claim = (rule[0], text)
        assert (*claim, text in languages.inner) == (*claim, ecma and python)
        assert (*claim, text in languages.outer) == (*claim, ecma or python)


@pytest.mark.parametrize("seed", range(5))
def test_languages_are_those_of_re_and_of_a_backtracking_ecma_matcher(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        rule = random_rule(rng, 3, looks=seed % 3 != 0)
        assert_agrees(
            rule, random_texts(rng, "ab", 15) + random_texts(rng, "ab_0\n- ", 25) + random_texts(rng, EDGES, 25)
        )


@pytest.mark.parametrize("seed", range(3))
def test_looks_inside_repetitions_hold_in_every_round(seed: int) -> None:
    rng = random.Random(seed)
    letters = [character(c, lambda text, c=c: text == c) for c in "abc"]
    start, end = EDGE_RULES[:2]
    for _ in range(40):
        # What a round promises overlaps with what the rounds before it did.
        looks = [
            look(
                concatenation(
                    [rng.choice([ATOMS[5], *letters]) for _ in range(rng.randint(2, 3))] + [end] * (index == 0)
                ),
                is_ahead=True,
                is_negative=rng.random() < 0.4,
            )
            for index in range(rng.randint(1, 2))
        ]
        branches = [concatenation([one, rng.choice([ATOMS[5], *letters])]) for one in looks] + [rng.choice(letters)]
        rounds = repetition(alternation(branches), *rng.choice([(0, None, "*"), (1, None, "+"), (0, 20, "{0,20}")]))
        assert_agrees(concatenation([start, rounds, rng.choice([end, letters[0]])]), random_texts(rng, "abc", 60))


@given(st.text(alphabet="ab.*+?|()[]^-\\dwsbBuxk01{},$:=!<P>n", max_size=12), st.text(alphabet="ab0 -\n", max_size=5))
@settings(max_examples=400, deadline=None)
def test_any_source_is_read_as_re_reads_it_or_refused(source: str, text: str) -> None:
    try:
        inner, outer = pattern_language(source)
    except GrammarError:
        return
    judge = compiled_quietly(source)
    if judge is None:
        assert inner == outer
        return
    found = judge.search(text) is not None
    assert text not in inner or found
    assert text in outer or not found
    assert inner <= outer


@pytest.mark.parametrize(
    ("source", "inside", "outside"),
    [
        (r"^\cA\ca$", ["\x01\x01"], ["A"]),
        (r"^\c$", ["\\c"], ["c"]),
        (r"^[\c]$", ["\\", "c"], ["x"]),
        (r"^(\d?<a>)\k$", ["1<a>k", "<a>k"], ["1<a>"]),
        (r"^[\c1]$", ["\x11"], ["c", "1", "\\"]),
        (r"^[\c_]$", ["\x1f"], ["c", "_", "\\"]),
        (r"^\c1$", ["\\c1"], ["\x11"]),
        (r"^\p{L}+\-\@[\-\u{61}\_]\Z", ["b-@a", "\u00e9-@-"], ["p{L}-@-", "b-@u"]),
        (r"^\p{L}\P{Lu}$", ["aa", "\u00e9\u00e9"], ["aA", "1a"]),
        (r"^\p{gc=Nd}+\p{General_Category=Decimal_Number}$", ["12", "\u0660\u0661"], ["a"]),
        (r"^\p{Letter}[\p{Lu}\d]$", ["aB", "a1"], ["ab"]),
        (r"^\p{ASCII}\p{Any}$", ["a\u00e9"], ["\u00e9a"]),
        (r"^\u{1F600}\ud83d\ude00$", ["\U0001f600\U0001f600"], ["\U0001f600"]),
        (r"^[^]$", ["a", "\n", "\U0010ffff"], ["", "aa"]),
        (r"[]", [], ["", "a", "]"]),
        (r"^(?<year>\d{4})$", ["2024"], ["20245"]),
        (r"(?<=ab+)c", ["abbc"], ["ac"]),
        (r"(?<!^|,)x", ["ax"], ["x", ",x"]),
    ],
)
def test_what_only_ecma_can_read_means_what_ecma_says(source: str, inside: list[str], outside: list[str]) -> None:
    assert compiled_quietly(source) is None
    inner, outer = pattern_language(source)
    assert inner == outer
    for text in inside:
        assert text in inner
    for text in outside:
        assert text not in outer


@pytest.mark.parametrize(
    ("source", "both", "either"),
    [
        (r"^\d$", ["1"], ["\u0660"]),
        (r"^\w$", ["a"], ["\u00e9"]),
        (r"^\s$", [" ", "\u00a0"], ["\ufeff", "\x1c"]),
        (r"^a$", ["a"], ["a\n"]),
        (r"^.$", ["a"], ["\r", "\u2028"]),
        (r"^x{,2}$", [], ["x{,2}", "xx", ""]),
        (r"\B", ["aa"], [""]),
        (r"^[]a]$", [], ["]", "a"]),
    ],
)
def test_where_the_dialects_differ_inner_is_what_both_find_and_outer_what_either_finds(
    source: str, both: list[str], either: list[str]
) -> None:
    inner, outer = pattern_language(source)
    for text in both:
        assert text in inner
    for text in either:
        if source == r"\B" and re.search(source, text) is not None:
            continue
        assert text in outer
        assert text not in inner


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (r"(a)\1", UnsupportedSchemaError, "back-reference"),
        (r"(\1?)", UnsupportedSchemaError, "back-reference"),
        (r"([a]?)\1", UnsupportedSchemaError, "back-reference"),
        (r"(?<n>a)\k<n>", UnsupportedSchemaError, "back-reference"),
        (r"\p{Script=Greek}", UnsupportedSchemaError, "Script=Greek"),
        (r"(?<=a(?=b))", UnsupportedSchemaError, "inside a look-behind"),
        (r"(?i)a", InvalidSchemaError, r"\(\?i\)"),
        (r"(?P=n)", InvalidSchemaError, r"\(\?P="),
        (r"a++", InvalidSchemaError, "quantifier"),
        (r"(?>a)", InvalidSchemaError, r"\(\?>"),
        (r"a)", InvalidSchemaError, r"'\)'"),
        (r"(a", InvalidSchemaError, r"'\('"),
        (r"[a", InvalidSchemaError, r"'\['"),
        (r"*a", InvalidSchemaError, "nothing to repeat"),
        (r"a**", InvalidSchemaError, "nothing to repeat"),
        (r"a{3,2}", InvalidSchemaError, "quantifier"),
        (r"[b-a]", InvalidSchemaError, "out of order"),
        ("a\\", InvalidSchemaError, "at the end"),
        (r"\z", InvalidSchemaError, r"escape \\z"),
        (r"\a", InvalidSchemaError, r"escape \\a"),
        (r"\p{}", InvalidSchemaError, "property"),
        (r"\p{L}\9", InvalidSchemaError, r"'\\\\p\{L\}' needs the flag u, which forbids '\\9'"),
        (r"[\u{61}-z]\01", InvalidSchemaError, r"u\{61\}' needs the flag u, which forbids '\\01'"),
        (r"\P{L}\08", InvalidSchemaError, r"forbids '\\0'"),
        (r"\ud83d\ude00{,2}", InvalidSchemaError, "ude00' needs the flag u, which forbids a single '{'"),
        (r"[\p{L}-.]", InvalidSchemaError, "forbids a '-' beside a set"),
        (r"(?=a)*\p{L}", InvalidSchemaError, r"forbids '\*' after a look-ahead"),
        (r"[\p{L}\c1]", InvalidSchemaError, r"forbids '\\c1'"),
        (r"\p{L}\c!", InvalidSchemaError, r"forbids '\\c' without a letter"),
        (r"\p{L}\k", InvalidSchemaError, r"forbids '\\k'"),
        (r"(?<n>a)[\k]", InvalidSchemaError, r"escape \\k"),
        (r"(?<n>a)(?P<n>b)", InvalidSchemaError, "second group of the name 'n'"),
        (r"((a{0,100}){0,100}){0,100}", LimitExceededError, "max_pattern_nodes"),
        (r"(.*a){20}.{20}$", LimitExceededError, "max_language_states"),
        ("(" * 65 + ")" * 65, LimitExceededError, "max_pattern_depth"),
        ("a" * 20_001, LimitExceededError, "max_pattern_length"),
        (r"a{99999999999}", LimitExceededError, "max_pattern_repeats"),
        (r"^(a?b?c?d?){1500}$", LimitExceededError, "max_pattern_work"),
        ("|".join(chr(0x4E00 + i) for i in range(2001)), LimitExceededError, "max_pattern_sets"),
    ],
)
def test_refusals_name_what_is_wrong(source: str, error: type[GrammarError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        pattern_language(source, pointer="/properties/a/pattern")
    assert caught.value.keyword == "pattern"
    assert caught.value.pointer == "/properties/a/pattern"


@pytest.mark.parametrize(
    "source",
    [
        "(a|aa)*b{1000}",
        "^((?!a.{12}b)[ab])*$",
        "^(?:(?!a.{1,400}b)(?=.*c)\\w)*$",
        "(?:(?=xy)" * 60 + "a" + "){2}" * 60,
        "(?:(?!xy)" * 4 + "." + "){3,15}" * 4,
        "(?=a|b" * 60 + ")*" * 60,
        "(" * 60 + "a*" + ")*" * 60,
        "^" + "".join(f"(?=.*{letter})" for letter in "abcdefghijklmn"),
        "(?<=a.{20})b",
        "|".join(chr(0x4E00 + 7 * i) * 3 for i in range(1500)),
    ],
)
def test_exploding_patterns_end_in_time(source: str) -> None:
    pattern_language(r"\w\d\s")
    start = time.process_time()
    try:
        inner, outer = pattern_language(source)
        assert inner <= outer
    except LimitExceededError:
        pass
    # The slowest took 1.4 s of processor time; the margin is for a slow machine.
    assert time.process_time() - start < 10


def test_words_of_tempered_dots_and_leading_looks_are_as_written() -> None:
    tempered = pattern_language("^((?!foo).)*$").inner
    assert "fofo" in tempered
    assert "a foo b" not in tempered
    sized = pattern_language("^(?=.{3,5}$)(?!.*__)[a-z_]+$").inner
    assert [text in sized for text in ("ab", "a_b", "a__b", "abcdef")] == [False, True, False, False]
    assert sized.max_rest(0) == 5
