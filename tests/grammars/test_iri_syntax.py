"""IRIs are what rfc3987_syntax takes for them, and whoever judges waits for no parser of them."""

import subprocess
import sys

import pytest

from specdec.grammars.iri_syntax import is_valid_syntax

TEXTS = [
    "http://example.org/",
    "http://\u00e4\u00f6.example/\u20ac?q=\u00fc#f",
    "urn:a:b",
    "x://[2001:db8::1]:80/a",
    "x://[v1.a]/",
    "../a/b?c#d",
    "//h/p",
    "#",
    "",
    "a b",
    "http://example.org/%",
    "http://example.org/%e4",
    "1x:y",
    "x://[1::2::3]/",
    "\\",
    "http://example.org/<a>",
    "x:\ue000",
    "x:?\ue000",
]


def test_it_says_what_the_library_says():
    import rfc3987_syntax

    for term in ("iri", "iri_reference"):
        ours = [is_valid_syntax(term, text) for text in TEXTS]
        assert ours == [rfc3987_syntax.is_valid_syntax(term, text) for text in TEXTS]
        assert len(set(ours)) == 2


@pytest.mark.parametrize(
    ("schema_format", "has_parser"), [("uri", False), ("iri", True), ("iri-reference", True)], ids=str
)
def test_parsers_are_made_where_a_format_asks_for_them(schema_format, has_parser):
    program = (
        "import sys\n"
        "from specdec.grammars.judge import Judge\n"
        f"judge = Judge({{'format': {schema_format!r}}})\n"
        "assert judge.violation('\"http://example.org/\"') is None\n"
        "assert judge.violation('\"<>\"') is not None\n"
        "print('lark' in sys.modules, 'rfc3987_syntax' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == [str(has_parser), "False"]
