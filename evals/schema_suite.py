"""SchemaSuite: schemas with labelled instances, from a draft's folder of the official suite or from JSON lines."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

# Schemas and instances are whatever JSON holds.
Json = Any
Format = Literal["assert", "annotation"]

REMOTE_BASE = "http://localhost:1234/"
_DIALECT_OF_FOLDER = {
    "draft3": "http://json-schema.org/draft-03/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


class LabelledInstance(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    data: Json
    is_valid: bool


class SchemaCase(msgspec.Struct, frozen=True, kw_only=True):
    """One schema and its instances."""

    name: str
    group: str | None
    """The file of the official suite, as "format" or "optional/format/date"; None elsewhere."""
    schema: Json
    format: Format
    instances: tuple[LabelledInstance, ...]

    @property
    def refers_to_documents(self) -> bool:
        """Whether the documents of its suite can matter to it."""
        return REMOTE_BASE in json.dumps(self.schema)


class SchemaSuite(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    cases: tuple[SchemaCase, ...]
    documents: dict[str, Json]
    """What references may lead to, by URI."""

    def sampled(self, number: int | None, seed: int) -> SchemaSuite:
        """So many of its cases, in the suite's order; all of them where there are no more, or without a number."""
        if number is None or number >= len(self.cases):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.cases)), number))
        return msgspec.structs.replace(self, cases=tuple(self.cases[i] for i in chosen))


class SuiteError(ValueError):
    """A path that holds no suite; the message says what was expected."""


def load_suite(path: Path) -> SchemaSuite:
    """Raises SuiteError."""
    if path.is_dir() or path.suffix == ".json":
        return _load_official(path)
    if path.name.endswith((".jsonl", ".jsonl.xz")) and path.is_file():
        return SchemaSuite(path=str(path), cases=tuple(_jsonl_cases(path)), documents={})
    raise SuiteError(
        f"{path} is neither a folder of the official JSON Schema test suite, as tests/draft2020-12, nor a file of JSON "
        "lines, as schemas.jsonl or schemas.jsonl.xz"
    )


def _jsonl_cases(path: Path) -> Iterator[SchemaCase]:
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                yield SchemaCase(
                    name=record["name"],
                    group=None,
                    schema=record["schema"],
                    format="assert",
                    instances=tuple(
                        LabelledInstance(name=f"test {i}", data=test["data"], is_valid=test["valid"])
                        for i, test in enumerate(record["tests"])
                    ),
                )
            except (ValueError, LookupError, TypeError) as error:
                raise SuiteError(f"{path}, line {number}, is no {{name, schema, tests}}: {error!r}") from error


def _load_official(path: Path) -> SchemaSuite:
    path = path.resolve()
    draft = next((each for each in (path, *path.parents) if each.name in _DIALECT_OF_FOLDER), None)
    if draft is None:
        raise SuiteError(f"{path} lies in no folder of a draft; those known are {', '.join(_DIALECT_OF_FOLDER)}")
    dialect = _DIALECT_OF_FOLDER[draft.name]
    files = [path] if path.is_file() else sorted(path.rglob("*.json"))
    cases = tuple(case for file in files for case in _official_cases(file, draft, dialect))
    if not cases:
        raise SuiteError(f"{path} holds no test files")
    return SchemaSuite(path=str(path), cases=cases, documents=_remotes(draft.parent.parent / "remotes", dialect))


def _official_cases(file: Path, draft: Path, dialect: str) -> Iterator[SchemaCase]:
    group = file.relative_to(draft).with_suffix("").as_posix()
    try:
        for record in json.loads(file.read_text(encoding="utf-8")):
            schema = _with_dialect(record["schema"], dialect) if draft.name != "draft2020-12" else record["schema"]
            yield SchemaCase(
                name=f"{group}: {record['description']}",
                group=group,
                schema=schema,
                format="assert" if group.startswith("optional/format/") else "annotation",
                instances=tuple(
                    LabelledInstance(name=test["description"], data=test["data"], is_valid=test["valid"])
                    for test in record["tests"]
                ),
            )
    except (ValueError, LookupError, TypeError) as error:
        raise SuiteError(f"{file} is no test file of the official suite: {error!r}") from error


def _remotes(folder: Path, dialect: str) -> dict[str, Json]:
    """The documents that the suite's own runner would serve; one that names no dialect gets its folder's."""
    documents: dict[str, Json] = {}
    for file in sorted(folder.rglob("*.json")):
        place = file.relative_to(folder)
        document = json.loads(file.read_text(encoding="utf-8"))
        documents[REMOTE_BASE + place.as_posix()] = _with_dialect(
            document, _DIALECT_OF_FOLDER.get(place.parts[0], dialect)
        )
    return documents


def _with_dialect(schema: Json, dialect: str) -> Json:
    return {"$schema": dialect, **schema} if isinstance(schema, dict) and "$schema" not in schema else schema
