"""What each format's strings are narrowed to, for the enforcement report; docs/json-schema.md says the same."""

from __future__ import annotations

_HOST = "no label with hyphens in positions three and four, so no xn--; labels bounded so that they fit 253 characters"
_INTERNATIONAL_HOST = (
    f"{_HOST}, or at most four labels of which a non-ASCII one has a single script, in lower case, and no combining or "
    "contextual characters"
)
_URI = "a v of a future address is small"
_IRI = "no character beyond U+FFFF; :: in an address only where it stands for one group"

FORMAT_RESTRICTIONS = {
    "date-time": "no leap second",
    "duration": "P, T and the units are capital",
    "email": f"host: {_HOST}; at most 64 characters before the @, 31 if quoted",
    "hostname": _HOST,
    "idn-email": f"host: {_INTERNATIONAL_HOST}; at most 64 ASCII or 16 other characters before the @",
    "idn-hostname": _INTERNATIONAL_HOST,
    "iri": f"{_URI}; {_IRI}",
    "iri-reference": f"{_URI}; {_IRI}",
    "regex": (
        "groups two deep; no back-references, named groups, look-behind or property escapes; ranges only within "
        "digits, small or capital letters"
    ),
    "relative-json-pointer": "a number before the pointer has a zero only at its end, and one at most",
    "time": "no leap second",
    "uri": _URI,
    "uri-reference": _URI,
    "uri-template": "no percent escape at the start of a name, no prefix length of four digits",
}
"""Those of the formats that are not named here are generated as they are defined."""
