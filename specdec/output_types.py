"""constraint_of: any output type a Python user may name, as a constraint; schema_of: those that stand for a schema."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, NoReturn, TypeVar, get_args

from specdec.errors import RequestError, SchemaError
from specdec.grammars.constraints import Choice, Constraint, JsonSchema, Regex
from specdec.grammars.options import DEFAULT_OPTIONS, SchemaOptions

_ACCEPTED = (
    "a JSON Schema as dict or JSON text, a pydantic model, dataclass, TypedDict, Enum, Literal, "
    "or list, dict, tuple, Union or Optional of those; or specdec.Regex or specdec.Choice"
)


def constraint_of(output_type: object, options: SchemaOptions | None = None) -> Constraint:
    """The constraint that `output_type` stands for.

    A constraint is itself. A compiled `re.Pattern`, and the terms Regex, String and Choice of `outlines`, are texts
    outside JSON. All else stands for a schema (`schema_of`), which is read by the `options`.

    Raises SchemaError as `schema_of`, and RequestError for options beside what has no schema, or its own options.
    """
    constraint = _without_schema(output_type)
    if constraint is None:
        return JsonSchema(schema=schema_of(output_type), options=DEFAULT_OPTIONS if options is None else options)
    if options is not None:
        raise RequestError(
            f"options say how a schema is read, and {type(output_type).__name__} has none that they could be about; "
            "constraints with a schema hold their own options",
            param="options",
        )
    return constraint


def _without_schema(output_type: object) -> Constraint | None:
    """The constraint of what stands for no schema; None for what may."""
    if isinstance(output_type, get_args(Constraint)):
        constraint: Constraint = output_type
        return constraint
    if isinstance(output_type, re.Pattern):
        if not isinstance(output_type.pattern, str):
            _refuse("the pattern is one of bytes; answers are text", param="regex")
        if output_type.flags != re.UNICODE:
            flags = re.RegexFlag(output_type.flags & ~re.UNICODE)
            _refuse(f"the pattern has the flags {flags!r}; write them into the pattern itself", param="regex")
        return Regex(pattern=output_type.pattern)
    if not type(output_type).__module__.startswith("outlines."):
        return None
    # outlines imports transformers, which takes seconds; whoever has one of its terms has paid for it.
    from outlines.types import dsl

    if isinstance(output_type, dsl.Regex):
        return Regex(pattern=output_type.pattern)
    if isinstance(output_type, dsl.String):
        return Choice(choices=(output_type.value,))
    if isinstance(output_type, dsl.Choice):
        items = list(output_type.items)
        if wrong := [item for item in items if not isinstance(item, str)]:
            _refuse(
                f"the Choice holds {wrong[0]!r}, which is no text; typing.Literal chooses among values in JSON",
                param="choice",
            )
        return Choice(choices=tuple(items))
    return None


def schema_of(output_type: object) -> str:
    """The JSON text of the schema that `output_type` stands for.

    `outlines` is the front end: its term JsonSchema, and what it lowers to that (pydantic models, dataclasses,
    TypedDicts, functions). It lowers every other type to a regex over Python's spelling (`True`, `None`,
    single-quoted strings), which is not JSON: those take the schema that pydantic, its own generator, gives them.

    Raises SchemaError for text that is no JSON Schema, for outlines' other terms, and for objects that stand for no
    schema.
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
    from outlines.types.dsl import JsonSchema as SchemaTerm
    from outlines.types.dsl import Term, python_types_to_terms
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError

    name = getattr(output_type, "__name__", None) or repr(output_type)
    if isinstance(output_type, Term) and not isinstance(output_type, SchemaTerm):
        kind = f"outlines {type(output_type).__name__}"
        _refuse(f"{kind} constraints are not supported; pass {_ACCEPTED}", code="unsupported_constraint")
    try:
        if SchemaTerm.is_json_schema(output_type) or inspect.isfunction(output_type):
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


def _refuse(
    message: str, cause: Exception | None = None, *, param: str = "schema", code: str | None = None
) -> NoReturn:
    codes = {"schema": "invalid_json_schema", "regex": "invalid_regex", "choice": "invalid_choice"}
    raise SchemaError(message, param=param, code=code or codes[param]) from cause
