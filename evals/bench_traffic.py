"""Traffic: the requests of a load, drawn by a seed: some under a schema, some left midway, some malformed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from specdec.evals.bench_malformed import MALFORMED, Malformed
from specdec.evals.workload import Task

Endpoint = Literal["chat", "completions"]
Switch = Literal["on", "off", "default"]

PATHS: Final[dict[Endpoint, str]] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Shares, from 0 to 1; the first two are of the requests that are not malformed."""

    constrained: float
    aborted: float
    malformed: float


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What every request asks for."""

    model: str
    endpoint: Endpoint
    max_tokens: int
    temperature: float
    ignore_eos: bool
    """Of answers without a schema: a schema says itself where its answer ends."""
    speculative: Switch
    has_running_usage: bool
    """Whether the server takes `continuous_usage_stats`, which counts the tokens of each chunk."""
    has_predictions: bool
    """Send the prediction of a task that has one, which servers may not know."""
    are_prompts_unique: bool
    """Begin each prompt with its number, so that no prefix cache holds it."""

    @property
    def path(self) -> str:
        return PATHS[self.endpoint]


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One request, before it is sent."""

    index: int
    task: Task
    # A body is any JSON object.
    body: dict[str, Any]
    is_constrained: bool
    leaves_after: int | None = None
    """Chunks after which the client is gone; 0 is as soon as the answer has begun."""
    malformed: Malformed | None = None


class Traffic:
    """Draws requests of a mix from tasks, those with a schema and those without taking turns of their own."""

    def __init__(self, tasks: Sequence[Task], mix: Mix, generation: Generation, seed: int) -> None:
        """Raises ValueError for a mix of what the tasks do not hold."""
        self._with_schema = [task for task in tasks if task.schema is not None]
        self._plain = [task for task in tasks if task.schema is None]
        if not tasks:
            raise ValueError("there are no tasks to ask for")
        if mix.constrained > 0 and not self._with_schema:
            raise ValueError("no task has a schema, so that no request can be constrained")
        if not self._plain:
            self._plain = [task.without_schema() for task in self._with_schema]
        self._mix = mix
        self._generation = generation
        self._seed = seed

    def requests(self) -> Iterator[Planned]:
        """Without end; the same for the same seed."""
        chance = random.Random(self._seed)
        num_constrained = num_plain = index = 0
        while True:
            is_constrained = chance.random() < self._mix.constrained
            if is_constrained:
                task = self._with_schema[num_constrained % len(self._with_schema)]
                num_constrained += 1
            else:
                task = self._plain[num_plain % len(self._plain)]
                num_plain += 1
            body = request_body(task, self._generation, seed=self._seed + index, index=index)
            malformed = chance.choice(MALFORMED) if chance.random() < self._mix.malformed else None
            is_left = malformed is None and chance.random() < self._mix.aborted
            yield Planned(
                index=index,
                task=task,
                body=body,
                is_constrained=is_constrained and malformed is None,
                leaves_after=_leaving_point(chance, self._generation.max_tokens) if is_left else None,
                malformed=malformed,
            )
            index += 1


def request_body(task: Task, generation: Generation, *, seed: int, index: int) -> dict[str, Any]:
    """A streamed request for an answer to the task, under its schema where it has one."""
    body: dict[str, Any] = {
        "model": generation.model,
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if generation.has_running_usage:
        body["stream_options"]["continuous_usage_stats"] = True
    mark = f"Request {index}. " if generation.are_prompts_unique else ""
    if generation.endpoint == "chat":
        first, *others = task.chat()
        body["messages"] = [{**first, "content": mark + first["content"]}, *others]
    else:
        body["prompt"] = mark + "\n\n".join(message.content for message in task.messages)
    if task.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": task.schema, "strict": True},
        }
    elif generation.ignore_eos:
        body["ignore_eos"] = True
    if task.prediction is not None and generation.has_predictions and generation.speculative != "off":
        body["prediction"] = {"type": "content", "content": task.prediction}
    if generation.speculative != "default":
        body["speculative"] = {"enabled": generation.speculative == "on"}
    return body


def _leaving_point(chance: random.Random, max_tokens: int) -> int:
    """As likely among the first ten chunks as from there to the hundredth: leaks hide at the beginning."""
    return int((max_tokens + 1) ** chance.random()) - 1
