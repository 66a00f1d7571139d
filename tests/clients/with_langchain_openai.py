"""langchain-openai: ChatOpenAI with structured output and with tools."""

from __future__ import annotations

import openai
from features import try_out
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from shapes import QUESTION, Forecast


def chat(url: str, model: str, **fields: object) -> ChatOpenAI:
    return ChatOpenAI(base_url=url + "/v1", api_key="none", model=model, max_retries=0, **fields)


def text(url: str, model: str) -> None:
    answer = chat(url, model, max_tokens=20).invoke(QUESTION)
    assert answer.usage_metadata["output_tokens"] <= 20


def text_stream(url: str, model: str) -> None:
    pieces = list(chat(url, model, max_tokens=40).stream(QUESTION))
    assert len(pieces) > 2
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) <= 40


def json_schema(url: str, model: str) -> None:
    found = chat(url, model).with_structured_output(Forecast, method="json_schema").invoke(QUESTION)
    assert isinstance(found, Forecast)


def json_schema_stream(url: str, model: str) -> None:
    *_, found = chat(url, model).with_structured_output(Forecast, method="json_schema").stream(QUESTION)
    assert isinstance(found, Forecast)


def json_object(url: str, model: str) -> None:
    found = chat(url, model).with_structured_output(None, method="json_mode").invoke(QUESTION)
    assert isinstance(found, dict)


def forced_call(url: str, model: str) -> None:
    found = chat(url, model).with_structured_output(Forecast, method="function_calling").invoke(QUESTION)
    assert isinstance(found, Forecast)


def forced_call_stream(url: str, model: str) -> None:
    *_, found = chat(url, model).with_structured_output(Forecast, method="function_calling").stream(QUESTION)
    assert isinstance(found, Forecast)


@tool
def air_pressure(city: str, hours: int = 1) -> str:
    """The air pressure of a city."""
    return f"1013 hPa in {city} within {hours} h"


def function_tool(url: str, model: str) -> None:
    called = chat(url, model).bind_tools([air_pressure], tool_choice="required", parallel_tool_calls=False)
    asked = called.invoke(QUESTION)
    [call] = asked.tool_calls
    result = air_pressure.invoke(call)
    assert isinstance(result, ToolMessage)
    answer = chat(url, model, max_tokens=20).bind_tools([air_pressure], tool_choice="none")
    assert isinstance(answer.invoke([HumanMessage(QUESTION), asked, result]).content, str)


def responses_schema(url: str, model: str) -> None:
    asked = chat(url, model, use_responses_api=True).with_structured_output(Forecast, method="json_schema")
    assert isinstance(asked.invoke(QUESTION), Forecast)


def responses_call(url: str, model: str) -> None:
    asked = chat(url, model, use_responses_api=True).bind_tools([air_pressure], tool_choice="required")
    assert asked.invoke(QUESTION).tool_calls


def refused_schema(url: str, model: str) -> None:
    schema = {"title": "nothing", "type": "object", "properties": {"a": False}, "required": ["a"]}
    try:
        chat(url, model).with_structured_output(schema, method="json_schema", strict=False).invoke(QUESTION)
    except openai.BadRequestError as error:
        assert error.code in {"invalid_json_schema", "unsupported_schema_feature"}, error
        return
    raise AssertionError("a schema without instances was answered")


try_out(
    "langchain-openai",
    text=text,
    text_stream=text_stream,
    json_schema=json_schema,
    json_schema_stream=json_schema_stream,
    json_object=json_object,
    forced_call=forced_call,
    forced_call_stream=forced_call_stream,
    function_tool=function_tool,
    responses_schema=responses_schema,
    responses_call=responses_call,
    refused_schema=refused_schema,
)
