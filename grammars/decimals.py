"""Parsed JSON numbers as exact fractions, and those fractions as numerals.

The judge compares Python numbers, where a numeral with a fraction is a double. A float here is therefore itself
where it is an integer, else the decimal of its shortest spelling, as 0.1 is for multipleOf. That decimal is on the
same side of every numeral of at most 15 significant digits, and of every integer, as the double is: rounding to a
double keeps order, and only one numeral of 15 digits rounds to a given double, the double's own spelling.

A numeral without a fraction has at most 18 digits. One with a fraction has at most 15, of which a zero before the
point is none, so that no two of different values denote the same double.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from specdec.grammars.errors import InvalidSchemaError, LimitExceededError

MAX_NUMBER_DIGITS = 4_000
"""Python converts 4,300 between int and str."""
MAX_INTEGER_DIGITS = 18
MAX_SIGNIFICANT_DIGITS = 15
MAX_NUMERAL_BYTES = 60
"""Of a number that is spelt as a whole; `walk_number` holds 63."""

Number: TypeAlias = int | float | Decimal


def exact(value: Number) -> Fraction:
    """The number that stands for a parsed one; LimitExceededError where it has too many digits."""
    if isinstance(value, int):
        number = Fraction(value)
    elif not math.isfinite(value):
        raise InvalidSchemaError(f"{value} is not a JSON number")
    elif isinstance(value, float):
        number = Fraction(int(value)) if value.is_integer() else Fraction(repr(value))
    else:
        exponent = abs(value.adjusted()) + len(value.as_tuple().digits)
        if exponent > MAX_NUMBER_DIGITS:
            raise LimitExceededError(f"a number of {exponent} digits is over max_number_digits={MAX_NUMBER_DIGITS}")
        number = Fraction(value)
    check_digits(number)
    return number


def plain(value: Fraction) -> int | Decimal:
    """A decimal fraction as an int or an exact Decimal, which `exact` maps back to it."""
    if value.denominator == 1:
        return value.numerator
    scale = 0
    rest = value.denominator
    while rest % 10 == 0:
        rest //= 10
        scale += 1
    # What is left is a power of 2 or of 5: one of them times the other is a power of 10.
    num_halvings = (rest & -rest).bit_length() - 1
    num_fifths = 0
    while rest % 5 == 0:
        rest //= 5
        num_fifths += 1
    scale += max(num_halvings, num_fifths)
    unscaled = value.numerator * (10**scale // value.denominator)
    digits = tuple(int(digit) for digit in str(abs(unscaled)))
    return Decimal((int(unscaled < 0), digits, -scale))


def numeral(value: Number) -> str | None:
    """The canonical numeral of a number; None where it has none of MAX_NUMERAL_BYTES that denotes it exactly."""
    number = exact(value)
    text = regular_numeral(number)
    if text is None and number.denominator == 1:
        text = str(number.numerator)
    if text is None or len(text) > MAX_NUMERAL_BYTES:
        try:
            double = float(number)
        except OverflowError:
            return None
        text = repr(double) if exact(double) == number else None
    return text


def regular_numeral(number: Fraction) -> str | None:
    """With no exponent and few digits."""
    value = plain(number)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MAX_INTEGER_DIGITS else None
    num_decimals = -int(value.as_tuple().exponent)
    num_digits = max(value.adjusted() + 1, 0) + num_decimals
    return f"{value:f}" if num_digits <= MAX_SIGNIFICANT_DIGITS else None


def check_digits(value: Fraction) -> None:
    # log10(2) is a little over 0.301.
    num_digits = max(value.numerator.bit_length(), value.denominator.bit_length()) * 301 // 1000
    if num_digits > MAX_NUMBER_DIGITS:
        raise LimitExceededError(f"a number of {num_digits} digits is over max_number_digits={MAX_NUMBER_DIGITS}")
