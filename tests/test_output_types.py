"""Output types: a Python type accepts what its schema accepts, and what stands for nothing is refused."""

import dataclasses
import enum
import json
import re
import subprocess
import sys
import typing

import jsonschema
import outlines.types
import pydantic
import pytest
from typing_extensions import TypedDict

from specdec.errors import RequestError, SchemaError
from specdec.grammars import (
    AfterMarker,
    Choice,
    Function,
    JsonSchema,
    Regex,
    SchemaOptions,
    TextOrToolCalls,
    ToolCalls,
)
from specdec.output_types import constraint_of, schema_of


class Person(pydantic.BaseModel):
    name: str
    friends: list["Person"] = []


@dataclasses.dataclass
class Point:
    x: int
    label: str = ""


class Options(TypedDict, total=False):
    verbose: bool


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


def book(title: str, pages: int = 1) -> None:
    """A function, whose arguments are the output."""


TYPES = [
    pytest.param(Person, [{"name": "a", "friends": [{"name": "b"}]}], [{"friends": []}, {"name": 1}], id="pydantic"),
    pytest.param(Point, [{"x": 1}, {"x": 1, "label": "p"}], [{"label": "p"}, {"x": "1"}], id="dataclass"),
    pytest.param(Options, [{}, {"verbose": True}], [{"verbose": "yes"}, 1], id="TypedDict"),
    pytest.param(Colour, ["red", 2], ["RED", "2", 3, None], id="Enum"),
    pytest.param(
        typing.Literal["1", 1.5, None, True], ["1", 1.5, None, True], [False, 15, "None", "True"], id="Literal"
    ),
    pytest.param(list[Point], [[], [{"x": 1}]], [{"x": 1}, [1]], id="list"),
    pytest.param(dict[str, int], [{}, {"a": 1}], [{"a": "1"}, []], id="dict"),
    pytest.param(tuple[int, str], [[1, "a"]], [["a", 1], [1], [1, "a", 2]], id="tuple"),
    pytest.param(Point | Colour, [{"x": 1}, "red"], ["blue", 1], id="union"),
    pytest.param(typing.Optional[typing.Literal["a"]], ["a", None], ["b", 1], id="Optional"),  # noqa: UP045
    pytest.param(int, [1, -1], ["1", True, None], id="int"),
    pytest.param(bool, [True], [1, "true"], id="bool"),
    pytest.param(dict, [{}, {"a": [1]}], [[], "a"], id="any object"),
    pytest.param(book, [{"title": "t"}, {"title": "t", "pages": 2}], [{"pages": 2}, {"title": 1}], id="function"),
    pytest.param(outlines.types.json_schema({"type": "null"}), [None], [0, ""], id="outlines JsonSchema"),
    pytest.param({"type": "array", "maxItems": 1}, [[], [1]], [[1, 2], {}], id="dict schema"),
    pytest.param('{"const": 1}', [1], [2], id="JSON text"),
    pytest.param({}, [1, None, {}], [], id="empty schema"),
]


@pytest.mark.parametrize(("output_type", "valid", "invalid"), TYPES)
def test_the_schema_accepts_what_the_type_accepts_and_nothing_else(output_type, valid, invalid):
    validator = jsonschema.Draft202012Validator(json.loads(schema_of(output_type)))
    validator.check_schema(validator.schema)
    assert [value for value in valid if not validator.is_valid(value)] == []
    assert [value for value in invalid if validator.is_valid(value)] == []


def test_boolean_schemas_stay_boolean():
    assert schema_of(True) == "true"
    assert schema_of(False) == "false"


def test_schema_text_is_taken_as_it_is():
    text = '{ "type" :\n"string","properties":{"b":1,"a":1} }'
    assert schema_of(text) is text


def test_a_dict_keeps_the_order_of_its_keys():
    assert list(json.loads(schema_of({"properties": {"b": {}, "a": {}}}))["properties"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("output_type", "message"),
    [
        (None, "leave it out for free text"),
        ("{", "no JSON text"),
        ("[" * 100_000, "no JSON text"),
        ("[1]", "a JSON list; a JSON Schema is an object, true or false"),
        ("null", "a JSON NoneType; a JSON Schema is"),
        ({"enum": [{1, 2}]}, "holds what JSON cannot"),
        ({"const": float("nan")}, "holds what JSON cannot"),
        (outlines.types.CFG('start: "a"'), "CFG constraints are not supported"),
        (outlines.types.either("a", "b"), "Alternatives constraints are not supported"),
        (Person(name="a"), "an instance of Person is not an output type"),
        (Colour.RED, "an instance of Colour is not an output type"),
        (5, "an instance of int is not an output type"),
        ([int], "an instance of list is not an output type"),
        (typing.TypeVar("Unbound"), "an instance of TypeVar is not an output type"),
        (type("Opaque", (), {}), "Opaque has no JSON Schema"),
        (list["Nowhere"], "not fully defined"),  # noqa: F821, the name is missing on purpose
        (lambda title: title, "must have a type annotation"),
    ],
)
def test_what_stands_for_no_schema_is_refused_with_the_reason(output_type, message):
    for read in (schema_of, constraint_of):
        with pytest.raises(SchemaError, match=message) as refused:
            read(output_type)
        assert refused.value.param == "schema"


def test_a_grammar_is_refused_under_a_code_of_its_own():
    with pytest.raises(SchemaError) as refused:
        constraint_of(outlines.types.CFG('start: "a"'))
    assert refused.value.code == "unsupported_constraint"


GET = Function(name="get")
CONSTRAINTS = [
    JsonSchema(schema="{}", options=SchemaOptions(format="annotation")),
    Regex(pattern="a"),
    Choice(choices=("a",)),
    ToolCalls(functions=(GET,)),
    AfterMarker(marker="#", then=Regex(pattern="a")),
    TextOrToolCalls(calls=ToolCalls(functions=(GET,))),
]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda constraint: type(constraint).__name__)
def test_a_constraint_is_itself_and_holds_its_own_options(constraint):
    assert constraint_of(constraint) is constraint
    with pytest.raises(RequestError, match="options") as refused:
        constraint_of(constraint, SchemaOptions())
    assert refused.value.param == "options"


@pytest.mark.parametrize(
    ("output_type", "constraint"),
    [
        (re.compile("[a-z]+"), Regex(pattern="[a-z]+")),
        (outlines.types.Regex("[a-z]+"), Regex(pattern="[a-z]+")),
        (outlines.types.Choice(["a", "b"]), Choice(choices=("a", "b"))),
        (outlines.types.dsl.String("a"), Choice(choices=("a",))),
        ({"type": "null"}, JsonSchema(schema='{"type": "null"}')),
        ('{"type":"null"}', JsonSchema(schema='{"type":"null"}')),
        (Colour, JsonSchema(schema=schema_of(Colour))),
        (typing.Literal["a"], JsonSchema(schema=schema_of(typing.Literal["a"]))),
        (outlines.types.json_schema({"type": "null"}), JsonSchema(schema='{"type": "null"}')),
    ],
)
def test_output_types_stand_for_constraints(output_type, constraint):
    assert constraint_of(output_type) == constraint


def test_the_terms_of_outlines_for_common_patterns_are_patterns():
    assert re.fullmatch(constraint_of(outlines.types.integer).pattern, "-12")


def test_options_go_with_the_schema_of_a_type():
    options = SchemaOptions(property_order="any", documents={"urn:a": {}})
    assert constraint_of(Person, options) == JsonSchema(schema=schema_of(Person), options=options)
    for output_type in (re.compile("a"), outlines.types.Choice(["a"])):
        with pytest.raises(RequestError, match="options"):
            constraint_of(output_type, options)


@pytest.mark.parametrize(
    ("output_type", "param", "message"),
    [
        (re.compile("a", re.IGNORECASE), "regex", "IGNORECASE"),
        (re.compile("(?s)."), "regex", "DOTALL"),
        (re.compile("a", re.ASCII), "regex", "ASCII"),
        (re.compile(b"a"), "regex", "bytes"),
        (outlines.types.Choice(["a", 1]), "choice", "holds 1, which is no text"),
    ],
)
def test_what_only_resembles_a_text_constraint_is_refused(output_type, param, message):
    with pytest.raises(SchemaError, match=message) as refused:
        constraint_of(output_type)
    assert (refused.value.param, refused.value.code) == (param, f"invalid_{param}")


def test_schemas_as_dict_or_text_import_neither_outlines_nor_pydantic():
    program = (
        "import sys\n"
        "from specdec.output_types import Regex, constraint_of\n"
        "import re\n"
        "[constraint_of(each) for each in ({}, '{}', True, re.compile('a'), Regex(pattern='a'))]\n"
        "print([name for name in ('outlines', 'pydantic', 'torch') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-P", "-c", program], text=True).strip() == "[]"
