"""Reasoning between think tags: free, told apart from the answer, and never at the expense of its constraint."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from live_server import LiveServer, chat_body, read_events, serving
from tool_templates import LLAMA, MAY_THINK, THINKING, write_model_with_tools

from specdec import LLAMA_JSON, ChatTemplate, Engine, EngineConfig, Function, TextOrToolCalls, ToolCalls
from specdec.server import ServerConfig
from specdec.server.answer_reader import ReasoningPiece
from specdec.server.answer_shape import AnswerShape
from specdec.server.call_families import call_family
from specdec.server.constraint import RequestedConstraint
from specdec.server.reasoning import ReasoningReader
from specdec.server.template_options import template_options
from specdec.server.tool_calls import TextPiece
from specdec.server.tools import RequestedTools

CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "<think>"]}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
NO_END = {"2": -100}
pytestmark = pytest.mark.filterwarnings("error")


def engine_of(folder: Path) -> Engine:
    return Engine(EngineConfig(model=str(folder), num_kv_blocks=300, check_outputs=True, num_compile_workers=0))


@pytest.fixture(scope="module", params=["the prompt begins it", "the model may begin it"])
def thinking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    template = THINKING if request.param == "the prompt begins it" else MAY_THINK
    folder, _ = write_model_with_tools(tmp_path_factory.mktemp("thinking") / "model", template)
    with serving(engine_of(folder)) as server:
        server.begins = template is THINKING
        yield server


@pytest.fixture
def client(thinking: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=thinking.url, timeout=60) as client:
        yield client


def ask(client: httpx.Client, **fields: object) -> tuple[dict, dict]:
    response = client.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0], response.json()["usage"]


SWITCHED = THINKING.replace(
    "<think>\\n' }}{%- endif %}",
    "<think>\\n' }}{%- if enable_thinking is defined and not enable_thinking %}{{- '\\n</think>\\n' }}{%- endif %}"
    "{%- endif %}",
)
"""As Qwen3 has it: reasoning that can be turned off."""
GRADED = MAY_THINK + "{{- 'Reasoning: ' + (reasoning_effort or 'medium') }}"


def prompt_of(client: httpx.Client, **fields: object) -> str:
    tokens = client.post("/tokenize", json=chat_body(**fields)).json()["tokens"]
    return client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    assert SWITCHED != THINKING
    folder, _ = write_model_with_tools(tmp_path_factory.mktemp("switched") / "model", SWITCHED)
    with serving(engine_of(folder)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_thinking_is_turned_off_by_the_template_option_and_by_effort_none(switched: httpx.Client) -> None:
    off = {"enable_thinking": False}
    assert prompt_of(switched, chat_template_kwargs=off).endswith("<think>\n\n</think>\n")
    assert prompt_of(switched).endswith("<think>\n")
    fields = {"max_tokens": 60, "seed": 1, "response_format": RESPONSE_FORMAT}
    for how in ({}, {"chat_template_kwargs": {"enable_thinking": True}}, {"reasoning_effort": "high"}):
        assert ask(switched, **fields, **how)[0]["message"]["reasoning"]
    for how in ({"chat_template_kwargs": off}, {"reasoning_effort": "none"}):
        message = ask(switched, **fields, **how)[0]["message"]
        assert "reasoning" not in message
        assert message["content"].startswith("{")


@pytest.mark.parametrize("effort", [None, "none", "high"])
def test_responses_take_the_effort_of_reasoning(switched: httpx.Client, effort: str | None) -> None:
    body = {"model": "tiny", "input": "Hi", "reasoning": {"effort": effort}, "max_output_tokens": 12, "seed": 1}
    response = switched.post("/v1/responses", json={**body, "logit_bias": NO_END})
    assert response.status_code == 200, response.text
    has_reasoning = "reasoning" in [item["type"] for item in response.json()["output"]]
    assert has_reasoning == (effort != "none")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"chat_template_kwargs": {"enable_thinking": "a\n"}}, "chat_template_kwargs.enable_thinking", "invalid_value"),
        ({"chat_template_kwargs": {"enable_thinking": ""}}, "chat_template_kwargs.enable_thinking", "invalid_value"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking", "unsupported_field"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs[...]", "invalid_value"),
        ({"chat_template_kwargs": {"tools": "x"}}, "chat_template_kwargs.tools", "unsupported_field"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, "reasoning_effort",
         "conflicting_fields"),
        ({"reasoning_effort": "<|im_end|>"}, "reasoning_effort", "invalid_value"),
    ],
)  # fmt: skip
def test_only_plain_values_of_options_that_the_template_has_are_taken(
    switched: httpx.Client, fields: dict[str, object], param: str, code: str
) -> None:
    response = switched.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 400, response.text
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (param, code)


def test_an_effort_goes_to_a_template_that_has_a_variable_for_it() -> None:
    graded, switch, neither = (ChatTemplate(source, {}) for source in (GRADED, SWITCHED, MAY_THINK))
    assert template_options(None, "high", template=graded) == {"reasoning_effort": "high"}
    assert template_options({"reasoning_effort": "low"}, None, template=graded) == {"reasoning_effort": "low"}
    assert template_options(None, "low", template=switch) == {"enable_thinking": True}
    assert template_options(None, "low", template=neither) == {}
    assert template_options(None, None, template=graded) == {}


def test_a_constrained_answer_may_think_first_and_closes_inside_its_budget(client: httpx.Client) -> None:
    for seed in range(3):
        fields = {"response_format": RESPONSE_FORMAT, "seed": seed, "max_tokens": 60, "logit_bias": NO_END}
        choice, usage = ask(client, **fields)
        message = choice["message"]
        assert choice["finish_reason"] == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(message["content"]))
        assert message["reasoning_content"] == message["reasoning"]
        assert "</think>" not in message["reasoning"]
        num_reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < num_reasoning < usage["completion_tokens"]
        with client.stream("POST", CHAT, json=chat_body(stream=True, **fields)) as response:
            deltas = [choice["delta"] for event in read_events(response) for choice in event["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == message["reasoning"]


def test_a_call_that_has_to_come_may_be_thought_about(client: httpx.Client) -> None:
    choice, _ = ask(client, tools=TOOLS, tool_choice="required", max_tokens=80, seed=1, logit_bias=NO_END)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning"]
    [call, *_] = choice["message"]["tool_calls"]
    Draft202012Validator(SCHEMA).validate(json.loads(call["function"]["arguments"]))


def test_a_call_that_is_free_to_come_ends_the_reasoning(thinking: LiveServer, client: httpx.Client) -> None:
    [marker] = thinking.engine.tokenizer.encode("<tool_call>")
    for seed in range(3):
        fields = {"tools": TOOLS, "max_tokens": 300, "seed": seed, "logit_bias": {str(marker): 100}}
        choice, _ = ask(client, **fields)
        assert choice["finish_reason"] == "tool_calls"
        for call in choice["message"]["tool_calls"]:
            Draft202012Validator(SCHEMA).validate(json.loads(call["function"]["arguments"]))


def test_free_text_is_reasoning_where_the_prompt_has_begun_it(client: httpx.Client, thinking: LiveServer) -> None:
    choice, usage = ask(client, max_tokens=20, seed=1, logit_bias=NO_END)
    assert choice["finish_reason"] == "length"
    assert usage["completion_tokens_details"]["reasoning_tokens"] == (20 if thinking.begins else 0)
    assert bool(choice["message"].get("reasoning")) == thinking.begins
    assert bool(choice["message"]["content"]) != thinking.begins


def test_errors_point_into_the_schema_that_was_sent(client: httpx.Client) -> None:
    bad = {"type": "object", "properties": {"a": {"type": "text"}}}
    for fields, param in (
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}},
         "response_format.json_schema.schema"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": bad}}], "tool_choice": "required"},
         "tools[0].function.parameters"),
    ):  # fmt: skip
        error = client.post(CHAT, json=chat_body(**fields)).json()["error"]
        assert (error["param"], error["pointer"]) == (param, "/properties/a/type")
        assert error["code"] == "invalid_json_schema"
    error = client.post(CHAT, json=chat_body(structured_outputs={"regex": "("})).json()["error"]
    assert (error["param"], error["code"], error["pointer"]) == ("structured_outputs.regex", "invalid_regex", "")


def test_a_response_has_its_reasoning_as_an_item(thinking: LiveServer) -> None:
    with openai.OpenAI(
        base_url=thinking.url + "/v1", api_key="none", _strict_response_validation=True, max_retries=0, timeout=60
    ) as client:
        fields = {
            "model": "tiny", "input": "Hello", "max_output_tokens": 60,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
            "extra_body": {"seed": 3, "logit_bias": NO_END},
        }  # fmt: skip
        response = client.responses.create(**fields)
        assert [item.type for item in response.output] == ["reasoning", "message"]
        Draft202012Validator(SCHEMA).validate(json.loads(response.output_text))
        assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
        events = list(client.responses.create(stream=True, **fields))
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert thought == response.output[0].content[0].text
    assert events[-1].response.output_text == response.output_text


def test_the_parser_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, _ = write_model_with_tools(tmp_path_factory.mktemp("thinking") / "model", THINKING)
    config = ServerConfig(served_model_names=("tiny",), reasoning_parser="none")
    with serving(engine_of(folder), config) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        choice, _ = ask(client, response_format=RESPONSE_FORMAT, max_tokens=60)
        assert choice["message"].keys() == {"role", "content", "refusal"}
        Draft202012Validator(SCHEMA).validate(json.loads(choice["message"]["content"]))


@given(
    thought=st.text(alphabet="ab </thin>\n", max_size=20),
    answer=st.text(alphabet="ab <think/>\n", max_size=20),
    opens=st.booleans(),
    places=st.lists(st.integers(0, 60), max_size=8),
)
def test_whatever_the_pieces_the_same_is_reasoning(thought: str, answer: str, opens: bool, places: list[int]) -> None:
    thought = thought.split("</think>")[0]
    if thought.lstrip().startswith("<think>"):
        thought = ""
    text = ("<think>" if opens else "") + thought + "</think>" + answer
    if not opens and "<think>".startswith(thought.strip()[:1] or "x"):
        return
    reader = ReasoningReader(is_begun=True)
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    pieces = [reader.read(text[start:end]) for start, end in itertools.pairwise(bounds)]
    pieces.append(reader.end())
    assert "".join(reasoning for reasoning, _ in pieces) == thought.strip()
    assert "".join(rest for _, rest in pieces) == answer.lstrip()
    assert reader.num_characters == len(text) - len(answer)


def test_reasoning_ends_where_a_call_begins() -> None:
    for text in ("<think>a <tool_call>\n{", "<think>a </think>\n\n<tool_call>\n{"):
        for size in (1, 2, 5, 40):
            reader = ReasoningReader(is_begun=False, call_start="<tool_call>")
            pieces = [reader.read(text[start : start + size]) for start in range(0, len(text), size)]
            assert "".join(reasoning for reasoning, _ in pieces) == "a"
            assert "".join(rest for _, rest in pieces) == "<tool_call>\n{"


def test_text_without_the_opening_tag_is_an_answer() -> None:
    reader = ReasoningReader(is_begun=False)
    assert reader.read("<th") == ("", "")
    assert reader.read("at is") == ("", "<that is")
    assert reader.num_characters == 0


def test_the_logprobs_of_a_response_are_those_of_its_text_alone(client: httpx.Client) -> None:
    fields = {
        "model": "tiny", "input": "Hello", "max_output_tokens": 60, "seed": 3, "logit_bias": NO_END,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "top_logprobs": 1,
    }  # fmt: skip
    [_, message] = client.post("/v1/responses", json=fields).json()["output"]
    [part] = message["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]).lstrip() == part["text"]
    streamed = [
        json.loads(line.removeprefix("data: "))
        for line in client.post("/v1/responses", json={**fields, "stream": True}).text.splitlines()
        if line.startswith("data: {")
    ]
    sent = [entry for event in streamed if event["type"] == "response.output_text.delta" for entry in event["logprobs"]]
    assert [entry["token"] for entry in sent] == [entry["token"] for entry in part["logprobs"]]
    # The prompt of the second request is cached: fp32 logits of another batch shape.
    assert [entry["logprob"] for entry in sent] == pytest.approx(
        [entry["logprob"] for entry in part["logprobs"]], abs=1e-4
    )


ENDS_OF_REASONING = ("</think>{", "</think>\n\n{", "</think> ")


@pytest.fixture(scope="module", params=["the prompt begins it", "the model may begin it"])
def thinking_llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A server whose model has Llama's format and reasons, and tokens that end the reasoning, by their text."""
    template, begin = LLAMA + "{# <think> </think> #}", "<think>hm"
    if request.param == "the prompt begins it":
        template, begin = LLAMA.replace("assistant\\n\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif"), ""
        assert template != LLAMA
    folder, _ = write_model_with_tools(tmp_path_factory.mktemp("llama") / "model", template)
    path = str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    texts = [begin + text for text in ENDS_OF_REASONING]
    tokenizer.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in texts])
    tokenizer.save(path)
    with serving(engine_of(folder)) as server:
        yield server, {text: tokenizer.token_to_id(text) for text in texts}


def test_a_call_that_is_the_whole_answer_is_enforced_after_reasoning(thinking_llama: tuple) -> None:
    server, ids = thinking_llama
    num_called = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for (text, token_id), seed in itertools.product(ids.items(), range(2)):
            fields = {
                "tools": TOOLS, "max_tokens": 80, "seed": seed, "logit_bias": {str(token_id): 100}, "stop": ["}", '"'],
            }  # fmt: skip
            choice, _ = ask(client, **fields)
            calls = choice["message"].get("tool_calls") or []
            with client.stream("POST", CHAT, json=chat_body(stream=True, **fields)) as response:
                deltas = [choice["delta"] for event in read_events(response) for choice in event["choices"]]
            pieces = [one["function"]["arguments"] for delta in deltas for one in delta.get("tool_calls") or ()]
            if text.endswith("{"):
                assert choice["finish_reason"] == "tool_calls"
                assert choice["message"]["content"] is None
                [call] = calls
                assert call["function"]["name"] == "f"
                Draft202012Validator(SCHEMA).validate(json.loads(call["function"]["arguments"]))
                assert "".join(pieces) == call["function"]["arguments"]
                num_called += 1
            else:
                # The token comes again and again, and what it follows is text.
                assert not calls
                assert not pieces
    assert num_called == 4
    assert server.engine.stats().num_output_check_failures == 0


def test_what_comes_after_reasoning_is_a_call_where_it_begins_as_one() -> None:
    calls = TextOrToolCalls(calls=ToolCalls(functions=(Function(name="f"),), format=LLAMA_JSON), after="</think>")
    shape = AnswerShape(
        constraint=calls, tools=RequestedTools(constraint=calls, family=call_family(None)),
        requested=RequestedConstraint(), tokenizer=None, has_reasoning=True, is_reasoning_begun=True,
    )  # fmt: skip
    call = '{"name": "f", "parameters": {}}'
    for text in ("hm</think>", "hm</think> \n\t", ""):
        reader = shape.reader()
        *reasoning, begin, arguments = reader.read(text + call)
        assert reasoning == ([ReasoningPiece("hm")] if text else [])
        assert (begin.name, arguments.text, reader.has_whole_calls) == ("f", "{}", True)
    for text in ("[" + call, "\u00a0" + call, "It is " + call):
        reader = shape.reader()
        assert list(reader.read("hm</think>" + text)) == [ReasoningPiece("hm"), TextPiece(text)]
        assert not reader.has_whole_calls
