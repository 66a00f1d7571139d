"""The languages of `format`, held against jsonschema's format checker, which judges answers."""

from __future__ import annotations

import calendar
import itertools
from random import Random

import pytest
from format_examples import INVALID, VALID
from jsonschema import Draft202012Validator
from language_samples import WordSampler, mutations

from specdec.grammars import format_names
from specdec.grammars.formats import (
    FORMATS,
    NUMBER_FORMATS,
    STRING_FORMATS,
    format_language,
    format_outer,
    number_format,
)
from specdec.grammars.languages import EVERYTHING, Language

CHECKER = Draft202012Validator.FORMAT_CHECKER
# The checker parses these two by Earley's algorithm, in milliseconds per character.
SLOW_TO_JUDGE = {"iri", "iri-reference"}
each_format = pytest.mark.parametrize("name", sorted(STRING_FORMATS))


def judge_takes(text: str, name: str) -> bool:
    try:
        return CHECKER.conforms(text, name)
    except (ValueError, FutureWarning):
        # It reads the superscript two as a digit, and then fails on it; `re` warns of what it may once read otherwise.
        assert name in {"relative-json-pointer", "regex"}
        return False


def inner(name: str) -> Language:
    language = format_language(name)
    assert language is not None
    return language


def outer(name: str) -> Language:
    language = format_outer(name)
    assert language is not None
    return language


def sampled(name: str, seed: int, num_edges: int, num_walks: int) -> list[str]:
    random = Random(seed)
    sampler = WordSampler(inner(name), random)
    edges = list(sampler.edge_words())
    if name in SLOW_TO_JUDGE:
        num_edges, num_walks = num_edges // 15, num_walks // 10
    words = random.sample(edges, min(num_edges, len(edges)))
    words += [sampler.word(random.choice([10, 30, 100, 300])) for _ in range(num_walks)]
    return [word for word in words if len(word) <= 25 or name not in SLOW_TO_JUDGE]


@each_format
def test_the_judge_checks_every_format_and_takes_every_word_of_its_language(name: str) -> None:
    assert name in CHECKER.checkers
    for word in sampled(name, seed=1, num_edges=1000, num_walks=300):
        assert word in inner(name)
        assert word in outer(name)
        assert judge_takes(word, name), ascii(word)


@each_format
def test_the_judge_lies_between_inner_and_outer_on_mutated_words(name: str) -> None:
    random = Random(2)
    for word in sampled(name, seed=3, num_edges=250, num_walks=80):
        for text in mutations(word, random, 1 if name in SLOW_TO_JUDGE else 5):
            verdict = judge_takes(text, name)
            assert verdict or text not in inner(name), ascii(text)
            assert not verdict or text in outer(name), ascii(text)


@each_format
def test_inner_is_within_outer_and_both_are_compiled_once(name: str) -> None:
    assert inner(name) <= outer(name)
    assert not inner(name).is_empty
    assert format_language(name) is inner(name)
    assert format_outer(name) is outer(name)


@pytest.mark.parametrize("name", ["date", "ipv4", "ipv6", "json-pointer"])
def test_exact_formats_have_one_language(name: str) -> None:
    assert format_outer(name) is format_language(name)


def test_only_of_regex_nothing_can_be_said_to_lack_the_format() -> None:
    assert {name for name in STRING_FORMATS if format_outer(name) == EVERYTHING} == {"regex"}


def test_dates_are_those_of_the_gregorian_calendar() -> None:
    dates = inner("date")
    for year, month, day in itertools.product(
        [0, 1, 4, 96, 100, 400, 1900, 2000, 2023, 2024, 9999], range(14), range(33)
    ):
        is_date = year >= 1 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
        assert (f"{year:04}-{month:02}-{day:02}" in dates) == is_date
    for year in range(10_000):
        assert (f"{year:04}-02-29" in dates) == (year > 0 and calendar.isleap(year))
        assert (f"{year:04}-12-31" in dates) == (year > 0)
    assert dates.num_words == 3_652_059


def test_a_date_time_is_a_date_and_a_time() -> None:
    moments = inner("date-time")
    for date, time in itertools.product(
        ["2024-02-29", "2023-02-29", "0000-01-01"], ["00:00:00z", "23:59:60Z", "1:00:00Z"]
    ):
        assert (f"{date}T{time}" in moments) == (date in inner("date") and time in inner("time"))


@each_format
def test_examples_are_judged_as_their_definitions_say(name: str) -> None:
    for text in VALID[name]:
        assert text in inner(name), ascii(text)
    for text in INVALID[name]:
        assert text not in inner(name), ascii(text)


def test_the_formats_are_those_of_the_standard_and_of_openapi() -> None:
    assert set(VALID) == set(INVALID) == STRING_FORMATS
    assert {
        "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6",
        "uuid", "uri", "uri-reference", "uri-template", "iri", "iri-reference", "json-pointer",
        "relative-json-pointer", "regex",
    } == STRING_FORMATS  # fmt: skip


def test_leap_seconds_are_neither_surely_valid_nor_surely_invalid() -> None:
    for name, text in (("time", "23:59:60Z"), ("date-time", "1998-12-31T15:59:60.123-08:00")):
        assert text not in inner(name)
        assert text in outer(name)


def test_every_name_keeps_to_the_total_length() -> None:
    assert inner("hostname").max_rest(0) == 253
    for name in ("hostname", "idn-hostname"):
        random = Random(4)
        sampler = WordSampler(inner(name), random)
        assert all(judge_takes(sampler.longest_word(), name) for _ in range(100))


def num_punycode_digits(value: int, bias: int) -> int:
    """Digits of one number of Punycode, RFC 3492 section 3.3."""
    for position in itertools.count(1):
        threshold = min(max(36 * position - bias, 1), 26)
        if value < threshold:
            return position
        value = (value - threshold) // (36 - threshold)
    raise AssertionError


def longest_a_label(low: int, high: int, length: int) -> int:
    """At least the length of every A-label of `length` code points, each of them ASCII or from low to high.

    The number before the k-th insertion is below (step + 1) * length, where step is how much greater than the last
    its code point is, and the steps add up to high - low; RFC 3492 section 6.3.
    """
    first = num_punycode_digits((high - 0x7F) * length, 72)
    digits_of = [max(num_punycode_digits(v, bias) for bias in range(300)) for v in (10**n for n in range(9))]
    # Least step that may give so many digits, from the least number that does under any bias.
    steps: dict[int, int] = {}
    for digits in range(1, max(digits_of) + 1):
        low_value, high_value = 0, 10**8
        while low_value < high_value:
            middle = (low_value + high_value) // 2
            if max(num_punycode_digits(middle, bias) for bias in range(300)) >= digits:
                high_value = middle
            else:
                low_value = middle + 1
        steps[digits] = max(0, (low_value + 1 + length - 1) // length - 1)
    longest = 0
    for num_inserted in range(1, length + 1):
        # best[w]: most digits of so many insertions whose steps add up to at most w, in units that only round down.
        unit = max(1, (high - low) // 2000)
        budget = (high - low) // unit
        best = [0] * (budget + 1)
        for _ in range(num_inserted - 1):
            best = [
                max(digits + best[left - step // unit] for digits, step in steps.items() if step // unit <= left)
                for left in range(budget + 1)
            ]
        num_ascii = length - num_inserted
        longest = max(longest, len("xn--") + num_ascii + (num_ascii > 0) + first + best[-1])
    return longest


@pytest.mark.parametrize(
    ("script", "length"),
    [
        *((s, format_names.MAX_NARROW_LABEL) for s in (format_names.LATIN, format_names.GREEK, format_names.CYRILLIC)),
        *((s, format_names.MAX_NARROW_LABEL) for s in (format_names.HEBREW, format_names.ARABIC)),
        (format_names.EAST_ASIAN, format_names.MAX_WIDE_LABEL),
    ],
)
def test_no_label_of_a_script_has_a_longer_a_label_than_the_name_allows(script: str, length: int) -> None:
    points = [ord(character) for character in script if character != "-"]
    # Four labels of 61 characters and three dots are below 253.
    assert longest_a_label(min(points), max(points), length) <= 61


def test_number_formats_are_the_ranges_of_openapi() -> None:
    assert {"int32", "int64", "float", "double"} == NUMBER_FORMATS
    assert FORMATS == STRING_FORMATS | NUMBER_FORMATS
    for name, bits in (("int32", 32), ("int64", 64)):
        numbers = number_format(name)
        assert numbers is not None
        assert numbers.integers_only
        assert (numbers.minimum, numbers.maximum) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for name in ("float", "double"):
        numbers = number_format(name)
        assert numbers is not None
        assert (numbers.integers_only, numbers.minimum, numbers.maximum) == (False, None, None)


@pytest.mark.parametrize("name", ["", "unknown", "byte", "password", "Date", "int32"])
def test_a_name_that_is_none_of_strings_constrains_no_string(name: str) -> None:
    assert format_language(name) is None
    assert format_outer(name) is None


def test_a_name_that_is_none_of_numbers_constrains_no_number() -> None:
    assert number_format("date") is None
