"""References: URIs and IRIs (RFC 3986, 3987), URI templates (RFC 6570) and JSON pointers (RFC 6901)."""

from __future__ import annotations

from specdec.grammars.format_addresses import HEX, IPV4, IPV4_WITH_ZEROS, ipv6
from specdec.grammars.format_syntax import FormatSyntax

_PERCENT = f"%{HEX}{{2}}"
_SUB_DELIMS = "!$&'()*+,;="
_UCS_IN_BMP = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef"
_PRIVATE_IN_BMP = "\ue000-\uf8ff"
_ANY_NON_ASCII = "\\x80-" + chr(0x10FFFF)


class _Grammar:
    """The rules of RFC 3986 over an alphabet: `ucs` and `private` are the insides of classes, both empty for URIs."""

    def __init__(self, *, ucs: str = "", private: str = "", ip_literal: str) -> None:
        unreserved = f"A-Za-z0-9._~{ucs}\\-"
        name = f"{unreserved}{_SUB_DELIMS}"
        host = rf"(?:\[(?:{ip_literal})\]|(?:[{name}]|{_PERCENT})*)"
        authority = f"(?:(?:[{name}:]|{_PERCENT})*@)?{host}(?::[0-9]*)?"
        segment = f"(?:[{name}:@]|{_PERCENT})"
        rest = f"(?:/{segment}*)*"
        after_slash = f"//{authority}{rest}|/(?:{segment}+{rest})?"
        query = f"(?:\\?(?:[{name}:@/?{private}]|{_PERCENT})*)?"
        fragment = f"(?:#(?:[{name}:@/?]|{_PERCENT})*)?"
        self.absolute = f"[A-Za-z][-A-Za-z0-9+.]*:(?:{after_slash}|{segment}+{rest}|){query}{fragment}"
        relative = f"(?:{after_slash}|(?:[{name}@]|{_PERCENT})+{rest}|){query}{fragment}"
        self.reference = f"(?:{self.absolute}|{relative})"


def _ip_literal(ipv6: str, version: str) -> str:
    return rf"{ipv6}|{version}{HEX}+\.[A-Za-z0-9._~{_SUB_DELIMS}:\-]+"


# The validator of IRIs reads "::" as exactly one group of zeros, at any place, so only such are in the inner bound.
_GROUP = f"{HEX}{{1,4}}"
_LOW_32 = f"(?:{_GROUP}:{_GROUP}|{IPV4})"
_IPV6_ONE_ELIDED = "|".join(
    [
        f"(?:{_GROUP}:){{6}}{_LOW_32}",
        f"::(?:{_GROUP}:){{5}}{_LOW_32}",
        *(f"(?:{_GROUP}:){{{n}}}{_GROUP}::(?:{_GROUP}:){{{4 - n}}}{_LOW_32}" for n in range(5)),
        f"(?:{_GROUP}:){{5}}{_GROUP}::{_GROUP}",
        f"(?:{_GROUP}:){{6}}{_GROUP}::",
    ]
)
_URI = _Grammar(ip_literal=_ip_literal(ipv6(), "v"))
_IRI = _Grammar(ucs=_UCS_IN_BMP, private=_PRIVATE_IN_BMP, ip_literal=_ip_literal(_IPV6_ONE_ELIDED, "v"))
_LAX_LITERAL = _ip_literal(ipv6(ipv4=IPV4_WITH_ZEROS), "[vV]")
_LAX_URI = _Grammar(ip_literal=_LAX_LITERAL)
_LAX_IRI = _Grammar(ucs=_ANY_NON_ASCII, ip_literal=_LAX_LITERAL)

_NON_ASCII_LITERAL = "\u00a0-\ud7ff\ue000-\ufdcf\ufdf0-\uffef" + "".join(
    f"{chr(plane << 16 | (0x1000 if plane == 0xE else 0))}-{chr(plane << 16 | 0xFFFD)}" for plane in range(1, 17)
)
_LITERAL = rf"(?:[!#$&'()*+,\-./0-9:;=?@A-Z[\]_a-z~{_NON_ASCII_LITERAL}]|{_PERCENT})"
# The validator does not take a percent escape as the first character of a name, nor four digits of length.
_VARIABLE = rf"[A-Za-z0-9_](?:\.?(?:[A-Za-z0-9_]|{_PERCENT}))*(?::[1-9][0-9]{{0,2}}|\*)?"
_TEMPLATE = rf"(?:{_LITERAL}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
_TEMPLATE_OUTER = r"(?:[^{}]|\{[A-Za-z0-9_%+#./;?&,][^}]*\})*"

_POINTER = "(?:/(?:[^~/]|~[01])*)*"
# The validator refuses a zero with a digit after it, and takes the digits of every script.
_RELATIVE_POINTER = f"(?:0|[1-9]+0?)(?:#|{_POINTER})"
_RELATIVE_POINTER_OUTER = rf"(?:[0-9]|[^\x00-\x7f])+(?:#|{_POINTER})"

REFERENCE_FORMATS = {
    "uri": FormatSyntax(inner=_URI.absolute, outer=rf"{_LAX_URI.absolute}\n?"),
    "uri-reference": FormatSyntax(inner=_URI.reference, outer=rf"{_LAX_URI.reference}\n?"),
    "iri": FormatSyntax(inner=_IRI.absolute, outer=_LAX_IRI.absolute),
    "iri-reference": FormatSyntax(inner=_IRI.reference, outer=_LAX_IRI.reference),
    "uri-template": FormatSyntax(inner=_TEMPLATE, outer=_TEMPLATE_OUTER),
    "json-pointer": FormatSyntax(inner=_POINTER, is_exact=True),
    "relative-json-pointer": FormatSyntax(inner=_RELATIVE_POINTER, outer=_RELATIVE_POINTER_OUTER),
}
