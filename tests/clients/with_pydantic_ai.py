"""pydantic-ai: agents that answer in text, in a schema, or by calls."""

from __future__ import annotations

from features import try_out
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from shapes import QUESTION, Forecast


def chat(url: str, model: str) -> OpenAIChatModel:
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=url + "/v1", api_key="none"))


def responses(url: str, model: str) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(model, provider=OpenAIProvider(base_url=url + "/v1", api_key="none"))


async def text(url: str, model: str) -> None:
    result = await Agent(chat(url, model), model_settings={"max_tokens": 20}).run(QUESTION)
    assert isinstance(result.output, str)
    assert result.usage.output_tokens <= 20


async def text_stream(url: str, model: str) -> None:
    agent = Agent(chat(url, model), model_settings={"max_tokens": 40})
    async with agent.run_stream(QUESTION) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 1


async def forced_call(url: str, model: str) -> None:
    result = await Agent(chat(url, model), output_type=Forecast, retries=0).run(QUESTION)
    assert isinstance(result.output, Forecast)


async def forced_call_stream(url: str, model: str) -> None:
    async with Agent(chat(url, model), output_type=ToolOutput(Forecast), retries=0).run_stream(QUESTION) as result:
        partial = [output async for output in result.stream_output(debounce_by=None)]
    assert isinstance(partial[-1], Forecast)


async def json_schema(url: str, model: str) -> None:
    result = await Agent(chat(url, model), output_type=NativeOutput(Forecast), retries=0).run(QUESTION)
    assert isinstance(result.output, Forecast)


async def json_schema_stream(url: str, model: str) -> None:
    async with Agent(chat(url, model), output_type=NativeOutput(Forecast), retries=0).run_stream(QUESTION) as result:
        partial = [output async for output in result.stream_output(debounce_by=None)]
    assert isinstance(partial[-1], Forecast)


async def function_tool(url: str, model: str) -> None:
    """A random model calls the tool in some of the runs; each run ends with a forecast, or asks too often for it."""
    cities = []
    for seed in range(20):
        agent = Agent(chat(url, model), output_type=Forecast, retries=0, model_settings={"seed": seed})

        @agent.tool_plain
        def air_pressure(city: str, hours: int = 1) -> str:
            """The air pressure of a city."""
            assert isinstance(hours, int)
            cities.append(city)
            return "1013 hPa"

        result = await agent.run(QUESTION)
        assert isinstance(result.output, Forecast)
        if cities:
            return
    raise AssertionError("the tool was never called")


async def responses_schema(url: str, model: str) -> None:
    result = await Agent(responses(url, model), output_type=NativeOutput(Forecast), retries=0).run(QUESTION)
    assert isinstance(result.output, Forecast)


async def responses_call(url: str, model: str) -> None:
    async with Agent(responses(url, model), output_type=Forecast, retries=0).run_stream(QUESTION) as result:
        assert isinstance(await result.get_output(), Forecast)


class Impossible(Forecast, json_schema_extra={"not": {}}):
    """What no value can be."""


async def refused_schema(url: str, model: str) -> None:
    try:
        await Agent(chat(url, model), output_type=NativeOutput(Impossible), retries=0).run(QUESTION)
    except ModelHTTPError as error:
        assert error.status_code == 400
        assert error.body["code"] in {"invalid_json_schema", "unsupported_schema_feature"}, error.body
        return
    raise AssertionError("a schema without instances was answered")


try_out(
    "pydantic-ai-slim",
    text=text,
    text_stream=text_stream,
    json_schema=json_schema,
    json_schema_stream=json_schema_stream,
    forced_call=forced_call,
    forced_call_stream=forced_call_stream,
    function_tool=function_tool,
    responses_schema=responses_schema,
    responses_call=responses_call,
    refused_schema=refused_schema,
)
