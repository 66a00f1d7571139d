"""jsonschema, with a syntax of IRIs that is made when a format first asks for it.

rfc3987_syntax makes forty Earley parsers as it is imported, of which jsonschema asks one: 1.9 of the 2.7 seconds that a
process took to start that judges, on one core. Its grammar is the one used here.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lark import Lark

_PACKAGE: Final = "rfc3987_syntax"
_TERMS: Final = ("iri", "iri_reference")


def is_valid_syntax(term: str, value: str) -> bool:
    """What rfc3987_syntax says of it."""
    from lark import LarkError  # noqa: PLC0415, most of those who judge have no use for it

    try:
        _parser().parse(value, start=term)
    except LarkError:
        return False
    return True


@functools.cache
def _parser() -> Lark:
    from lark import Lark  # noqa: PLC0415

    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None, "jsonschema found it"
    assert spec.origin is not None, "it is a package of files"
    grammar = (Path(spec.origin).parent / "syntax_rfc3987.lark").read_text(encoding="utf-8")
    return Lark(grammar, start=list(_TERMS), parser="earley")


@contextmanager
def _on_demand() -> Iterator[None]:
    """What imports the package within gets ours, where there is one to be had and nobody has imported it."""
    if _PACKAGE in sys.modules or importlib.util.find_spec(_PACKAGE) is None:
        yield
        return
    ours = ModuleType(_PACKAGE)
    vars(ours)["is_valid_syntax"] = is_valid_syntax
    sys.modules[_PACKAGE] = ours
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


with _on_demand():
    import jsonschema

__all__ = ["is_valid_syntax", "jsonschema"]
