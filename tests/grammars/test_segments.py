"""Constraints beyond JSON: patterns, choices, calls of tools, and free text before a grammar."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import Any

import msgspec
import pytest
from budgeted_walks import walk, with_spare_tokens
from checks import accepts, allowed_ids, check_state
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import (
    AfterMarker,
    BudgetedGrammar,
    BudgetedState,
    BudgetError,
    Choice,
    Constraint,
    Function,
    GrammarCompiler,
    GrammarError,
    GrammarState,
    InvalidSchemaError,
    JsonSchema,
    LimitExceededError,
    Limits,
    ParameterFormat,
    Regex,
    SchemaOptions,
    TextOrToolCalls,
    ToolCallFormat,
    ToolCalls,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
    Vocabulary,
)
from specdec.grammars.final_check import FinalCheck

_PLACE = Function(
    name="place",
    parameters=json.dumps(
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#"}}, "required": ["a"],
         "additionalProperties": False, "$defs": {"s": {"enum": ["x", "é", 1]}}}
    ),
)  # fmt: skip
_STOP = Function(name="stop é")
_SHORT = ToolCallFormat(begin="<t>", end="</t>", separator="\n", name_key="n", arguments_key="a")
_MARKED = ToolCallFormat(begin="<t>\n", end="\n</t>", separator="\n", name_key="n", arguments_key="a", marker="<t>")
_LIST = ToolCallFormat(
    begin="<t>[", end="]", separator=",", name_key="n", arguments_key="a", marker="<t>", is_list=True
)
_BARE = ToolCallFormat(begin="", end="", separator="", name_key="n", arguments_key="a")
_NAMED = ToolCallFormat(begin="<t>", end="", separator="", name_end="<a>")
_NAMED_WITH_END = ToolCallFormat(begin="<t>\n", end="</t>", separator="\n", name_end=":", marker="<t>")
_FLEXIBLE = SchemaOptions(whitespace="flexible")
_ONE_BY_ONE = ToolCallFormat(
    begin="<t>\n<f=", name_end=">", end="</f>", separator="\n", marker="<t>",
    parameters=ParameterFormat(begin="<p=", name_end=">", end="\n</p>", after="\n"),
)  # fmt: skip
_MANY = Function(
    name="many",
    parameters=json.dumps(
        {"type": "object", "properties": {
            "s": {"type": "string"}, "n": {"type": "integer", "minimum": -3, "maximum": 120},
            "e": {"enum": ["a", "ab"]}, "o": {"type": ["string", "null"], "maxLength": 3},
            "b": {"type": "boolean"}, "x": {"type": "number"},
            "l": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "p": {"pattern": "^[ab]\n{0,2}$"},
         }, "required": ["s", "n", "b"], "additionalProperties": False}
    ),
)  # fmt: skip
_FEW = Function(
    name="few",
    parameters=json.dumps(
        {"properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#"}, "c": {"enum": ["x", 1, None]},
                        "d": {"type": "string", "minLength": 1, "maxLength": 2}, "e": {"type": "null"}},
         "required": ["a"], "additionalProperties": False, "$defs": {"s": {"enum": ["x", "é", 1]}}}
    ),
)  # fmt: skip
_SCHEMA = JsonSchema(schema='{"type":"array","items":{"type":["boolean","integer"]},"maxItems":3}')

CONSTRAINTS: list[Constraint] = [
    Regex(pattern="[ab]{2,4}c?"),
    Regex(pattern="a|ab|é+|"),
    Regex(pattern="(?=.*a)[a-z]{3}"),
    Regex(pattern="[A-Z\u00c0-\u00ff]*\\d"),
    Regex(pattern="[^\\n]*"),
    Choice(choices=("a", "ab", "abc", "é", "é!", "")),
    Choice(choices=("yes", "no", 'q"\n')),
    ToolCalls(functions=(_PLACE, _STOP)),
    ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_SHORT),
    ToolCalls(functions=(_PLACE,), format=_SHORT, options=SchemaOptions(whitespace="pretty")),
    ToolCalls(
        functions=(
            msgspec.structs.replace(_PLACE, options=SchemaOptions(property_order="any")),
            Function(
                name="day",
                parameters='{"properties":{"d":{"format":"nonsense","const":1}},"required":["d"]}',
                options=SchemaOptions(unknown_format="annotation", additional_properties="closed"),
            ),
            Function(name="none", parameters='{"maxProperties":1,"properties":{"p":{"type":"null"}}}'),
        ),
        format=_SHORT,
        options=SchemaOptions(additional_properties="closed"),
    ),
    ToolCalls(functions=(_PLACE,), format=_SHORT, options=SchemaOptions(whitespace="flexible", property_order="any")),
    AfterMarker(marker="aab", then=_SCHEMA),
    AfterMarker(marker="é😀", then=Choice(choices=("a", "b"))),
    AfterMarker(marker="</t>", then=Regex(pattern="a*"), optional=True),
    AfterMarker(marker="\n", then=JsonSchema(schema='{"const":1.5}')),
    AfterMarker(marker="aab", then=ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_SHORT)),
    AfterMarker(
        marker="aab",
        then=TextOrToolCalls(
            calls=ToolCalls(functions=(_STOP,), format=_MARKED), text=JsonSchema(schema=_PLACE.parameters)
        ),
    ),
    AfterMarker(marker="aab", then=TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_BARE))),
    TextOrToolCalls(calls=ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_SHORT)),
    TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), parallel=True, format=_MARKED)),
    ToolCalls(functions=(_STOP,), parallel=True, format=_LIST),
    TextOrToolCalls(calls=ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_LIST)),
    TextOrToolCalls(calls=ToolCalls(functions=(_PLACE, _STOP), format=_BARE)),
    TextOrToolCalls(calls=ToolCalls(functions=(_PLACE, _STOP), format=_BARE), after="aab"),
    TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_BARE, options=_FLEXIBLE), after="</t>"),
    ToolCalls(functions=(_MANY,), format=_ONE_BY_ONE),
    ToolCalls(
        functions=(_FEW, _MANY, Function(name="none", parameters='{"maxProperties":0}')),
        parallel=True,
        format=_ONE_BY_ONE,
        options=_FLEXIBLE,
    ),
    ToolCalls(functions=(_FEW,), format=_ONE_BY_ONE, options=SchemaOptions(whitespace="pretty")),
    TextOrToolCalls(calls=ToolCalls(functions=(_MANY, _FEW), parallel=True, format=_ONE_BY_ONE)),
    TextOrToolCalls(calls=ToolCalls(functions=(_FEW,), format=_ONE_BY_ONE), text=JsonSchema(schema=_PLACE.parameters)),
    AfterMarker(marker="aab", then=ToolCalls(functions=(_MANY,), format=_ONE_BY_ONE)),
    ToolCalls(functions=(_PLACE, Function(name="places"), _STOP), parallel=True, format=_NAMED),
    ToolCalls(functions=(_PLACE,), format=_NAMED, options=SchemaOptions(whitespace="pretty")),
    TextOrToolCalls(calls=ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_NAMED)),
    TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), parallel=True, format=_NAMED_WITH_END, options=_FLEXIBLE)),
    AfterMarker(marker="aab", then=ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_NAMED_WITH_END)),
    TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_NAMED), text=JsonSchema(schema=_PLACE.parameters)),
    TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_MARKED), text=JsonSchema(schema=_PLACE.parameters)),
    TextOrToolCalls(
        calls=ToolCalls(functions=(_STOP,), parallel=True, format=_LIST, options=_FLEXIBLE),
        text=JsonSchema(schema='{"type":"object","maxProperties":2}', options=_FLEXIBLE),
    ),
]


def _vocabulary(base: Vocabulary) -> Vocabulary:
    words: list[bytes | None] = [
        b"\n", b"<t>", b'<t>{"', b'</t>', b'"}}</t>', b"aab[", b"b1", b"aa", b"aaa", "é😀".encode(), b"\n1.",
        b"</t>\n<t>", b"ab]", b"t>", b"abc",
    ]  # fmt: skip
    return Vocabulary([*(base.token_bytes(token_id) for token_id in range(base.size)), *words], base.eos_token_ids)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: f"{type(one).__name__}")
@pytest.mark.parametrize("vocabulary", [small_vocabulary(), merged_vocabulary()], ids=["small", "merged"])
def test_walks_satisfy_the_constraint_and_masks_are_exact(constraint: Constraint, vocabulary: Vocabulary) -> None:
    compiler = GrammarCompiler(_vocabulary(vocabulary))
    grammar, final_check = compiler.compile(constraint), FinalCheck(constraint)
    rng = random.Random(7)

    def check(state: BudgetedState) -> None:
        check_state(compiler.vocabulary, compiler, grammar, state.state)

    for _ in range(8):
        budgeted = with_spare_tokens(grammar, rng.randint(0, 25))
        text = walk(compiler, budgeted, rng, check=check, num_checked=6).decode()
        assert final_check.violation(text) is None, text


def _accepted(constraint: Constraint, texts: list[str]) -> list[bool]:
    grammar = GrammarCompiler(_vocabulary(small_vocabulary())).compile(constraint)
    return [accepts(grammar, text.encode()) for text in texts]


@pytest.mark.parametrize("pattern", ["[ab]{2,4}c?", "a|ab|b", "(?=.*a)[a-z]{3}", "^a.?$", "x*"])
def test_a_pattern_is_matched_as_a_whole(pattern: str) -> None:
    texts = ["", "a", "ab", "abc", "aabb", "aabbc", "b", "xaz", "xyz", "xx", "ca", "a!", "aé"]
    assert _accepted(Regex(pattern=pattern), texts) == [re.fullmatch(pattern, text) is not None for text in texts]


def test_a_choice_is_one_of_the_texts_and_nothing_else() -> None:
    choice = Choice(choices=("a", "ab", "é"))
    assert _accepted(choice, ["a", "ab", "é", "", "b", "abc", "e", "aab"]) == [True] * 3 + [False] * 5


def _call(name: str, arguments: Any) -> str:
    body = json.dumps({"n": name, "a": arguments}, ensure_ascii=False, separators=(",", ":"))
    return f"<t>{body}</t>"


def test_calls_have_the_arguments_of_their_function() -> None:
    one = ToolCalls(functions=(_PLACE, _STOP), format=_SHORT)
    good = [_call("place", {"a": "é", "b": {"a": 1}}), _call("stop é", {}), _call("stop é", {"a": "z"})]
    bad = [_call("place", {}), _call("place", {"a": "z"}), _call("stop", {}), _call("place", []),
           good[0] + "\n" + good[1], "", good[0][:-1], '<t>{"a":{},"n":"stop é"}</t>']  # fmt: skip
    assert _accepted(one, good + bad) == [True] * 3 + [False] * len(bad)
    several = ToolCalls(functions=(_PLACE, _STOP), parallel=True, format=_SHORT)
    assert _accepted(several, [good[0], good[0] + "\n" + good[1], good[0] + good[1], good[0] + "\n"]) == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_first_occurrence_of_a_marker_counts() -> None:
    constraint = AfterMarker(marker="aab", then=Choice(choices=("x", "aab")))
    texts = ["aabx", "aaabx", "éaaaabaab", "aabaab", "x", "aab", "aabxaabx", "aabaabx", "ab"]
    assert _accepted(constraint, texts) == [True, True, True, True, False, False, False, False, False]
    optional = AfterMarker(marker="aab", then=Choice(choices=("x",)), optional=True)
    assert _accepted(optional, ["", "é", "aa", "aabx", "aab", "aaby"]) == [True, True, True, True, False, False]


def test_text_may_end_in_calls() -> None:
    constraint = TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_SHORT))
    call = _call("stop é", {})
    texts = ["", "words <t", "words " + call, call, "<t>", "words <t>{}", call + " more", "<<t>" + call[3:]]
    assert _accepted(constraint, texts) == [True, True, True, True, False, False, False, True]


def test_free_text_ends_at_the_marker_of_the_format() -> None:
    constraint = TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_MARKED))
    body = '{"n":"stop é","a":{}}'
    texts = [f"a <t>\n{body}\n</t>", f"<t>{body}</t>", "a <t>", "a <t\n"]
    assert _accepted(constraint, texts) == [True, False, False, True]


def test_calls_of_a_list_share_one_begin_and_one_end() -> None:
    body = '{"n":"stop é","a":{}}'
    texts = [f"<t>[{body}]", f"<t>[{body},{body}]", f"<t>[{body}],<t>[{body}]", f"<t>[{body},]", f"<t>[{body}", "<t>[]"]
    parallel = ToolCalls(functions=(_STOP,), parallel=True, format=_LIST)
    assert _accepted(parallel, texts) == [True, True, False, False, False, False]
    check = FinalCheck(parallel)
    assert [check.violation(text) is None for text in texts] == [True, True, False, False, False, False]
    one = ToolCalls(functions=(_STOP,), format=_LIST)
    assert _accepted(one, texts) == [True, False, False, False, False, False]
    check = FinalCheck(one)
    assert [check.violation(text) is None for text in texts] == [True, False, False, False, False, False]


def test_without_a_begin_an_answer_that_starts_with_a_brace_is_a_call() -> None:
    constraint = TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_BARE))
    body = '{"n":"stop é","a":{}}'
    texts = ["", body, "a" + body, "é", "{", "{}", body + "a", "[1]"]
    assert _accepted(constraint, texts) == [True, True, True, True, False, False, False, True]
    check = FinalCheck(constraint)
    assert [check.violation(text) is None for text in texts] == [True, True, True, True, False, False, False, True]


def test_behind_a_marker_and_whitespace_a_brace_begins_a_call_as_well() -> None:
    constraint = TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_BARE), after="aab")
    body = '{"n":"stop é","a":{}}'
    fine = ["", body, "a" + body, "aab" + body, "xaab\n \n" + body, "aab\n", "aab [" + body, "aaab",
            "aab x aab{", "[aab]{"]  # fmt: skip
    broken = ["{", body + "aab" + body, "aab{", "aab \t{}", "aab" + body + "x", "{aab" + body]
    check = FinalCheck(constraint)
    for texts, is_fine in ((fine, True), (broken, False)):
        assert _accepted(constraint, texts) == [is_fine] * len(texts)
        assert [check.violation(text) is None for text in texts] == [is_fine] * len(texts)


def test_an_object_may_stand_in_for_free_text() -> None:
    constraint = TextOrToolCalls(
        calls=ToolCalls(functions=(_STOP,), format=_MARKED),
        text=JsonSchema(schema='{"type":"object","properties":{"a":{"const":1}},"required":["a"]}'),
    )
    call = '<t>\n{"n":"stop é","a":{}}\n</t>'
    texts = ['{"a":1}', call, "", "a", '{"a":2}', '{"a":1}' + call, call + '{"a":1}', '{"a":1,"b":"<t>"}']
    expected = [True, True, False, False, False, False, False, True]
    assert _accepted(constraint, texts) == expected
    check = FinalCheck(constraint)
    assert [check.violation(text) is None for text in texts] == expected


@pytest.mark.parametrize(
    ("text", "form", "error", "pointer"),
    [
        (JsonSchema(schema='{"type":["object","null"]}'), _MARKED, UnsupportedSchemaError, "/text/schema"),
        (JsonSchema(schema='{"type":"array"}'), _MARKED, UnsupportedSchemaError, "/text/schema"),
        (JsonSchema(schema='{"type":"object"}'), _BARE, UnsupportedSchemaError, "/text"),
        (JsonSchema(schema='{"type":"object"}', options=_FLEXIBLE), _MARKED, InvalidSchemaError, "/text"),
        (JsonSchema(schema='{"type":"objekt"}'), _MARKED, InvalidSchemaError, "/text/schema/type"),
    ],
)
def test_an_object_that_cannot_be_told_from_calls_is_refused(
    text: JsonSchema, form: ToolCallFormat, error: type[GrammarError], pointer: str
) -> None:
    constraint = TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=form), text=text)
    with pytest.raises(error) as caught:
        GrammarCompiler(_vocabulary(small_vocabulary())).compile(constraint)
    assert caught.value.pointer == pointer


def test_a_marker_that_is_a_special_token_is_taken_as_that_token() -> None:
    base = small_vocabulary()
    tokens = [base.token_bytes(token_id) for token_id in range(base.size)]
    vocabulary = Vocabulary([*tokens, None], base.eos_token_ids, special_tokens={"<end>": len(tokens)})
    compiler = GrammarCompiler(vocabulary)
    grammar = compiler.compile(AfterMarker(marker="<end>", then=Choice(choices=("a",))))
    rng = random.Random(0)
    state = grammar.initial_state
    for _ in range(5):
        check_state(vocabulary, compiler, grammar, state)
        assert len(tokens) in allowed_ids(compiler, grammar, state)
        after = grammar.advance(state, len(tokens))
        assert after is not None, "the special token stands for the marker"
        end = grammar.advance_bytes(after, b"a")
        assert end is not None, "the choice follows"
        assert grammar.only_eos(end)
        following = grammar.advance_bytes(state, rng.choice([b"a", b"x", b"!"]))
        assert following is not None, "free text takes any letter"
        state = following


def _is_well_formed(text: bytes) -> bool:
    return text.decode(errors="replace").encode() == text


def _is_marked(marker: bytes, tokens: tuple[bytes | str, ...], *, is_optional: bool) -> bool:
    """Text, marker, `a`, by definition; special tokens, which are str here, write the marker from its beginning."""
    pieces = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    ends = list(itertools.accumulate(len(piece) for piece in pieces))
    spans = [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
    special = [span for token, span in zip(tokens, spans, strict=True) if isinstance(token, str)]
    before, found, rest = b"".join(pieces).partition(marker)
    if not found:
        return is_optional and not special and _is_well_formed(before)
    begin, end = len(before), len(before + marker)
    return (
        _is_well_formed(before) and rest == b"a" and (not special or (special[0][0] == begin and special[-1][1] <= end))
    )


@pytest.mark.parametrize("is_optional", [False, True])
@pytest.mark.parametrize("marker", ["aéa", "éaé"])
def test_the_first_marker_ends_free_text_whatever_tokens_write_it(marker: str, is_optional: bool) -> None:
    # Some tokens end inside a code point, some go beyond the marker, some special ones are parts of it.
    spelt = [b"a", b"\xc3", b"\xa9", b"a\xc3", b"\xa9a", b"aa"]
    special = ["aé", "aéa", "é", "éa"]
    base = small_vocabulary()
    size = base.size
    vocabulary = Vocabulary(
        [*(base.token_bytes(token_id) for token_id in range(size)), *spelt, *(None for _ in special)],
        base.eos_token_ids,
        special_tokens={text: size + len(spelt) + index for index, text in enumerate(special)},
    )
    tokens = [*spelt, *special]
    compiler = GrammarCompiler(vocabulary)
    grammar = compiler.compile(AfterMarker(marker=marker, then=Choice(choices=("a",)), optional=is_optional))
    states: dict[tuple[bytes | str, ...], GrammarState | None] = {(): grammar.initial_state}
    for length in range(1, 6):
        for written in itertools.product(tokens, repeat=length):
            state = states[written[:-1]]
            after = None if state is None else grammar.advance(state, size + tokens.index(written[-1]))
            is_accepted = after is not None and grammar.is_accepting(after)
            assert is_accepted == _is_marked(marker.encode(), written, is_optional=is_optional), written
            states[written] = after
    for state in {state for state in states.values() if state is not None}:
        check_state(vocabulary, compiler, grammar, state)


def test_a_budget_reserves_what_comes_after_the_marker() -> None:
    compiler = GrammarCompiler(_vocabulary(small_vocabulary()))
    grammar = compiler.compile(AfterMarker(marker="</t>", then=_SCHEMA))
    minimum = grammar.minimum_tokens
    assert minimum == 2, "the marker and an empty array are a token each"
    with pytest.raises(BudgetError):
        BudgetedGrammar(grammar, 1)
    budgeted = BudgetedGrammar(grammar, 12)
    state = budgeted.initial_state
    letter = next(i for i in range(compiler.vocabulary.size) if compiler.vocabulary.token_bytes(i) == b"x")
    num_letters = 0
    while budgeted.advance(state, letter) is not None and letter in allowed_ids(compiler, budgeted, state):
        state, num_letters = budgeted.advance(state, letter) or state, num_letters + 1
    assert 3 <= num_letters <= 10
    rng = random.Random(1)
    while not budgeted.only_eos(state):
        token_id = rng.choice(
            [one for one in allowed_ids(compiler, budgeted, state) if one not in compiler.vocabulary.eos_token_ids]
        )
        state = budgeted.advance(state, token_id) or state
    assert budgeted.is_accepting(state)


@pytest.mark.parametrize(
    ("constraint", "error", "named"),
    [
        (Regex(pattern="("), InvalidSchemaError, "pattern"),
        (Regex(pattern="[^\\s\\S]"), UnsatisfiableSchemaError, "pattern"),
        (Choice(choices=()), InvalidSchemaError, "choice"),
        (ToolCalls(functions=()), InvalidSchemaError, "function"),
        (ToolCalls(functions=(_PLACE, _PLACE)), InvalidSchemaError, "place"),
        (ToolCalls(functions=(Function(name=""),)), InvalidSchemaError, "name"),
        (ToolCalls(functions=(Function(name="f", options=_FLEXIBLE),)), InvalidSchemaError, "whitespace"),
        (ToolCalls(functions=(Function(name="f", parameters='{"type":"string"}'),)), UnsatisfiableSchemaError, "'f'"),
        (ToolCalls(functions=(Function(name="f", parameters='{"type":"nothing"}'),)), InvalidSchemaError, "'f'"),
        (AfterMarker(marker="", then=_SCHEMA), InvalidSchemaError, "marker"),
        (
            TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=_SHORT), after="aab"),
            InvalidSchemaError,
            "begin with a brace",
        ),
        (AfterMarker(marker="日本", then=_SCHEMA), UnsatisfiableSchemaError, "marker"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_what_cannot_be_is_refused_by_name(constraint: Constraint, error: type[GrammarError], named: str) -> None:
    with pytest.raises(error, match=re.escape(named)):
        GrammarCompiler(small_vocabulary()).compile(constraint)


_BAD_SCHEMA = '{"properties":{"a/b":{"type":"nothing"}}}'
_NOT_A_TYPE = Function(name="f", parameters=_BAD_SCHEMA)
_WITH_DOCUMENT = SchemaOptions(documents={"urn:d": {"type": "nothing"}})


@pytest.mark.parametrize(
    ("constraint", "pointer"),
    [
        (JsonSchema(schema=_BAD_SCHEMA), "/properties/a~1b/type"),
        (AfterMarker(marker="m", then=JsonSchema(schema=_BAD_SCHEMA)), "/then/schema/properties/a~1b/type"),
        (AfterMarker(marker="m", then=JsonSchema(schema="{")), "/then/schema"),
        (AfterMarker(marker="m", then=JsonSchema(schema="false")), "/then/schema"),
        (AfterMarker(marker="m", then=JsonSchema(schema='{"$ref":"urn:d"}', options=_WITH_DOCUMENT)), "urn:d/type"),
        (Regex(pattern="("), ""),
        (AfterMarker(marker="m", then=Regex(pattern="(")), "/then/pattern"),
        (AfterMarker(marker="m", then=Regex(pattern="日{9999}{99}")), "/then/pattern"),
        (AfterMarker(marker="m", then=Regex(pattern="[^\\s\\S]")), "/then/pattern"),
        (Choice(choices=()), ""),
        (Choice(choices=("a", "\ud800")), "/1"),
        (AfterMarker(marker="m", then=Choice(choices=())), "/then/choices"),
        (AfterMarker(marker="m", then=Choice(choices=("日",))), "/then/choices"),
        (AfterMarker(marker="m", then=Choice(choices=("a", "\ud800"))), "/then/choices/1"),
        (AfterMarker(marker="", then=_SCHEMA), "/marker"),
        (ToolCalls(functions=()), "/functions"),
        (ToolCalls(functions=(_PLACE, _NOT_A_TYPE)), "/functions/1/parameters/properties/a~1b/type"),
        (ToolCalls(functions=(_PLACE, Function(name="日"))), "/functions/1/name"),
        (ToolCalls(functions=(_PLACE,), format=ToolCallFormat(end="日")), "/format/end"),
        (TextOrToolCalls(calls=ToolCalls(functions=())), "/calls/functions"),
        (TextOrToolCalls(calls=ToolCalls(functions=(_STOP, _STOP), format=_SHORT)), "/calls/functions/1/name"),
        (
            TextOrToolCalls(calls=ToolCalls(functions=(_NOT_A_TYPE,), format=_SHORT)),
            "/calls/functions/0/parameters/properties/a~1b/type",
        ),
        (ToolCalls(functions=(_STOP,), format=ToolCallFormat(begin="a", marker="b")), "/format/marker"),
        (ToolCalls(functions=(_STOP,), format=ToolCallFormat(name_end="")), "/format/name_end"),
        (ToolCalls(functions=(_STOP,), format=ToolCallFormat(name_end="日")), "/format/name_end"),
        (ToolCalls(functions=(_PLACE, Function(name="a<a>b")), format=_NAMED), "/functions/1/name"),
        (ToolCalls(functions=(_PLACE, Function(name="a<t>b")), format=_NAMED), "/functions/1/name"),
        (ToolCalls(functions=(_PLACE, Function(name="a{b")), format=_NAMED), "/functions/1/name"),
        (ToolCalls(functions=(_PLACE, Function(name="日")), format=_NAMED), "/functions/1/name"),
        (
            ToolCalls(functions=(_STOP,), parallel=True, format=ToolCallFormat(separator="\n\n", is_list=True)),
            "/format/separator",
        ),
        (
            TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=ToolCallFormat(marker="日", begin="日"))),
            "/calls/format/marker",
        ),
        (TextOrToolCalls(calls=ToolCalls(functions=(_STOP,), format=ToolCallFormat(end="日"))), "/calls/format/end"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_an_error_points_into_the_constraint_that_was_given(constraint: Constraint, pointer: str) -> None:
    with pytest.raises(GrammarError) as caught:
        GrammarCompiler(_vocabulary(small_vocabulary())).compile(constraint)
    assert caught.value.pointer == pointer


def test_a_marker_has_a_limit_that_is_named_with_its_place() -> None:
    compiler = GrammarCompiler(_vocabulary(small_vocabulary()))
    compiler.compile(AfterMarker(marker="é" * 512, then=_SCHEMA))
    calls = ToolCalls(functions=(_STOP,), format=ToolCallFormat(begin="é" * 512 + "a"))
    for constraint, keyword, pointer in (
        (AfterMarker(marker="é" * 512 + "a", then=_SCHEMA), "marker", "/marker"),
        (TextOrToolCalls(calls=calls), "begin", "/calls/format/begin"),
    ):
        with pytest.raises(LimitExceededError, match="1025 bytes; the limit is 1024") as caught:
            compiler.compile(constraint)
        assert (caught.value.keyword, caught.value.pointer) == (keyword, pointer)


def test_a_schema_after_a_marker_is_as_large_as_any_other_may_be() -> None:
    compiler = GrammarCompiler(_vocabulary(small_vocabulary()), limits=Limits(max_schema_bytes=100))
    with pytest.raises(LimitExceededError, match="max_schema_bytes") as caught:
        compiler.compile(AfterMarker(marker="m", then=JsonSchema(schema=" " * 200 + "true")))
    assert caught.value.pointer == "/then/schema"


def test_the_report_lists_the_marker_and_the_format_of_calls_beside_what_schemas_say() -> None:
    compiler = GrammarCompiler(_vocabulary(small_vocabulary()))
    calls = ToolCalls(functions=(_STOP,), format=_SHORT)
    several = ToolCalls(functions=(_STOP,), format=_SHORT, parallel=True)
    around = {"functions", "begin", "end", "name_key", "arguments_key", "type"}
    for constraint, enforced in (
        (AfterMarker(marker="m", then=JsonSchema(schema='{"const":1}')), {"marker", "const"}),
        (AfterMarker(marker="m", then=Regex(pattern="a"), optional=True), {"marker", "pattern"}),
        (AfterMarker(marker="m", then=Choice(choices=("a",))), {"marker", "choices"}),
        (calls, around),
        (several, around | {"separator"}),
        (TextOrToolCalls(calls=calls), around),
    ):
        assert compiler.compile(constraint).report.enforced == tuple(sorted(enforced))


def test_a_restriction_points_into_the_constraint_that_was_given() -> None:
    compiler = GrammarCompiler(_vocabulary(small_vocabulary()))
    narrow = JsonSchema(schema='{"type":"object","properties":{"a":{"pattern":"^\\\\s$"}}}')
    function = Function(name="f", parameters=narrow.schema)
    for constraint, pointer in (
        (narrow, "/properties/a/pattern"),
        (Choice(choices=("a", "日")), "/1"),
        (AfterMarker(marker="m", then=narrow), "/then/schema/properties/a/pattern"),
        (AfterMarker(marker="m", then=JsonSchema(schema='{"uniqueItems":true}')), "/then/schema"),
        (AfterMarker(marker="m", then=Regex(pattern="\\s")), "/then/pattern"),
        (AfterMarker(marker="m", then=Choice(choices=("a", "日"))), "/then/choices/1"),
        (ToolCalls(functions=(_STOP, function)), "/functions/1/parameters/properties/a/pattern"),
        (
            TextOrToolCalls(calls=ToolCalls(functions=(_STOP, function), format=_SHORT)),
            "/calls/functions/1/parameters/properties/a/pattern",
        ),
    ):
        pointers = {one.pointer for one in compiler.compile(constraint).report.restrictions}
        assert pointer in pointers


def test_a_grammar_knows_its_constraint_and_is_compiled_once() -> None:
    compiler = GrammarCompiler(small_vocabulary())
    for constraint in CONSTRAINTS[:6]:
        grammar = compiler.compile(constraint)
        assert grammar.constraint == constraint
        assert compiler.compile(constraint) is grammar
