"""Asking an OpenAI-compatible server for answers under a schema, many at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import httpx
import msgspec

from specdec.errors import EngineError
from specdec.evals.workload import Task

TIMEOUT_S = 600.0


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer; `error` says why there is none."""

    text: str = ""
    finish_reason: str = ""
    num_completion_tokens: int = 0
    max_tokens: int = 0
    """What was asked for in the end."""
    error: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Model(msgspec.Struct):
    id: str


class _RefusalError(msgspec.Struct):
    minimum_tokens: int | None = None


class _Refusal(msgspec.Struct):
    error: _RefusalError


class _Models(msgspec.Struct):
    data: list[_Model]


def ask_all(
    url: str,
    tasks: Sequence[Task],
    *,
    model: str | None,
    api_key: str | None,
    temperature: float,
    max_tokens: int,
    first_seed: int,
    concurrency: int,
    on_answer: Callable[[], None],
    has_tight_budgets: bool = False,
) -> list[ChatAnswer]:
    """One answer a task, in order. `url` is the server's, with or without /v1; `model` None takes its first.

    With tight budgets `max_tokens` is drawn for each request between the fewest tokens that the server guarantees an
    answer in and three times as many, after it has refused one less.

    Raises EngineError where the server cannot be reached or names no model.
    """

    async def ask_them() -> list[ChatAnswer]:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=concurrency)
        async with httpx.AsyncClient(
            base_url=base_url(url), headers=headers, limits=limits, timeout=TIMEOUT_S
        ) as client:
            name = model or await first_model(client)
            free = asyncio.Semaphore(concurrency)

            async def ask(index: int, task: Task) -> ChatAnswer:
                async with free:
                    body = _body(task, name, temperature, max_tokens, first_seed + index)
                    answer = await (_ask_within_budget if has_tight_budgets else _ask)(client, body)
                on_answer()
                return answer

            return list(await asyncio.gather(*(ask(index, task) for index, task in enumerate(tasks))))

    return asyncio.run(ask_them())


def base_url(url: str) -> str:
    """Of the API, by the server's with or without /v1."""
    return url.rstrip("/").removesuffix("/v1") + "/v1/"


def _body(task: Task, model: str, temperature: float, max_tokens: int, seed: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": task.chat(),
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": task.name, "schema": task.schema, "strict": True},
        },
    }


async def first_model(client: httpx.AsyncClient) -> str:
    """The first that the server names. Raises EngineError where it names none."""
    try:
        response = await client.get("models")
        response.raise_for_status()
        models = msgspec.json.decode(response.content, type=_Models).data
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise EngineError(
            f"{client.base_url} does not name its models ({error}); is a server running there?"
        ) from error
    if not models:
        raise EngineError(f"{client.base_url} serves no model")
    return models[0].id


def minimum_tokens(response: httpx.Response) -> int | None:
    """Of a refusal because max_tokens is too small, what would do."""
    if response.status_code != httpx.codes.BAD_REQUEST:
        return None
    try:
        return msgspec.json.decode(response.content, type=_Refusal).error.minimum_tokens
    except msgspec.DecodeError:
        return None


async def _ask_within_budget(client: httpx.AsyncClient, body: dict[str, object]) -> ChatAnswer:
    try:
        first = await client.post("chat/completions", json=body | {"max_tokens": 1})
        minimum = 1 if first.status_code == httpx.codes.OK else minimum_tokens(first)
        if minimum is None:
            return ChatAnswer(error=f"max_tokens 1: status {first.status_code}: {first.text[:500]}")
        below = await client.post("chat/completions", json=body | {"max_tokens": minimum - 1})
    except httpx.HTTPError as error:
        return ChatAnswer(error=f"{type(error).__name__}: {error}")
    if minimum > 1 and minimum_tokens(below) != minimum:
        return ChatAnswer(error=f"max_tokens {minimum - 1} is not refused with minimum_tokens {minimum}")
    budget = random.Random(str(body["seed"])).randint(minimum, 3 * minimum)
    answer = await _ask(client, body | {"max_tokens": budget})
    if answer.error is None and answer.max_tokens != budget:
        return ChatAnswer(error=f"max_tokens {budget} is refused, and minimum_tokens was {minimum}")
    if answer.error is None and (answer.finish_reason != "stop" or answer.num_completion_tokens > budget + 1):
        # The token that ends the sequence is no part of the budget.
        message = f"{answer.num_completion_tokens} tokens of {budget}, finish_reason {answer.finish_reason!r}"
        return msgspec.structs.replace(answer, error=message)
    return answer


async def _ask(client: httpx.AsyncClient, body: dict[str, object]) -> ChatAnswer:
    try:
        response = await client.post("chat/completions", json=body)
    except httpx.HTTPError as error:
        return ChatAnswer(error=f"{type(error).__name__}: {error}")
    enough = minimum_tokens(response)
    if enough is not None and enough > int(str(body["max_tokens"])):
        # As in process (driver.request_of): an answer gets the tokens that it needs.
        return await _ask(client, body | {"max_tokens": enough})
    if response.status_code != httpx.codes.OK:
        return ChatAnswer(error=f"status {response.status_code}: {response.text[:500]}")
    try:
        completion = msgspec.json.decode(response.content, type=_Completion)
    except msgspec.DecodeError as error:
        return ChatAnswer(error=f"no chat completion: {error}")
    if len(completion.choices) != 1:
        return ChatAnswer(error=f"{len(completion.choices)} choices where one was asked for")
    choice = completion.choices[0]
    return ChatAnswer(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "none",
        num_completion_tokens=completion.usage.completion_tokens,
        max_tokens=int(str(body["max_tokens"])),
    )
