"""The shipped workloads: enough tasks, schemas that are schemas, and only what the grammars enforce."""

import json

import jsonschema
import pytest

from specdec.evals.workload import load_workload, spread_by_length, with_shared_prefixes
from specdec.grammars import GrammarCompiler, Vocabulary
from specdec.tokenizer import Tokenizer


def test_there_are_eighty_structured_tasks_over_forty_schemas():
    tasks = load_workload("structured")
    assert len(tasks) >= 80
    assert len({json.dumps(task.schema, sort_keys=True) for task in tasks}) >= 40
    assert {task.category for task in tasks} >= {
        *("extraction", "classification", "function_arguments", "nested_lists", "long_enums", "configs"),
    }


def test_there_are_sixty_free_text_tasks_of_every_category():
    tasks = load_workload("free_text")
    assert len(tasks) >= 60
    assert all(task.schema is None for task in tasks)
    assert {task.category for task in tasks} == {"chat", "summarising", "code_edit", "translation"}


def test_what_an_edit_is_predicted_by_is_what_it_edits():
    predicted = [task for task in load_workload("free_text") if task.prediction is not None]
    assert len(predicted) >= 10
    for task in predicted:
        assert task.category == "code_edit"
        assert task.prediction in task.messages[-1].content


@pytest.mark.model
@pytest.mark.parametrize("name", ["structured", "free_text"])
def test_every_task_leaves_room_for_its_answer(default_model_folder, name):
    tokenizer = Tokenizer.from_folder(default_model_folder)
    assert max(len(tokenizer.encode_chat(task.chat())) for task in load_workload(name)) < 1500


@pytest.mark.parametrize("name", ["structured", "free_text"])
def test_names_are_unique(name):
    names = [task.name for task in load_workload(name)]
    assert len(set(names)) == len(names)


def test_every_schema_is_well_formed_and_enforceable():
    compiler = GrammarCompiler(Vocabulary([*(bytes([byte]) for byte in range(256)), None], [256]))
    for task in load_workload("structured"):
        jsonschema.Draft202012Validator.check_schema(task.schema)
        assert compiler.compile_json_schema(task.schema_text).initial_state is not None


def test_a_selection_spans_the_lengths():
    tasks = load_workload("free_text")
    lengths = [task.num_chars for task in spread_by_length(tasks, 5)]
    everything = sorted(task.num_chars for task in tasks)
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (everything[0], everything[-1])
    assert spread_by_length(tasks, 1) == spread_by_length(tasks, 99)[:1]


def test_a_second_turn_begins_with_the_whole_first_one():
    tasks = load_workload("structured")[:4]
    mixed = with_shared_prefixes(tasks)
    again = [task for task in mixed if task.name.endswith("-again")]
    assert len(again) == 2
    by_name = {task.name: task for task in mixed}
    for task in again:
        first = by_name[task.name.removesuffix("-again")]
        assert task.messages[: len(first.messages)] == first.messages
        assert task.schema == first.schema
