"""instructor: what it makes of a pydantic model in each of its modes."""

from __future__ import annotations

import instructor
import openai
from features import try_out
from instructor.core import InstructorRetryException
from pydantic import BaseModel, Field
from shapes import QUESTION, Forecast

MESSAGES = [{"role": "user", "content": QUESTION}]


def client(url: str, mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0), mode=mode)


def forced_call(url: str, model: str) -> None:
    asked = client(url, instructor.Mode.TOOLS)
    forecast, answer = asked.create_with_completion(
        model=model, messages=MESSAGES, response_model=Forecast, max_retries=0
    )
    assert isinstance(forecast, Forecast)
    assert answer.choices[0].finish_reason == "tool_calls"


def parallel_calls(url: str, model: str) -> None:
    from collections.abc import Iterable

    asked = client(url, instructor.Mode.PARALLEL_TOOLS)
    found = list(asked.create(model=model, messages=MESSAGES, response_model=Iterable[Forecast], max_retries=0, seed=1))
    assert all(isinstance(forecast, Forecast) for forecast in found)


def json_schema(url: str, model: str) -> None:
    asked = client(url, instructor.Mode.JSON_SCHEMA)
    forecast = asked.create(model=model, messages=MESSAGES, response_model=Forecast, max_retries=0)
    assert isinstance(forecast, Forecast)


def json_schema_stream(url: str, model: str) -> None:
    asked = client(url, instructor.Mode.JSON_SCHEMA)
    parts = list(asked.create_partial(model=model, messages=MESSAGES, response_model=Forecast, max_retries=0))
    assert len(parts) > 1
    Forecast.model_validate(parts[-1].model_dump())


class Anything(BaseModel, extra="allow"):
    """Any object: this mode asks for no other."""


def json_object(url: str, model: str) -> None:
    asked = client(url, instructor.Mode.JSON)
    found = asked.create(model=model, messages=MESSAGES, response_model=Anything, max_retries=0)
    assert isinstance(found, Anything)


class Contradiction(BaseModel):
    """What no value can be."""

    number: int = Field(ge=5, le=1)


def refused_schema(url: str, model: str) -> None:
    asked = client(url, instructor.Mode.JSON_SCHEMA)
    try:
        asked.create(model=model, messages=MESSAGES, response_model=Contradiction, max_retries=0)
    except InstructorRetryException as error:
        assert "number" in str(error)
        return
    raise AssertionError("a schema without instances was answered")


try_out(
    "instructor",
    json_schema=json_schema,
    json_schema_stream=json_schema_stream,
    json_object=json_object,
    forced_call=forced_call,
    parallel_calls=parallel_calls,
    refused_schema=refused_schema,
)
