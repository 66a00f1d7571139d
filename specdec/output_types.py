"""schema_of: any output type a Python user may name, as the JSON text of a JSON Schema."""

from __future__ import annotations

import inspect
import json
from typing import Any, NoReturn, TypeVar

from specdec.errors import SchemaError

_ACCEPTED = (
    "a JSON Schema as dict or JSON text, a pydantic model, dataclass, TypedDict, Enum, Literal, "
    "or list, dict, tuple, Union or Optional of those"
)


def schema_of(output_type: object) -> str:
    """The JSON text of the schema that `output_type` stands for.

    `outlines` is the front end: its terms JsonSchema and Choice, and what it lowers to JsonSchema (pydantic models,
    dataclasses, TypedDicts, functions). It lowers every other type to a regex over Python's spelling (`True`, `None`,
    single-quoted strings), which is not JSON: those take the schema that pydantic, its own generator, gives them.

    Raises SchemaError for text that is no JSON Schema, for regexes and context-free grammars, and for objects that
    stand for no schema.
    """
    if output_type is None:
        _refuse("the schema is None; leave it out for free text")
    if isinstance(output_type, bool | dict):
        try:
            return json.dumps(output_type, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            _refuse(f"the schema holds what JSON cannot: {error}", error)
    if isinstance(output_type, str):
        _check_text(output_type)
        return output_type
    return _lower(output_type)


def _check_text(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(f"the schema is a string but no JSON text ({error}); pass {_ACCEPTED}", error)
    if not isinstance(schema, bool | dict):
        _refuse(f"the schema is a JSON {type(schema).__name__}; a JSON Schema is an object, true or false")


def _lower(output_type: Any) -> str:  # Any: an outlines term, or whatever typing calls a type
    # outlines imports transformers, which takes seconds: only users of Python types pay for it.
    from outlines.types.dsl import Choice, JsonSchema, Regex, Term, python_types_to_terms
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError

    name = getattr(output_type, "__name__", None) or repr(output_type)
    if isinstance(output_type, Choice):
        return json.dumps({"enum": list(output_type.items)})
    if isinstance(output_type, Term) and not isinstance(output_type, JsonSchema):
        kind = "regex" if isinstance(output_type, Regex) else f"outlines {type(output_type).__name__}"
        _refuse(f"{kind} constraints are not supported yet; pass {_ACCEPTED}", code="unsupported_constraint")
    try:
        if JsonSchema.is_json_schema(output_type) or inspect.isfunction(output_type):
            return str(python_types_to_terms(output_type).schema)
        if not _names_a_type(output_type):
            _refuse(f"an instance of {type(output_type).__name__} is not an output type; pass {_ACCEPTED}")
        return json.dumps(TypeAdapter(output_type).json_schema())
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError) as error:
        _refuse(f"{name} has no JSON Schema ({_first_line(error)}); pass {_ACCEPTED}", error)
    except (TypeError, ValueError, NameError, RecursionError) as error:
        _refuse(f"{name} cannot be read as an output type ({_first_line(error)}); pass {_ACCEPTED}", error)


def _names_a_type(output_type: object) -> bool:
    """Whether it is a class or one of typing's forms: list[int], Union, Literal, Annotated, Any."""
    if isinstance(output_type, TypeVar):
        return False
    return isinstance(output_type, type) or type(output_type).__module__ in {"typing", "typing_extensions", "types"}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _refuse(message: str, cause: Exception | None = None, *, code: str = "invalid_json_schema") -> NoReturn:
    raise SchemaError(message, param="schema", code=code) from cause
