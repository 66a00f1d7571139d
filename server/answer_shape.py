"""AnswerShape: what the answers to a request consist of, as a constraint and as a way to read them."""

from __future__ import annotations

import re

import msgspec

from specdec import AfterMarker, ChatTemplate, Constraint, RequestError, SchemaError, TextOrToolCalls, Tokenizer
from specdec.server.answer import Answer, Choice
from specdec.server.answer_reader import AnswerReader
from specdec.server.constraint import RequestedConstraint
from specdec.server.reasoning import ReasoningReader, after_reasoning, is_open, may_reason
from specdec.server.text_logprobs import TextLogprobs
from specdec.server.tools import RequestedTools
from specdec.server.usage import Extension

_CODES = {
    "pattern": ("invalid_regex", "unsupported_regex_feature"),
    "choices": ("invalid_choice", "unsupported_choice"),
}
_SCHEMA_CODES = ("invalid_json_schema", "unsupported_schema_feature")


class AnswerShape(msgspec.Struct, frozen=True, kw_only=True):
    """Reasoning or not, then text, calls or both."""

    constraint: Constraint | None
    tools: RequestedTools
    requested: RequestedConstraint
    tokenizer: Tokenizer
    has_reasoning: bool
    is_reasoning_begun: bool
    """Whether answers are within reasoning from their first character on."""

    def reader(self) -> AnswerReader:
        """For one choice."""
        if not self.has_reasoning:
            return AnswerReader(None, self.tools.reader())
        call_start = None
        if isinstance(self.constraint, TextOrToolCalls):
            call_start = self.constraint.calls.format.text_end or "{"
        reasoning = ReasoningReader(is_begun=self.is_reasoning_begun, call_start=call_start)
        return AnswerReader(reasoning, self.tools.reader())

    def text_logprobs(self) -> TextLogprobs:
        """For one choice."""
        return TextLogprobs(self.tokenizer.pieces(skip_special_tokens=self.constraint is None))

    def count(self, *, answer: Answer, choice: Choice, reader: AnswerReader) -> None:
        """Note how much of a finished choice is reasoning."""
        if self.has_reasoning:
            answer.has_reasoning = True
            choice.num_reasoning_tokens = self.tokenizer.num_tokens_of(
                choice.token_ids,
                reader.num_reasoning_characters,
                skip_special_tokens=self.constraint is None,
            )

    @property
    def has_report(self) -> bool:
        """Whether the answer shall carry the enforcement report."""
        return self.requested.has_report or self.tools.has_report

    def located(self, error: RequestError) -> RequestError:
        """An error as one of the request: those of a composed constraint point into it."""
        if not isinstance(error, SchemaError) or error.param != "constraint":
            return error
        part, param, pointer = self._place(error.pointer)
        is_unsupported = (error.code or "").startswith("unsupported")
        code = _CODES.get(part, _SCHEMA_CODES)[is_unsupported]
        return SchemaError(str(error), keyword=error.keyword, pointer=pointer, param=param, code=code)

    def in_request(self, extension: Extension) -> Extension:
        """With the places in the report as pointers into the body of the request, where it has tools to be called."""
        report = extension.enforcement
        if report is None or self.tools.constraint is None:
            return extension
        restrictions = tuple(
            msgspec.structs.replace(one, pointer=self._body_pointer(one.pointer)) for one in report.restrictions
        )
        return msgspec.structs.replace(
            extension, enforcement=msgspec.structs.replace(report, restrictions=restrictions)
        )

    def _body_pointer(self, pointer: str) -> str:
        if pointer[:1] != "/":
            return pointer  # of all of the answer, or of a document that a reference led to
        _, param, rest = self._place(pointer)
        return "/" + re.sub(r"\[(\d+)\]", r"/\1", param).replace(".", "/") + rest

    def _place(self, pointer: str) -> tuple[str, str, str]:
        """Of a place in the constraint: which part of an answer in text it is of, the request's field, and where there.

        The part is empty for what is no text.
        """
        pointer = pointer.removeprefix("/then")
        part, _, rest = pointer.removeprefix("/text/").removeprefix("/").partition("/")
        if part in {"schema", "pattern", "choices"}:
            return part, self.requested.param, f"/{rest}" if rest else ""
        if self.tools.constraint is None:
            return "", self.requested.param, pointer
        return "", *self.tools.located(pointer)


def answer_shape(
    tools: RequestedTools,
    requested: RequestedConstraint,
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    prompt: str,
    reasoning_parser: str,
) -> AnswerShape:
    """What may answer this prompt, by this template."""
    constraint = tools.constraint or requested.constraint
    has_reasoning = may_reason(reasoning_parser, template, prompt)
    if has_reasoning and constraint is not None:
        constraint = after_reasoning(constraint)
    return AnswerShape(
        constraint=constraint,
        tools=tools,
        requested=requested,
        tokenizer=tokenizer,
        has_reasoning=has_reasoning,
        is_reasoning_begun=has_reasoning and (is_open(prompt) or isinstance(constraint, AfterMarker)),
    )
