"""Tasks: the prompts, with or without a schema, that every eval draws on; shipped in `workloads/`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

import msgspec

WorkloadName = Literal["structured", "free_text"]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a workload file."""

    name: str
    category: str
    messages: tuple[Message, ...]
    # Any: a JSON Schema is any JSON object.
    schema: dict[str, Any] | None = None
    prediction: str | None = None
    """Text that much of the answer is expected to repeat, as OpenAI's `prediction`; the file that is to be edited."""

    unknown_format: Literal["refuse", "annotation"] = "refuse"
    """What a format that nobody knows is to the schema; suites of other people's schemas have many."""

    @property
    def schema_text(self) -> str | None:
        return None if self.schema is None else msgspec.json.encode(self.schema).decode()

    @property
    def num_chars(self) -> int:
        """Length of the conversation, before any template."""
        return sum(len(message.content) for message in self.messages)

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates and the OpenAI API take them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def without_schema(self) -> Task:
        return msgspec.structs.replace(self, schema=None)

    def without_prediction(self) -> Task:
        return msgspec.structs.replace(self, prediction=None)


def load_workload(name: WorkloadName) -> list[Task]:
    """The tasks of a shipped workload, in file order."""
    text = resources.files("specdec.evals").joinpath("workloads", f"{name}.jsonl").read_text(encoding="utf-8")
    return msgspec.json.Decoder(Task).decode_lines(text)


def spread_by_length(tasks: Sequence[Task], num_tasks: int) -> list[Task]:
    """That many tasks, from the shortest prompt to the longest in even strides; all of them if there are fewer."""
    ordered = sorted(tasks, key=lambda task: (task.num_chars, task.name))
    if num_tasks >= len(ordered):
        return ordered
    if num_tasks == 1:
        return ordered[:1]
    return [ordered[round(i * (len(ordered) - 1) / (num_tasks - 1))] for i in range(num_tasks)]


def with_shared_prefixes(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, every second one followed by a later turn of the same conversation: its prompt is their prefix."""
    mixed: list[Task] = []
    for i, task in enumerate(tasks):
        mixed.append(task)
        if i % 2:
            again = (Message("assistant", "Here it is."), Message("user", "Once more, please, and check every word."))
            mixed.append(msgspec.structs.replace(task, name=f"{task.name}-again", messages=(*task.messages, *again)))
    return mixed
