"""Datasets: tasks from a user's own files: prompts as JSON lines, Spec-Bench's questions, or MaskBench's schemas."""

from __future__ import annotations

import json
import lzma
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from specdec.evals.workload import Message, Task

# Records and schemas are whatever JSON holds.
Json = Any

_EXPECTED = (
    'expected records of one kind: with "prompt" or "messages" (prompts), with "question_id", "category" and "turns" '
    '(Spec-Bench), or with "schema" and "tests" (MaskBench)'
)
_ENDINGS = (".jsonl.xz", ".json.xz", ".jsonl", ".json")
_INSTRUCTION = "Write a JSON document that satisfies this JSON Schema"
_MAX_PROMPT_CHARS = 2400
"""Of a prompt made for a schema: some 800 tokens, which leaves room for an answer in a context of 2048."""
_MAX_DESCRIPTION_CHARS = 200

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class DatasetError(ValueError):
    """A path that holds no dataset; the message names the file and the line, and says what was expected."""


class _Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: _Text | None = None
    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)] | None = None
    schema: dict[str, Json] | None = None
    category: _Text = "prompt"
    name: _Text | None = None
    prediction: _Text | None = None

    def task(self, default_name: str) -> Task:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('it needs either "prompt" or "messages"')
        return Task(
            name=self.name or default_name,
            category=self.category,
            messages=self.messages or (Message("user", self.prompt or ""),),
            schema=self.schema,
            prediction=self.prediction,
        )


class _Question(msgspec.Struct, frozen=True):
    question_id: int | _Text
    category: _Text
    turns: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1)]

    def task(self, default_name: str) -> Task:
        """The first turn: later ones are about an answer that is not there."""
        del default_name
        return Task(
            name=f"question-{self.question_id}", category=self.category, messages=(Message("user", self.turns[0]),)
        )


class _LabelledSchema(msgspec.Struct, frozen=True):
    schema: dict[str, Json] | bool
    tests: list[Json]
    name: _Text | None = None

    def task(self, default_name: str) -> Task:
        schema = self.schema
        if isinstance(schema, bool):
            # What the two stand for, as the objects that a request takes.
            schema = {} if schema else {"not": {}}
        return Task(
            name=self.name or default_name,
            category="schema",
            messages=(Message("user", schema_prompt(schema)),),
            schema=schema,
            unknown_format="annotation",
        )


_Kind = type[_Prompt] | type[_Question] | type[_LabelledSchema]
_LABELS: dict[_Kind, str] = {_Prompt: "prompt", _Question: "Spec-Bench question", _LabelledSchema: "MaskBench schema"}


def load_dataset(path: Path, *, sample: int | None, seed: int) -> list[Task]:
    """The tasks of a file, or of all .json and .jsonl files below a folder, plain or as .xz; in order.

    With `sample`, so many of them, drawn by the seed and still in order; all of them where there are no more. A file's
    first record says of which kind all its records are. Raises DatasetError.
    """
    if sample is not None and sample < 1:
        raise DatasetError(f"a sample of {sample} tasks is asked for; it must be at least 1")
    tasks: list[Task] = []
    places: dict[str, str] = {}
    for file in _files(path):
        for place, task in _tasks(file, _stem(file, path)):
            if task.name in places:
                raise DatasetError(f"{place}: its name {task.name!r} is that of {places[task.name]}; names are unique")
            places[task.name] = place
            tasks.append(task)
    if sample is None or sample >= len(tasks):
        return tasks
    return [tasks[i] for i in sorted(random.Random(seed).sample(range(len(tasks)), sample))]


def schema_prompt(schema: dict[str, Json]) -> str:
    """A request for an instance, with the schema itself, or with an outline of it where that would be too long."""
    whole = f"{_INSTRUCTION}:\n{msgspec.json.encode(schema).decode()}"
    if len(whole) <= _MAX_PROMPT_CHARS:
        return whole
    prompt = f"{_INSTRUCTION}, here in outline:"
    for line in _outline(schema):
        if len(prompt) + 1 + len(line) > _MAX_PROMPT_CHARS:
            break
        prompt += "\n" + line
    return prompt


def _outline(schema: dict[str, Json]) -> Iterator[str]:
    """Titles, descriptions and keys by their places, outer ones first."""
    waiting: deque[tuple[str, Json]] = deque([("the document", schema)])
    while waiting:
        place, each = waiting.popleft()
        if not isinstance(each, dict):
            continue
        for keyword in ("title", "description"):
            if isinstance(each.get(keyword), str):
                yield f"{place}, {keyword}: {' '.join(each[keyword].split())[:_MAX_DESCRIPTION_CHARS]}"
        properties = each.get("properties")
        if isinstance(properties, dict) and properties:
            yield f"{place}, keys: {', '.join(properties)}"
            waiting.extend(properties.items())
        if "items" in each:
            waiting.append((f"items of {place}", each["items"]))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DatasetError(f"{path} does not exist; expected a file of JSON or JSON lines, or a folder of such files")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(_ENDINGS) and file.is_file())
    if not files:
        raise DatasetError(f"{path} holds no file that ends in {', '.join(_ENDINGS)}")
    return files


def _stem(file: Path, root: Path) -> str:
    """What the tasks without a name of their own are called after."""
    stem = file.name if file == root else file.relative_to(root).as_posix()
    for ending in _ENDINGS:
        stem = stem.removesuffix(ending)
    return stem


def _tasks(file: Path, stem: str) -> Iterator[tuple[str, Task]]:
    """Each with its place, for messages."""
    kind: _Kind | None = None
    for place, number, text in _records(file):
        try:
            record = _parsed(text)
            kind = kind or _kind(record)
            task = msgspec.convert(record, type=kind).task(stem if number is None else f"{stem}-{number}")
            # Half a surrogate pair can be written in JSON, but it is no text that a model could read.
            msgspec.json.encode(task)
        except (ValueError, RecursionError) as error:
            label = "record" if kind is None else _LABELS[kind]
            raise DatasetError(f"{place}: this is no {label}: {error}; {_EXPECTED}") from error
        yield place, task
    if kind is None:
        raise DatasetError(f"{file} holds no records; {_EXPECTED}")


def _records(file: Path) -> Iterator[tuple[str, int | None, Json | bytes]]:
    """Place, number and record: those of one document, an object or an array, or the text of one a line."""
    try:
        content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    except (OSError, lzma.LZMAError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error
    try:
        document = _parsed(content)
    except (ValueError, RecursionError):
        # Not by splitlines, which also parts lines at characters that JSON strings may hold.
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip():
                yield f"{file}, line {number}", number, line
        return
    if isinstance(document, list):
        for number, record in enumerate(document, 1):
            yield f"{file}, record {number}", number, record
    else:
        yield f"{file}", None, document


def _parsed(text: Json | bytes) -> Json:
    """By json, not msgspec: labelled instances hold half surrogate pairs, and nobody here reads those."""
    return json.loads(text, parse_constant=_refuse_constant) if isinstance(text, bytes) else text


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")


def _kind(record: Json) -> _Kind:
    """Raises ValueError for what is of none."""
    if not isinstance(record, dict):
        raise ValueError("it is no object")  # noqa: TRY004, a fault of the data, not of a call
    if "turns" in record:
        return _Question
    if "prompt" in record or "messages" in record:
        return _Prompt
    if "schema" in record and "tests" in record:
        return _LabelledSchema
    keys = ", ".join(record) or "none"
    raise ValueError(f"its keys are {keys[:200]}")
