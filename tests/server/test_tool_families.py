"""Calls in the format of each model family, end to end, and by the default model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from jsonschema import Draft202012Validator
from live_server import serving
from tool_requests import (
    MESSAGES,
    TOOLS,
    ask,
    ask_in_a_stream,
    check_calls,
    strict_client,
    written,
)
from tool_templates import LLAMA, MISTRAL, MISTRAL_ARGS, QWEN, QWEN_CODER, write_model_with_tools

from specdec import Engine, EngineConfig

pytestmark = pytest.mark.filterwarnings("error")
BEGINNINGS = {"qwen": '<tool_call>\n{"name":', "qwen_coder": "<tool_call>\n<function=",
              "llama": '{"name":', "mistral": '[TOOL_CALLS] [{"name":',
              "mistral_args": "[TOOL_CALLS]"}  # fmt: skip
FAMILIES = {
    "qwen": (QWEN, "<tool_call>"),
    "qwen_coder": (QWEN_CODER, "<tool_call>"),
    "llama": (LLAMA, "{"),
    "mistral": (MISTRAL, "[TOOL_CALLS]"),
    "mistral_args": (MISTRAL_ARGS, "[TOOL_CALLS]"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A server whose model has the template of a family, its name, and what makes it begin a call."""
    template, marker = FAMILIES[request.param]
    folder, ids = write_model_with_tools(tmp_path_factory.mktemp("family") / "model", template)
    config = EngineConfig(model=str(folder), num_kv_blocks=300, check_outputs=True, num_compile_workers=0)
    engine = Engine(config)
    [marker_id] = [ids[marker]] if marker in ids else engine.tokenizer.encode(marker)
    with serving(engine) as server:
        yield server, request.param, {str(marker_id): 100}


@pytest.mark.slow
def test_every_family_calls_in_its_own_format(family: tuple) -> None:
    server, name, bias = family
    with strict_client(server) as client:
        for choice in ("auto", "required"):
            for seed in range(3):
                fields = {"tool_choice": choice, "seed": seed, "logit_bias": bias, "max_tokens": 400, "logprobs": True}
                answer = ask(client, **fields)
                assert answer.finish_reason == "tool_calls"
                assert check_calls(answer.message)
                assert answer.message.content is None
                text = b"".join(bytes(entry.bytes) for entry in answer.logprobs.content).decode()
                assert text.startswith(BEGINNINGS[name])
                streamed, _ = ask_in_a_stream(client, **fields)
                assert written(streamed.message) == written(answer.message)
                history = [
                    *MESSAGES,
                    {"role": "assistant", "content": None, "tool_calls": [
                        call.model_dump() for call in answer.message.tool_calls
                    ]},
                    *({"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in answer.message.tool_calls),
                ]  # fmt: skip
                again = client.chat.completions.create(
                    model="tiny", messages=history, tools=TOOLS, max_tokens=5, tool_choice="none"
                )
                assert again.choices[0].message.content is not None


def test_every_family_answers_in_text_as_well(family: tuple) -> None:
    server, _, _ = family
    with strict_client(server) as client:
        for seed in range(3):
            answer = ask(client, seed=seed, max_tokens=20)
            assert answer.message.content is not None
            assert answer.message.tool_calls is None


def test_no_stop_string_ends_a_call(family: tuple) -> None:
    server, _, bias = family
    with strict_client(server) as client:
        answer = ask(client, logit_bias=bias, seed=1, max_tokens=400, stop=["name", "}", '"', "]"])
        assert answer.finish_reason == "tool_calls"
        assert check_calls(answer.message)


def test_where_a_format_is_asked_for_an_answer_is_a_call_or_in_the_format(family: tuple) -> None:
    server, name, bias = family
    schema = {"type": "object", "properties": {"note": {"enum": ["<tool_call>", "a"]}}, "required": ["note"],
              "additionalProperties": False}  # fmt: skip
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with strict_client(server) as client:
        if name == "llama":
            with pytest.raises(openai.BadRequestError) as refused:
                ask(client, response_format=response_format)
            assert refused.value.param == "response_format"
            return
        for seed in range(2):
            fields = {"response_format": response_format, "seed": seed}
            called = ask(client, logit_bias=bias, **fields)
            assert check_calls(called.message)
            assert called.finish_reason == "tool_calls"
            answer = ask(client, logit_bias=dict.fromkeys(bias, -100), **fields)
            if answer.finish_reason == "tool_calls":
                assert check_calls(answer.message)
            else:
                assert answer.finish_reason == "stop"
                Draft202012Validator(schema).validate(json.loads(answer.message.content))


def test_arguments_that_a_format_cannot_hold_to_their_schema_are_refused_by_name(family: tuple) -> None:
    server, name, _ = family
    parameters = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "minProperties": 1}
    tools = [TOOLS[2], {"type": "function", "function": {"name": "some", "parameters": parameters}}]
    choice = {"type": "function", "function": {"name": "some"}}
    with strict_client(server) as client:
        if name != "qwen_coder":
            [call] = ask(client, tools=tools, tool_choice=choice).message.tool_calls
            Draft202012Validator(parameters).validate(json.loads(call.function.arguments))
            return
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, tools=tools, tool_choice=choice)
        assert (refused.value.param, refused.value.code) == (
            "tools[1].function.parameters",
            "unsupported_schema_feature",
        )
        assert "'some'" in str(refused.value)


def test_answers_in_a_budget_of_any_size_are_whole_calls_or_text(family: tuple) -> None:
    server, _, bias = family
    random_numbers = random.Random(5)
    with strict_client(server) as client:
        for seed in range(24):
            answer = ask(
                client, seed=seed, max_tokens=random_numbers.randint(1, 120), temperature=1.5,
                logit_bias=bias if random_numbers.random() < 0.6 else {},
                parallel_tool_calls=random_numbers.random() < 0.5,
            )  # fmt: skip
            names = check_calls(answer.message)
            assert (answer.finish_reason == "tool_calls") == bool(names)
    assert server.engine.stats().num_output_check_failures == 0


def test_every_finished_call_was_judged(family: tuple) -> None:
    server, _, bias = family
    before = server.engine.stats()
    with strict_client(server) as client:
        assert check_calls(ask(client, logit_bias=bias, seed=9, max_tokens=400).message)
    after = server.engine.stats()
    assert after.num_outputs_checked == before.num_outputs_checked + 1
    assert after.num_output_check_failures == 0


@pytest.mark.model
def test_the_default_model_calls_a_function(default_model_folder: Path) -> None:
    engine = Engine(EngineConfig(model=str(default_model_folder), num_kv_blocks=300, check_outputs=True))
    with serving(engine) as server, strict_client(server) as client:
        fields = {"temperature": 0, "tools": TOOLS[:1], "max_tokens": 100}
        answer = ask(client, tool_choice="required", **fields)
        assert check_calls(answer.message) == ["get_weather"]
        assert json.loads(answer.message.tool_calls[0].function.arguments)["city"] == "Oslo"
        free = ask(client, **fields)
        assert free.finish_reason in {"stop", "length", "tool_calls"}
        check_calls(free.message)
        assert server.engine.stats().num_output_check_failures == 0
