"""Regions: what each byte and token of a JSON text, whole or cut anywhere, writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evals.regions import REGIONS, byte_regions, token_regions

SCHEMA = {
    "properties": {
        "kind": {"enum": ["one", "two", 3]},
        "name": {"type": "string"},
        "size": {"type": "number"},
        "tags": {"items": {"$ref": "#/$defs/tag"}},
        "pair": {"prefixItems": [{"const": "x"}], "items": {"type": "string"}},
        "any": {"anyOf": [{"type": "integer"}, {"const": "none"}]},
    },
    "additionalProperties": {"enum": ["more"]},
    "$defs": {"tag": {"enum": ["a", "b"]}},
}
LETTERS = {"structure": ".", "key": "k", "enum": "e", "number": "n", "string": "s"}


def drawn(text, schema=SCHEMA):
    return "".join(LETTERS[region] for region in byte_regions(text.encode(), schema))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"kind":"one"}', ".kkkkkk.eeeee."),
        ('{"name":"o{,"}', ".kkkkkk.sssss."),
        ('{"size":-1.5,"kind":3}', ".kkkkkk.nnnn.kkkkkk.e."),
        ('{"tags":["a","c"]}', ".kkkkkk..eee.eee.."),
        ('{"pair":["x","y"]}', ".kkkkkk..eee.sss.."),
        ('{"any":12}', ".kkkkk.ee."),
        ('{"x":"more","name":"\\""}', ".kkk.eeeeee.kkkkkk.ssss."),
        (" [ true , null ] ", "...eeee...eeee..."),
        ('{"na', ".kkk"),
        ('{"name":"ab\\', ".kkkkkk.ssss"),
        ("", ""),
    ],
)
def test_each_byte_has_a_region(text, expected):
    assert drawn(text) == expected


def test_a_token_is_what_its_first_byte_is_and_may_cross():
    pieces = [b'{"', b"kind", b'":"', b"one", b'"}', b""]
    assert token_regions(pieces, SCHEMA) == [
        ("structure", True),
        ("key", False),
        ("key", True),
        ("enum", False),
        ("enum", True),
        ("structure", False),
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["kind", "name", "tags", "zé"]) | st.text(), inner),
)


@given(VALUES, st.booleans(), st.data())
def test_any_beginning_of_any_text_is_read_like_the_whole(value, is_ascii, data):
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    whole = byte_regions(text, SCHEMA)
    assert len(whole) == len(text)
    assert set(whole) <= set(REGIONS)
    cut = data.draw(st.integers(0, len(text)))
    assert byte_regions(text[:cut], SCHEMA) == whole[:cut]


@given(st.binary(max_size=40))
def test_what_is_no_json_ends_the_reading_and_nothing_else(text):
    assert len(byte_regions(text, SCHEMA)) == len(text)
