"""structured_outputs: a constraint as vLLM's clients spell it, with `options` and `report` as extensions."""

from __future__ import annotations

import msgspec

from specdec import Choice, Constraint, Regex
from specdec.server.errors import bad_request
from specdec.server.response_format import ABSENT, ANY_OBJECT, check_size, json_schema
from specdec.server.schema_options import Options

FIELD = "structured_outputs"


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of the first four. `json` is a schema, as JSON or as JSON text."""

    json: msgspec.Raw = msgspec.field(default_factory=lambda: ABSENT)
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    options: Options | None = None
    report: bool | None = None


def outputs_constraint(outputs: StructuredOutputs, *, max_schema_bytes: int) -> tuple[Constraint, str]:
    """The engine's form, and the field that it came in. Raises ApiError and SchemaError."""
    kinds = [
        name
        for name, is_given in (
            ("json", bytes(outputs.json) != bytes(ABSENT)),
            ("json_object", bool(outputs.json_object)),
            ("regex", outputs.regex is not None),
            ("choice", outputs.choice is not None),
        )
        if is_given
    ]
    if len(kinds) != 1:
        raise bad_request(
            f"{FIELD} holds {' and '.join(kinds) or 'no constraint'}; give exactly one of json, json_object, regex "
            "and choice",
            param=FIELD,
            code="conflicting_fields" if kinds else "invalid_value",
        )
    param = f"{FIELD}.{kinds[0]}"
    if outputs.options is not None and kinds[0] in {"regex", "choice"}:
        raise bad_request(
            f"{FIELD}.options say how a schema is read, and {kinds[0]} has none; leave them out",
            param=f"{FIELD}.options",
            code="conflicting_fields",
        )
    if outputs.regex is not None:
        check_size("pattern", len(outputs.regex.encode()), param=param, max_schema_bytes=max_schema_bytes)
        return Regex(pattern=outputs.regex), param
    if outputs.choice is not None:
        num_bytes = sum(len(text.encode()) for text in outputs.choice)
        check_size("list of choices", num_bytes, param=param, max_schema_bytes=max_schema_bytes)
        return Choice(choices=tuple(outputs.choice)), param
    schema = json_schema(
        ANY_OBJECT if outputs.json_object else _schema_text(outputs.json),
        outputs.options,
        param=param,
        options_param=f"{FIELD}.options",
        max_schema_bytes=max_schema_bytes,
    )
    return schema, param


def _schema_text(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode()
    return msgspec.json.decode(text, type=str) if text.startswith('"') else text
