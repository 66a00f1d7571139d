"""Names of hosts and mailboxes: hostname, idn-hostname, email, idn-email (RFC 1123, 5321, 5890, 6531).

The inner bounds are narrow where a rule is not regular or depends on the version of Unicode: no label with hyphens in
positions three and four, so no A-label; non-ASCII labels in one script out of a few, in lower case, without combining
or contextual characters; a name's total length is kept by bounds on its labels.
"""

from __future__ import annotations

from specdec.grammars.format_addresses import IPV4, ipv6
from specdec.grammars.format_syntax import FormatSyntax

_NON_ASCII = r"[^\x00-\x7f]"


def _label(ends: str, max_length: int, *, starts: str | None = None) -> str:
    """Source of labels of the characters `ends` (the inside of a class) and inner hyphens."""
    first, inner, end = f"[{starts or ends}]", f"[-{ends}]", f"[{ends}]"
    return (
        f"{first}(?:{inner}?{end}|{inner}{{2}}{end}|{inner}(?:{end}{inner}|-{end}){inner}{{0,{max_length - 5}}}{end})?"
    )


def _labels(label: str, max_labels: int) -> str:
    return rf"(?:{label}\.){{0,{max_labels - 1}}}{label}"


# All four keep to 253 characters: a few long labels, more of medium length, or many short ones, as in ip6.arpa.
_LDH = "A-Za-z0-9"
_LONG = _label(_LDH, 63)
_HOSTNAME = (
    rf"(?:{_labels(_LONG, 3)}|(?:{_LONG}\.){{3}}{_label(_LDH, 61)}|"
    f"{_labels(_label(_LDH, 30), 8)}|{_labels(_label(_LDH, 6), 36)})"
)
# fqdn takes the digits of every script and two letters that fold to ASCII ones, overlooks a final newline, and like DNS
# allows a final dot.
_LAX_LABEL = f"(?:[A-Za-z0-9]|{_NON_ASCII})(?:(?:[-A-Za-z0-9]|{_NON_ASCII}){{0,61}}(?:[A-Za-z0-9]|{_NON_ASCII}))?"
_HOSTNAME_OUTER = rf"(?:{_LAX_LABEL}\.)*{_LAX_LABEL}\.?\n?"

MAX_NARROW_LABEL = 18
"""Code points of a label in one of the other scripts: its A-label has at most 61 characters."""
MAX_WIDE_LABEL = 11
"""The same for the scripts of East Asia, whose code points are further apart."""

LATIN = "\u00df-\u00f6\u00f8-\u00ff" + "".join(
    chr(point) for point in range(0x101, 0x178, 2) if not 0x130 <= point <= 0x149
)
GREEK = "\u03ac-\u03ce"
CYRILLIC = "\u0430-\u045f"
HEBREW = "\u05d0-\u05ea"
ARABIC = "\u0620-\u063f\u0641-\u064a"
EAST_ASIAN = "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"

_DOT = "[.\u3002\uff0e\uff61]"
_LEFT_TO_RIGHT = [
    ("", 61),
    (LATIN, MAX_NARROW_LABEL),
    (GREEK, MAX_NARROW_LABEL),
    (CYRILLIC, MAX_NARROW_LABEL),
    (EAST_ASIAN, MAX_WIDE_LABEL),
]


def _international(dot: str) -> str:
    """Source of names of at most four labels; beside a right-to-left one, the others start with a letter (RFC 5893)."""
    ltr, ltr_letter_first = [], []
    for script, max_length in _LEFT_TO_RIGHT:
        letters = (script or "A-Z") + "a-z"
        ltr.append(_label(letters + "0-9", max_length))
        ltr_letter_first.append(_label(letters + "0-9", max_length, starts=letters))
    rtl = [f"[{script}]{{1,{MAX_NARROW_LABEL}}}" for script in (HEBREW, ARABIC)]
    one_way, both_ways = "|".join(ltr), "|".join([*ltr_letter_first, *rtl])
    return "|".join(f"(?:{label})(?:{dot}(?:{label})){{0,3}}" for label in (one_way, both_ways))


_IDN_HOSTNAME = f"(?:{_HOSTNAME}|{_international(_DOT)})"
_IN_IDN_LABEL = r"[-A-Za-z0-9\x80-\u3001\u3003-\uff0d\uff0f-\uff60\uff62-" + chr(0x10FFFF) + "]"
_IDN_HOSTNAME_OUTER = f"{_IN_IDN_LABEL}{{1,63}}(?:{_DOT}{_IN_IDN_LABEL}{{1,63}})*{_DOT}?"

MAX_LOCAL_OCTETS = 64
_ATEXT = "A-Za-z0-9!#$%&'*+/=?^_`{|}~\\-"
_QTEXT = r"[ !#-[\]-~]"
_ESCAPED = r"\\[ -~]"
_LITERAL = rf"\[(?:{IPV4}|IPv6:{ipv6(min_elided=2)})\]"


def _mailbox(domain: str, non_ascii: str) -> str:
    atom = f"[{_ATEXT}{non_ascii}]+"
    quoted = f'"(?:{_QTEXT}|{_ESCAPED}){{0,31}}"'
    if non_ascii:
        quoted += f'|"(?:{_QTEXT}|{_ESCAPED}|[{non_ascii}]){{0,15}}"'
    return rf"(?:{atom}(?:\.{atom})*|{quoted})@(?:{domain}|{_LITERAL})"


_ANY_NON_ASCII = "\\x80-" + chr(0x10FFFF)
# What follows the first "@" of an unquoted mailbox is the domain. A code point is at most four octets.
_SHORT_LOCAL = f'^(?:"|[^"@]{{1,{MAX_LOCAL_OCTETS}}}@)'
_SHORT_IDN_LOCAL = rf'^(?:"|[\x00-!#-?A-\x7f]{{1,{MAX_LOCAL_OCTETS}}}@|[^"@]{{1,{MAX_LOCAL_OCTETS // 4}}}@)'
_WITH_AT = r"[\s\S]*@[\s\S]*"

NAME_FORMATS = {
    "hostname": FormatSyntax(inner=_HOSTNAME, outer=_HOSTNAME_OUTER),
    "idn-hostname": FormatSyntax(inner=_IDN_HOSTNAME, outer=_IDN_HOSTNAME_OUTER),
    "email": FormatSyntax(inner=_mailbox(_HOSTNAME, ""), within=_SHORT_LOCAL, outer=_WITH_AT),
    "idn-email": FormatSyntax(
        inner=_mailbox(rf"{_HOSTNAME}|{_international('[.]')}", _ANY_NON_ASCII), within=_SHORT_IDN_LOCAL, outer=_WITH_AT
    ),
}
