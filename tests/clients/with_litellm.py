"""litellm: the same calls through its adapters for OpenAI and for vLLM."""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm asks the network for prices when it is imported

import litellm
from features import try_out
from shapes import QUESTION, Forecast

litellm.suppress_debug_info = True
TOOL = {
    "type": "function",
    "function": {"name": "forecast", "description": "Tell the forecast.", "parameters": Forecast.model_json_schema()},
}


def ask(url: str, model: str, adapter: str = "openai", **fields: object) -> object:
    return litellm.completion(
        model=f"{adapter}/{model}", api_base=url + "/v1", api_key="none", num_retries=0,
        messages=[{"role": "user", "content": QUESTION}], **fields,
    )  # fmt: skip


def text(url: str, model: str) -> None:
    assert ask(url, model, max_tokens=20).usage.completion_tokens <= 20


def text_stream(url: str, model: str) -> None:
    pieces = list(ask(url, model, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert len(pieces) > 2
    assert pieces[-1].usage.completion_tokens <= 40


def json_schema(url: str, model: str) -> None:
    answer = ask(url, model, response_format=Forecast)
    Forecast.model_validate_json(answer.choices[0].message.content)
    answer = ask(url, model, "hosted_vllm", response_format=Forecast)
    Forecast.model_validate_json(answer.choices[0].message.content)


def json_schema_stream(url: str, model: str) -> None:
    pieces = list(ask(url, model, response_format=Forecast, stream=True))
    Forecast.model_validate_json("".join(piece.choices[0].delta.content or "" for piece in pieces))


def json_object(url: str, model: str) -> None:
    answer = ask(url, model, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def forced_call(url: str, model: str) -> None:
    for adapter in ("openai", "hosted_vllm"):
        answer = ask(url, model, adapter, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        [call] = answer.choices[0].message.tool_calls
        Forecast.model_validate_json(call.function.arguments)


def forced_call_stream(url: str, model: str) -> None:
    choice = {"type": "function", "function": {"name": "forecast"}}
    pieces = list(ask(url, model, tools=[TOOL], tool_choice=choice, stream=True))
    answer = litellm.stream_chunk_builder(pieces)
    [call] = answer.choices[0].message.tool_calls
    Forecast.model_validate_json(call.function.arguments)


def prediction(url: str, model: str) -> None:
    answer = ask(url, model, max_tokens=20, prediction={"type": "content", "content": "The weather is fine."})
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens is not None
    assert details.rejected_prediction_tokens is not None


def refused_schema(url: str, model: str) -> None:
    schema = {"type": "object", "properties": {"a": False}, "required": ["a"]}
    shape = {"type": "json_schema", "json_schema": {"name": "nothing", "schema": schema}}
    try:
        ask(url, model, response_format=shape)
    except litellm.BadRequestError:
        return
    raise AssertionError("a schema without instances was answered")


try_out(
    "litellm",
    text=text,
    text_stream=text_stream,
    json_schema=json_schema,
    json_schema_stream=json_schema_stream,
    json_object=json_object,
    forced_call=forced_call,
    forced_call_stream=forced_call_stream,
    prediction=prediction,
    refused_schema=refused_schema,
)
