"""Tasks from a user's own file: prompts, Spec-Bench's questions, or schemas with a prompt made from each."""

from __future__ import annotations

import itertools
import json
import lzma
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from specdec.errors import ConfigError
from specdec.evals.workload import Task

_MAX_SCHEMA_CHARS: Final = 2000
"""Of a schema in its prompt; the names of its properties stand for a longer one."""
_MAX_NAMES: Final = 60
_KINDS: Final = (
    '{"prompt": ...} or {"messages": [...]} with an optional "schema"; {"question_id", "category", "turns"} as in '
    'Spec-Bench; or {"name", "schema"} as in MaskBench'
)


def load_dataset(path: Path, *, sample: int | None = None, seed: int = 0) -> list[Task]:
    """The tasks of a file of JSON lines, plain or .xz, or so many of them drawn by the seed, in the file's order.

    What a line is shows by its keys. Raises ConfigError that names the line.
    """
    tasks = list(_tasks(path))
    if not tasks:
        raise ConfigError(f"{path} holds no tasks", flag="--dataset")
    if sample is not None and sample < len(tasks):
        chosen = sorted(random.Random(seed).sample(range(len(tasks)), sample))
        tasks = [tasks[i] for i in chosen]
    return tasks


def _tasks(path: Path) -> Iterator[Task]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield _task(json.loads(line), number)
                except (ValueError, TypeError, msgspec.ValidationError) as error:
                    raise ConfigError(
                        f"{path}, line {number}, is no task: {error}. A line is {_KINDS}", flag="--dataset"
                    ) from error
    except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", flag="--dataset") from error


def _task(record: object, number: int) -> Task:
    """Raises ValueError or TypeError, and msgspec's ValidationError for a field of another type."""
    if not isinstance(record, Mapping):
        raise TypeError(f"it is {type(record).__name__}, not an object")
    if "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not turns:
            raise ValueError("turns is not a list with at least one turn")
        fields: dict[str, Any] = {
            "name": f"question-{record.get('question_id', number)}",
            "messages": [{"role": "user", "content": turns[0]}],
        }
    elif "messages" in record:
        fields = {"name": f"line-{number}", "messages": record["messages"]}
    elif "prompt" in record:
        fields = {"name": f"line-{number}", "messages": [{"role": "user", "content": record["prompt"]}]}
    elif "schema" in record:
        fields = {
            "name": f"line-{number}",
            "messages": [{"role": "user", "content": prompt_of_schema(record["schema"])}],
            "category": "schemas",
        }
    else:
        raise ValueError(f"it has the keys {', '.join(map(str, record)) or '(none)'}")
    for name in ("name", "category", "schema", "prediction"):
        if record.get(name) is not None:
            fields[name] = record[name]
    if isinstance(fields.get("schema"), bool):
        fields["schema"] = {} if fields["schema"] else {"not": {}}
    fields.setdefault("category", "tasks")
    task = msgspec.convert(fields, Task)
    if not task.messages:
        raise ValueError("messages is empty")
    return task


def prompt_of_schema(schema: object) -> str:
    """A request for an instance, made from nothing but the schema: the schema itself, or the names in a long one."""
    asked = "Write one JSON document that satisfies this JSON Schema. Answer with the JSON only, on one line."
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) <= _MAX_SCHEMA_CHARS:
        return f"{asked}\n\n{text}"
    title = (
        next((str(schema[key]) for key in ("title", "description") if key in schema), "a document")
        if isinstance(schema, Mapping)
        else "a document"
    )
    names = list(dict.fromkeys(itertools.islice(_property_names(schema), _MAX_NAMES)))
    return (
        "Write one JSON document as described. Answer with the JSON only, on one line.\n\n"
        f"{title[:_MAX_SCHEMA_CHARS]}\n\nIts properties, outer ones first: {', '.join(names)}"
    )


def _property_names(schema: object) -> Iterator[str]:
    """Breadth first, in the schema's order."""
    waiting = [schema]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Mapping):
            declared = node.get("properties")
            if isinstance(declared, Mapping):
                yield from map(str, declared)
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
