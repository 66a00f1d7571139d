"""Internet addresses: ipv4, ipv6, uuid, and the source text of their parts for the formats that contain them."""

from __future__ import annotations

from specdec.grammars.format_syntax import FormatSyntax

HEX = "[0-9A-Fa-f]"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_LAX_OCTET = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
IPV4_WITH_ZEROS = rf"{_LAX_OCTET}(?:\.{_LAX_OCTET}){{3}}"
"""With leading zeros, as the validators of URIs let them pass."""

_NUM_GROUPS = 8


def ipv6(*, min_elided: int = 1, ipv4: str = IPV4) -> str:
    """Source of IPv6 addresses whose "::", if there, stands for at least so many groups; a final IPv4 one is two."""
    group = f"{HEX}{{1,4}}"
    full = [f"(?:{group}:){{7}}{group}", f"(?:{group}:){{6}}{ipv4}"]
    elided = []
    for num_before in range(_NUM_GROUPS - min_elided + 1):
        before = f"{group}(?::{group}){{{num_before - 1}}}" if num_before else ""
        max_after = _NUM_GROUPS - min_elided - num_before
        after = [f"{group}(?::{group}){{0,{max_after - 1}}}"] if max_after >= 1 else []
        after += [f"(?:{group}:){{0,{max_after - 2}}}{ipv4}"] if max_after >= 2 else []
        elided.append(f"{before}::(?:{'|'.join([*after, ''])})")
    return f"(?:{'|'.join([*full, *elided])})"


_UUID = f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}"
# Python's UUID ignores further dashes, braces and "urn:uuid:", and reads digits as int() does.
_IN_UUID = r"(?:[-0-9A-Fa-f_+{}:xXurni\s]|[^\x00-\x7f])"
_UUID_OUTER = f"{_IN_UUID}{{8}}-{_IN_UUID}{{4}}-{_IN_UUID}{{4}}-{_IN_UUID}{{4}}-{_IN_UUID}*"

ADDRESS_FORMATS = {
    "ipv4": FormatSyntax(inner=IPV4, is_exact=True),
    "ipv6": FormatSyntax(inner=ipv6(), is_exact=True),
    "uuid": FormatSyntax(inner=_UUID, outer=_UUID_OUTER),
}
