"""Datasets are read by what they hold, drawn by the seed, and refused with the file, the line and what was expected."""

import json
import lzma

import pytest

from specdec.evals.dataset import DatasetError, load_dataset, schema_prompt
from specdec.evals.workload import Message, Task, load_workload

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
PROMPTS = [
    {"prompt": "How old are you?", "schema": SCHEMA, "category": "ages", "name": "age"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello\u2028there"}]},
    {"prompt": "Return the file.", "prediction": "x = 1\n"},
]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a letter.", "Shorten it."], "reference": ["Dear"]},
    {"question_id": 82, "category": "rag", "turns": ["Who was it?"]},
]
LABELLED = {"name": "Github_easy---o1", "schema": SCHEMA, "tests": [{"valid": False, "data": {"age": "\ud800"}}]}


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def load(path, sample=None, seed=0):
    return load_dataset(path, sample=sample, seed=seed)


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="data.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


def test_prompts_keep_what_they_say_and_get_names_for_what_they_leave_out(write):
    assert load(write(lines(PROMPTS))) == [
        Task(name="age", category="ages", messages=(Message("user", "How old are you?"),), schema=SCHEMA),
        Task(
            name="data-2",
            category="prompt",
            messages=(Message("system", "Be brief."), Message("user", "Hello\u2028there")),
        ),
        Task(name="data-3", category="prompt", messages=(Message("user", "Return the file."),), prediction="x = 1\n"),
    ]


def test_a_shipped_workload_is_a_dataset(write):
    tasks = load_workload("free_text")
    fields = ("name", "category", "prediction")
    records = [
        {name: getattr(task, name) for name in fields if getattr(task, name)} | {"messages": task.chat()}
        for task in tasks
    ]
    assert load(write(lines(records))) == tasks


def test_a_question_asks_its_first_turn(write):
    first, second = load(write(lines(QUESTIONS)))
    assert first == Task(name="question-81", category="writing", messages=(Message("user", "Write a letter."),))
    assert (second.name, second.category) == ("question-82", "rag")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", lines([LABELLED])),
        ("a.json", json.dumps(LABELLED, indent=2)),
        ("a.json", json.dumps([LABELLED], indent=2)),
        ("a.jsonl.xz", lzma.compress(lines([LABELLED]).encode())),
        ("folder/a.json", json.dumps(LABELLED)),
    ],
)
def test_a_labelled_schema_is_asked_for_in_any_wrapping(write, tmp_path, name, text):
    path = write(text, name)
    (task,) = load(tmp_path / "folder" if name.startswith("folder") else path)
    assert (task.name, task.category, task.schema) == ("Github_easy---o1", "schema", SCHEMA)
    (message,) = task.messages
    assert message.role == "user"
    assert json.loads(message.content.split("\n", 1)[1]) == SCHEMA


def test_a_folder_is_read_in_order_and_its_tasks_are_called_after_their_files(write, tmp_path):
    unnamed = {name: LABELLED[name] for name in ("schema", "tests")}
    write(json.dumps(unnamed), "folder/b.json")
    write(lines([unnamed, unnamed]), "folder/a.jsonl")
    write("no JSON", "folder/README.md")
    assert [task.name for task in load(tmp_path / "folder")] == ["a-1", "a-2", "b"]


@pytest.mark.parametrize(("schema", "taken"), [(True, {}), (False, {"not": {}})])
def test_a_boolean_schema_becomes_the_object_that_means_the_same(write, schema, taken):
    (task,) = load(write(lines([LABELLED | {"schema": schema}])))
    assert task.schema == taken


def test_a_long_schema_is_asked_for_in_outline_outer_keys_first():
    inner = {f"inner_{i}": {"type": "string", "description": "word " * 40} for i in range(40)}
    schema = {
        "title": "A parcel",
        "properties": {
            "first": {"type": "object", "properties": inner},
            "last": {"description": "many\nthings", "items": {"properties": {"thing": {}}}},
            "truth": True,
        },
    }
    prompt = schema_prompt(schema)
    assert prompt == schema_prompt(schema)
    assert len(prompt) <= 2400
    shown = prompt.split("\n")
    assert shown[1:3] == ["the document, title: A parcel", "the document, keys: first, last, truth"]
    assert shown.index("last, description: many things") < shown.index("inner_0, description: " + "word " * 39 + "word")
    short = {"title": "T", "items": {"properties": {"thing": {}}}, "enum": ["x" * 2400]}
    assert schema_prompt(short).split("\n")[1:] == ["the document, title: T", "items of the document, keys: thing"]
    assert len(schema_prompt({"enum": ["x" * 5000]})) < 200


def test_a_sample_depends_on_the_seed_alone_and_keeps_the_order(write):
    path = write(lines({"prompt": f"Count to {i}."} for i in range(50)))
    everything = load(path)
    drawn = load(path, sample=9, seed=4)
    assert drawn == load(path, sample=9, seed=4)
    assert drawn != load(path, sample=9, seed=5)
    assert drawn == [task for task in everything if task in drawn]
    assert len(drawn) == 9
    assert load(path, sample=50) == load(path, sample=51) == everything


PROMPT = '{"prompt": "a"}\n'
FAULTS = {
    "no JSON": (PROMPT + "{prompt: b}\n", "line 2: this is no prompt"),
    "invalid UTF-8": (PROMPT.encode() + b'{"prompt": "\xff"}\n', "line 2: this is no prompt"),
    "half a surrogate pair": (
        PROMPT + '{"prompt": "\\ud800"}',
        "line 2: this is no prompt: 'utf-8' codec can't encode",
    ),
    "no number": (PROMPT + '{"prompt": "a", "schema": {"const": NaN}}', "NaN is no JSON"),
    "an array in a line": (PROMPT + "[1]\n", "line 2: this is no prompt: Expected `object`, got `array`"),
    "an array of numbers": ("[1]", "record 1: this is no record: it is no object"),
    "a number": ("7", "is no record: it is no object"),
    "unknown keys": ('{"promt": "a", "id": 1}\n', "data.jsonl: this is no record: its keys are promt, id"),
    "no keys": ("{}", "its keys are none"),
    "another unknown key": (PROMPT + '{"prompt": "b", "schmea": {}}\n', "unknown field `schmea`"),
    "both": ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', 'either "prompt" or "messages"'),
    "neither": (PROMPT + '{"schema": {}}', 'line 2: this is no prompt: it needs either "prompt" or "messages"'),
    "an empty prompt": ('{"prompt": ""}', "length >= 1 - at `$.prompt`"),
    "no messages": ('{"messages": []}', "length >= 1 - at `$.messages`"),
    "an unknown role": ('{"messages": [{"role": "tool", "content": "b"}]}', "Invalid enum value 'tool'"),
    "a schema that is text": ('{"prompt": "a", "schema": "{}"}', "at `$.schema`"),
    "no turns": ('{"question_id": 1, "category": "qa", "turns": []}', "this is no Spec-Bench question"),
    "turns that are text": ('{"question_id": 1, "category": "qa", "turns": "a"}', "at `$.turns`"),
    "no category": ('{"question_id": 1, "turns": ["a"]}', "missing required field `category`"),
    "a schema that is a number": ('{"schema": 1, "tests": []}', "this is no MaskBench schema"),
    "kinds that differ": (lines([QUESTIONS[0], PROMPTS[0]]), "line 2: this is no Spec-Bench question"),
    "a name twice": (lines([QUESTIONS[0], QUESTIONS[0]]), "line 2: its name 'question-81' is that of"),
    "JSON too deep": (PROMPT + '{"prompt": ' + "[" * 100_000, "line 2: this is no prompt"),
    "nothing": ("", "holds no records"),
    "an empty array": ("[]", "holds no records"),
    "blank lines": ("\n \n", "holds no records"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_file_and_line(write, fault):
    text, message = FAULTS[fault]
    path = write(text)
    with pytest.raises(DatasetError) as raised:
        load(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    if fault != "a name twice":
        assert "expected records of one kind" in str(raised.value)


def test_a_path_that_holds_no_dataset_is_refused(write, tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        load(tmp_path / "absent.jsonl")
    with pytest.raises(DatasetError, match=r"no file that ends in \.jsonl\.xz"):
        load(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        load(write("no archive", "data.jsonl.xz"))


@pytest.mark.parametrize("sample", [0, -1])
def test_a_sample_of_nothing_is_refused(write, sample):
    with pytest.raises(DatasetError, match=f"a sample of {sample} tasks"):
        load(write(PROMPT), sample=sample)
