"""Tasks from files: every kind of line, samples that are the same again, and lines that are no task."""

import json
import lzma

import pytest

from specdec.errors import ConfigError
from specdec.evals.dataset import load_dataset, prompt_of_schema

SCHEMA = {"title": "A person", "properties": {"name": {"type": "string"}, "home": {"properties": {"city": {}}}}}


@pytest.fixture
def dataset(tmp_path):
    def write(*records, name="tasks.jsonl"):
        path = tmp_path / name
        lines = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)
        path.write_bytes(lzma.compress(lines.encode()) if name.endswith(".xz") else lines.encode())
        return path

    return write


def test_a_prompt_is_a_users_message(dataset):
    [task] = load_dataset(dataset({"prompt": "hello", "schema": SCHEMA, "category": "c", "prediction": "hi"}))
    assert [(m.role, m.content) for m in task.messages] == [("user", "hello")]
    assert (task.name, task.category, task.schema, task.prediction) == ("line-1", "c", SCHEMA, "hi")


def test_messages_are_taken_as_they_are(dataset):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    [task] = load_dataset(dataset({"messages": messages, "name": "mine"}))
    assert task.chat() == messages
    assert (task.name, task.category, task.schema) == ("mine", "tasks", None)


def test_a_question_of_spec_bench_is_its_first_turn(dataset):
    [task] = load_dataset(dataset({"question_id": 81, "category": "writing", "turns": ["Compose.", "Rewrite."]}))
    assert (task.name, task.category, task.messages[0].content) == ("question-81", "writing", "Compose.")


def test_a_schema_makes_its_own_prompt(dataset):
    record = {"name": "person", "schema": SCHEMA, "tests": [{"valid": True, "data": {}}]}
    for name in ("s.jsonl", "s.jsonl.xz"):
        [task] = load_dataset(dataset(record, name=name))
        assert (task.name, task.category, task.schema) == ("person", "schemas", SCHEMA)
        assert json.dumps(SCHEMA) in task.messages[0].content


def test_the_prompt_of_a_long_schema_names_its_properties():
    long = SCHEMA | {"$comment": "x" * 5000}
    prompt = prompt_of_schema(long)
    assert len(prompt) < 1000
    assert "A person" in prompt
    assert "name, home, city" in prompt


def test_a_schema_that_is_a_boolean_is_one(dataset):
    tasks = load_dataset(dataset({"schema": True}, {"schema": False}))
    assert [task.schema for task in tasks] == [{}, {"not": {}}]


def test_a_sample_is_the_same_again_and_in_the_files_order(dataset):
    path = dataset(*({"prompt": str(i)} for i in range(50)), "")
    assert len(load_dataset(path)) == 50
    one, again, other = (load_dataset(path, sample=10, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    numbers = [int(task.messages[0].content) for task in one]
    assert numbers == sorted(numbers)
    assert len(numbers) == 10
    assert load_dataset(path, sample=99) == load_dataset(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2, is no task: Expecting"),
        ("[1]", "line 2, is no task: it is list, not an object"),
        ('{"text": "x"}', "line 2, is no task: it has the keys text"),
        ("{}", "it has the keys (none)"),
        ('{"prompt": 3}', "Expected `str`, got `int`"),
        ('{"turns": []}', "turns is not a list with at least one turn"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": [{"role": "boss", "content": "x"}]}', "Invalid enum value 'boss'"),
    ],
)
def test_a_line_that_is_no_task_is_named(dataset, line, why):
    with pytest.raises(ConfigError) as refused:
        load_dataset(dataset({"prompt": "x"}, line))
    assert why in str(refused.value)
    assert "as in Spec-Bench" in str(refused.value)
    assert refused.value.flag == "--dataset"


def test_a_file_without_tasks_or_that_is_none_is_refused(dataset, tmp_path):
    with pytest.raises(ConfigError, match="holds no tasks"):
        load_dataset(dataset(""))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_dataset(tmp_path / "nowhere.jsonl")
    torn = tmp_path / "torn.jsonl.xz"
    torn.write_bytes(b"not compressed")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_dataset(torn)
