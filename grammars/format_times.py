"""Dates, times and durations (RFC 3339, with the Gregorian calendar of the years 0001 to 9999).

A leap second is valid by RFC 3339 at 23:59:60Z and refused by the validators: only the outer bounds hold it. They also
hold a newline at the end, which the validators overlook.
"""

from __future__ import annotations

from specdec.grammars.format_syntax import FormatSyntax

_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|"
    f"(?:0[13578]|1[02])-31)|{_LEAP_YEAR}-02-29)"
)
_HOUR = "(?:[01][0-9]|2[0-3])"
_FRACTION_AND_OFFSET = rf"(?:\.[0-9]+)?(?:[Zz]|[-+]{_HOUR}:[0-5][0-9])"
_TIME = f"{_HOUR}:[0-5][0-9]:[0-5][0-9]{_FRACTION_AND_OFFSET}"
_TIME_OUTER = rf"{_HOUR}:[0-5][0-9]:(?:[0-5][0-9]|60){_FRACTION_AND_OFFSET}\n?"

_SECONDS = "[0-9]+S"
_MINUTES = f"[0-9]+M(?:{_SECONDS})?"
_HOURS = f"[0-9]+H(?:{_MINUTES})?"
_CLOCK = f"T(?:{_HOURS}|{_MINUTES}|{_SECONDS})"
_DAYS = "[0-9]+D"
_MONTHS = f"[0-9]+M(?:{_DAYS})?"
_YEARS = f"[0-9]+Y(?:{_MONTHS})?"
_DURATION = f"P(?:(?:{_YEARS}|{_MONTHS}|{_DAYS})(?:{_CLOCK})?|{_CLOCK}|[0-9]+W)"
# isoduration also takes signs, fractions, exponents and missing units, and after a bare number anything arrow reads.
_DURATION_OUTER = r"[-+]?P(?:[-+0-9.,eEYMWD]*[YMWD]|[-+0-9.,eEYMWD]*T[\s\S]*[DMYWHS])"

TIME_FORMATS = {
    "date": FormatSyntax(inner=_DATE, is_exact=True),
    "time": FormatSyntax(inner=_TIME, outer=_TIME_OUTER),
    "date-time": FormatSyntax(inner=f"{_DATE}[Tt]{_TIME}", outer=f"{_DATE}[Tt]{_TIME_OUTER}"),
    "duration": FormatSyntax(inner=_DURATION, outer=_DURATION_OUTER),
}
