"""From a constraint to its program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from msgspec.structs import replace as replace_fields

from specdec.grammars.automaton import Automaton
from specdec.grammars.closings import Closings
from specdec.grammars.constraints import (
    AfterMarker,
    Choice,
    Constraint,
    Function,
    JsonSchema,
    Regex,
    TextOrToolCalls,
    ToolCallFormat,
    ToolCalls,
)
from specdec.grammars.errors import (
    GrammarError,
    InvalidSchemaError,
    LimitExceededError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from specdec.grammars.goals import compile_rules
from specdec.grammars.layout import Layout, layout_of
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.limits import Limits
from specdec.grammars.lowering import Lowering
from specdec.grammars.options import SchemaOptions
from specdec.grammars.parameter_kinds import parameter_kinds
from specdec.grammars.parameters import parameters_of
from specdec.grammars.patterns import whole_pattern_language
from specdec.grammars.program import Program, ShortTexts
from specdec.grammars.raw_text_builder import RawTextBuilder, raw_bytes
from specdec.grammars.report import EnforcementReport, Restriction
from specdec.grammars.rules import Rule, renumbered
from specdec.grammars.scalar_automata import ScalarAutomata
from specdec.grammars.schema import SchemaDocument, schema_text
from specdec.grammars.speller import Speller
from specdec.grammars.stopwatch import Stopwatch
from specdec.grammars.tool_calls import Arguments, add_calls, check_calls
from specdec.grammars.vocabulary import Vocabulary

_FIELDS = {JsonSchema: "/schema", Regex: "/pattern", Choice: "/choices"}
_UNSPELLABLE = Restriction(reason="no character that the vocabulary cannot spell byte by byte", pointer="")

_MAX_MARKER_BYTES = 1024
"""Of a marker, as UTF-8."""


def build_program(
    constraint: Constraint, vocabulary: Vocabulary, lexicon: Lexicon, speller: Speller, limits: Limits
) -> Program:
    """The program of the constraint's texts; GrammarError where there is none.

    Pointers, of errors and of restrictions, begin at the constraint; where that has one part, at its schema, pattern or
    choices.
    `lexicon` is the one that all grammars share, and `speller` of the same vocabulary.
    """
    stopwatch = Stopwatch(limits.max_compile_seconds)
    recorded = lexicon.recorded()
    program = _ProgramBuilder(vocabulary, recorded, limits, stopwatch).build(constraint)
    return _prepared(program, recorded, speller, stopwatch)


def _prepared(program: Program, recorded: Lexicon, speller: Speller, stopwatch: Stopwatch) -> Program:
    """The program with what can be known before any text is walked, and time allows."""
    automaton = Automaton(program, recorded)
    automaton.prepare(stopwatch)
    short_texts = Closings(automaton, program, recorded, speller).short_texts(stopwatch)
    return program._replace(
        short_texts=short_texts,
        num_bytes=program.num_bytes + program.automata.num_bytes,
        report=replace_fields(
            program.report, restrictions=(*program.report.restrictions, *_left_out(program.automata))
        ),
    )


def _left_out(automata: ScalarAutomata) -> Iterator[Restriction]:
    """Alternatives of one value that no automaton holds together."""
    sizes = [("patterns or formats", len(terms), len(kept)) for terms, (kept, _) in automata.largest.items()]
    sizes += [("sets of numbers", len(sets), len(kept)) for (sets, _), (kept, _) in automata.combined.items()]
    for what, number, num_kept in dict.fromkeys(sizes):
        if num_kept < number:
            yield Restriction(
                reason=f"where a value may satisfy any of {number} {what}, those of {num_kept} of them: an automaton "
                "of all would be too large",
                pointer="",
            )


class _ProgramBuilder:
    def __init__(self, vocabulary: Vocabulary, lexicon: Lexicon, limits: Limits, stopwatch: Stopwatch) -> None:
        self._lexicon = lexicon
        self._limits = limits
        self._vocabulary = vocabulary
        self._stopwatch = stopwatch
        self._raw = RawTextBuilder(vocabulary.spellable_bytes, vocabulary.special_tokens)
        self._rules: list[Rule] = []
        self._canonical_goals: set[int] = set()
        self._enforced: set[str] = set()
        self._annotations: set[str] = set()
        self._restrictions: dict[Restriction, None] = {}
        self._layout: Layout = None
        self._pointer = ""
        """Of the part of the constraint that is being added."""

    def build(self, constraint: Constraint) -> Program:
        start = None
        match constraint:
            case JsonSchema():
                self._add_schema(constraint)
            case AfterMarker():
                marker = self._marker(constraint.marker, "marker", "/marker")
                with self._within("/then" + _FIELDS.get(type(constraint.then), "")):
                    after = self._part(constraint.then)
                self._enforced.add("marker")
                start = self._raw.free_text(marker, after, may_end=constraint.optional)
            case _:
                start = self._part(constraint)
        raw_text = None if start is None else self._raw.build(start)
        return Program(
            self._rules,
            frozenset(self._canonical_goals),
            raw_text,
            EnforcementReport(
                enforced=tuple(sorted(self._enforced)),
                restrictions=tuple(self._restrictions),
                annotations=tuple(sorted(self._annotations)),
            ),
            self._layout,
            self._lexicon.used or ScalarAutomata(),
            ShortTexts(),
            _estimated_bytes(self._rules) + (0 if raw_text is None else raw_text.num_bytes),
        )

    @contextmanager
    def _within(self, pointer: str) -> Iterator[None]:
        """What is found inside is a part of the constraint, and its own pointers begin there."""
        outer, self._pointer = self._pointer, self._pointer + pointer
        try:
            yield
        except GrammarError as error:
            error.pointer = _below(pointer, error.pointer)
            raise
        finally:
            self._pointer = outer

    def _restrict(self, reason: str, pointer: str = "") -> None:
        """Report a restriction of the part that is being added."""
        self._restrictions[Restriction(reason=reason, pointer=_below(self._pointer, pointer))] = None

    def _marker(self, text: str, keyword: str, pointer: str) -> bytes:
        marker = raw_bytes(text, keyword, pointer)
        if not marker:
            raise InvalidSchemaError(
                f"{keyword} is empty: nothing would part the free text from what follows it",
                keyword=keyword,
                pointer=pointer,
            )
        if len(marker) > _MAX_MARKER_BYTES:
            raise LimitExceededError(
                f"{keyword} has {len(marker)} bytes; the limit is {_MAX_MARKER_BYTES} (max_marker_bytes)",
                keyword=keyword,
                pointer=pointer,
            )
        if not self._vocabulary.spells(marker):
            raise UnsatisfiableSchemaError(
                f"the vocabulary cannot spell {keyword} {text!r}", keyword=keyword, pointer=pointer
            )
        return marker

    def _text_end(self, form: ToolCallFormat) -> bytes:
        """The marker at which free text ends, empty where the format begins with nothing."""
        keyword = "marker" if form.marker else "begin"
        return self._marker(form.text_end, keyword, f"/calls/format/{keyword}") if form.text_end else b""

    def _part(self, constraint: JsonSchema | Regex | Choice | ToolCalls | TextOrToolCalls) -> int:
        """The state of the raw text before a constraint's."""
        match constraint:
            case JsonSchema():
                return self._raw.value(self._add_schema(constraint), None)
            case Regex():
                return self._add_pattern(constraint.pattern)
            case Choice():
                return self._add_choice(constraint.choices)
            case ToolCalls():
                return self._add_calls(constraint, marker=None)
            case TextOrToolCalls(text=JsonSchema() as text):
                return self._add_object_or_calls(text, constraint.calls)
            case TextOrToolCalls():
                marker = self._text_end(constraint.calls.format)
                after = self._marker(constraint.after, "after", "/after") if constraint.after else None
                if marker and after is not None:
                    raise InvalidSchemaError(
                        "after belongs to calls that begin with a brace; these have a begin of their own",
                        keyword="after",
                        pointer="/after",
                    )
                with self._within("/calls"):
                    return self._add_calls(constraint.calls, marker=marker, after=after)

    def _add_schema(self, constraint: JsonSchema, *, only_objects: bool = False) -> int:
        """The number of the schema's rule."""
        self._layout = layout_of(constraint.options)
        text = schema_text(constraint.schema, self._limits)
        document = SchemaDocument(text, self._limits, constraint.options.documents)
        lowering = Lowering(document, self._limits, constraint.options, stopwatch=self._stopwatch)
        rules = compile_rules(lowering, self._lexicon)
        first = len(self._rules)
        root = first
        if first:
            rules = [renumbered(rule, first) for rule in rules]
        if only_objects:
            if not rules[0].objects:
                raise UnsatisfiableSchemaError("no object satisfies the schema, and arguments are one")
            # The schema may refer to itself, where it is what it says.
            root = first + len(rules)
            rules.append(replace(rules[0], literals=(), numbers=None, strings=(), terms=(), arrays=()))
        self._rules += rules
        if document.has_canonical_numbers:
            self._canonical_goals.update(range(first, len(self._rules)))
        report = lowering.report
        self._enforced.update(report.enforced)
        self._annotations.update(report.annotations)
        for one in report.restrictions:
            if only_objects and not one.pointer:
                # What holds of all arguments holds of the calls around them as well.
                self._restrictions[one] = None
            else:
                self._restrict(one.reason, one.pointer)
        return root

    def _add_pattern(self, pattern: str) -> int:
        inner, outer = whole_pattern_language(pattern)
        self._enforced.add("pattern")
        self._restrictions[_UNSPELLABLE] = None
        if inner != outer:
            self._restrict("no text in which ECMA-262 and Python's re do not both find a match")
        if inner.is_empty:
            raise UnsatisfiableSchemaError("no text matches the pattern", keyword="pattern")
        return self._raw.language(inner)

    def _add_choice(self, choices: tuple[str, ...]) -> int:
        if not choices:
            raise InvalidSchemaError("there is no choice", keyword="choices")
        if len(choices) > self._limits.max_enum_values:
            raise LimitExceededError(
                f"{len(choices)} choices are over the limit of {self._limits.max_enum_values} (max_enum_values)",
                keyword="choices",
            )
        self._enforced.add("choices")
        spelt = []
        for index, choice in enumerate(choices):
            text = raw_bytes(choice, "choices", f"/{index}")
            if self._vocabulary.spells(text):
                spelt.append(text)
            else:
                self._restrict(f"the vocabulary cannot spell {choice!r}", f"/{index}")
        if not spelt:
            raise UnsatisfiableSchemaError("the vocabulary can spell no choice", keyword="choices")
        return self._raw.choice(spelt)

    def _add_calls(self, calls: ToolCalls, marker: bytes | None, after: bytes | None = None) -> int:
        """The state before the first call or, where there is free text and its marker, before the free text.

        `after` is the marker behind which calls may come that begin with a brace.
        """
        check_calls(calls)
        keys = ("name_key", "arguments_key") if calls.format.name_end is None else ("name_end",)
        self._enforced.update(("functions", "begin", "end", *keys))
        if calls.format.parameters is not None:
            self._enforced.add("parameters")
        if calls.parallel:
            self._enforced.add("separator")
        arguments = []
        for index, function in enumerate(calls.functions):
            options = function.options or calls.options
            if _whitespace(options) != _whitespace(calls.options):
                raise InvalidSchemaError(
                    f"function {function.name!r} asks for other whitespace than the calls",
                    keyword="whitespace",
                    pointer=f"/functions/{index}/options/whitespace",
                )
            with self._within(f"/functions/{index}/parameters"):
                arguments.append(
                    self._add_function(function, options, is_one_by_one=calls.format.parameters is not None)
                )
        first_call, first_body = add_calls(calls, arguments, self._raw, self._vocabulary)
        match marker:
            case None:
                return first_call
            case b"" if after is not None:
                answer = self._raw.other_text(first_call, blanks=True)
                return self._raw.first_of(first_call, self._raw.free_text(after, answer, may_end=True))
            case b"":
                return self._raw.other_text(first_call)
            case _:
                return self._raw.free_text(marker, first_body, may_end=True)

    def _add_object_or_calls(self, text: JsonSchema, calls: ToolCalls) -> int:
        """The state before an object or calls, which the first byte tells apart."""
        if calls.format.text_end[:1] in {"", "{"}:
            raise UnsupportedSchemaError(
                "calls in this format begin with a brace, as the object does that an answer is otherwise",
                keyword="text",
                pointer="/text",
            )
        if _whitespace(text.options) != _whitespace(calls.options):
            raise InvalidSchemaError("text and calls ask for different whitespace", keyword="text", pointer="/text")
        with self._within("/text/schema"):
            goal = self._add_schema(text)
            rule = self._rules[goal]
            if not rule.objects or any((rule.literals, rule.numbers, rule.strings, rule.terms, rule.arrays)):
                raise UnsupportedSchemaError(
                    "beside calls the schema of an answer has to allow objects, and nothing else", keyword="type"
                )
        with self._within("/calls"):
            return self._raw.object_or(self._add_calls(calls, marker=None), goal)

    def _add_function(self, function: Function, options: SchemaOptions, *, is_one_by_one: bool) -> Arguments:
        place = self._pointer

        def restrict(reason: str, pointer: str) -> None:
            self._restrictions[Restriction(reason=reason, pointer=_below(place, pointer))] = None

        try:
            goal = self._add_schema(JsonSchema(schema=function.parameters, options=options), only_objects=True)
            if not is_one_by_one:
                return Arguments(goal, None, restrict)
            if options.property_order == "any":
                raise UnsupportedSchemaError(
                    "parameters written one by one come in the schema's order", keyword="property_order"
                )
            kinds = parameter_kinds(function.parameters)
            return Arguments(goal, parameters_of(self._rules[goal], self._rules, kinds, restrict), restrict)
        except GrammarError as error:
            error.message = f"function {function.name!r}: {error.message}"
            raise


def _whitespace(options: SchemaOptions) -> tuple[str, int]:
    return options.whitespace, options.max_whitespace


def _below(place: str, pointer: str) -> str:
    """The pointer where it begins at a place; one that begins with a reference names its own."""
    return place + pointer if pointer[:1] in {"", "/"} else pointer


def _estimated_bytes(rules: list[Rule]) -> int:
    """Memory of the rules, by the number of their parts."""
    total = 0
    for rule in rules:
        total += 400 + sum(60 + len(text) for texts in (rule.literals, rule.strings) for text in texts)
        total += sum(term.language.rows.nbytes for term in rule.terms)
        total += sum(400 + sum(150 + len(key) for key in shape.keys) for shape in rule.objects)
        total += sum(200 + 8 * len(shape.prefix) for shape in rule.arrays)
    return total
