"""RequestedConstraint: what an answer must satisfy, whichever of the two fields a client says it in."""

from __future__ import annotations

import msgspec

from specdec import Constraint, SamplingParams, TextOrToolCalls
from specdec.server.errors import bad_request
from specdec.server.response_format import ResponseFormat, TextFormat, format_constraint
from specdec.server.structured_outputs import StructuredOutputs, outputs_constraint


class RequestedConstraint(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's constraint, and what only the wire knows of it."""

    constraint: Constraint | None = None
    param: str = "response_format"
    """The field that a problem with the constraint is a problem of."""
    has_report: bool = False
    """Whether the answer shall carry the enforcement report."""

    @property
    def params(self) -> dict[str, str]:
        """This request's names of the engine's fields."""
        return dict.fromkeys(("schema", "regex", "choice"), self.param)


def requested_constraint(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None, *, max_schema_bytes: int
) -> RequestedConstraint:
    """What the two fields ask for together. Raises ApiError where both constrain, SchemaError for what is too large."""
    wanted_format = None if isinstance(response_format, TextFormat) else response_format
    if wanted_format is not None and structured_outputs is not None:
        raise bad_request(
            "response_format and structured_outputs both constrain the answer; give one of them",
            param="structured_outputs",
            code="conflicting_fields",
        )
    if wanted_format is not None:
        schema, param = format_constraint(wanted_format, max_schema_bytes=max_schema_bytes)
        return RequestedConstraint(constraint=schema, param=param, has_report=bool(wanted_format.report))
    if structured_outputs is not None:
        constraint, param = outputs_constraint(structured_outputs, max_schema_bytes=max_schema_bytes)
        return RequestedConstraint(constraint=constraint, param=param, has_report=bool(structured_outputs.report))
    return RequestedConstraint()


def refuse_conflicts(sampling_params: SamplingParams, constraint: Constraint | None, param: str) -> None:
    """A constraint, of this field, decides where the answer ends; raise for a field that would decide otherwise."""
    if constraint is None:
        return
    has_free_text = isinstance(constraint, TextOrToolCalls) and constraint.text is None
    for name, is_set in (
        ("stop", bool(sampling_params.stop)),
        ("stop_token_ids", bool(sampling_params.stop_token_ids)),
        ("ignore_eos", sampling_params.ignore_eos),
        ("min_tokens", sampling_params.min_tokens > 0),
    ):
        # Free text that may end in calls may end at a stop string as well.
        if is_set and not (name == "stop" and has_free_text):
            field = param.partition(".")[0]
            raise bad_request(
                f"{name} cannot be combined with {field}: the constraint alone decides where the answer ends; "
                f"leave {name} out",
                param=name,
                code="conflicting_fields",
            )
