"""The shipped workloads: enough tasks, schemas that are schemas, and only what the grammars enforce."""

import json
from collections import Counter

import jsonschema
import pytest

from specdec.evals.workload import load_workload, spread_by_length, with_shared_prefixes
from specdec.grammars import GrammarCompiler, Vocabulary
from specdec.tokenizer import Tokenizer


def test_there_are_eighty_structured_tasks_over_forty_schemas_of_every_category():
    tasks = load_workload("structured")
    assert len(tasks) >= 80
    assert len({json.dumps(task.schema, sort_keys=True) for task in tasks}) >= 40
    counts = Counter(task.category for task in tasks)
    assert set(counts) == {
        "extraction",
        "classification",
        "function_arguments",
        "nested_lists",
        "long_enums",
        "configs",
    }
    assert min(counts.values()) >= 10


def test_there_are_sixty_free_text_tasks_of_every_category():
    tasks = load_workload("free_text")
    assert len(tasks) >= 60
    assert all(task.schema is None for task in tasks)
    counts = Counter(task.category for task in tasks)
    assert set(counts) == {"chat", "summarising", "code_edit", "translation"}
    assert min(counts.values()) >= 12


def test_a_code_edit_predicts_the_file_that_its_prompt_shows():
    for task in load_workload("free_text"):
        if task.category != "code_edit":
            assert task.prediction is None
            continue
        assert task.prediction in task.messages[-1].content
        assert 20 <= task.prediction.count("\n") <= 60
        assert task.prediction.endswith("\n")


@pytest.mark.parametrize("name", ["structured", "free_text"])
def test_names_are_unique(name):
    names = [task.name for task in load_workload(name)]
    assert len(set(names)) == len(names)


def test_every_schema_is_well_formed_and_enforceable():
    compiler = GrammarCompiler(Vocabulary([*(bytes([byte]) for byte in range(256)), None], [256]))
    for task in load_workload("structured"):
        jsonschema.Draft202012Validator.check_schema(task.schema)
        assert compiler.compile_json_schema(task.schema_text).initial_state is not None


@pytest.mark.model
def test_every_task_leaves_half_of_a_small_context_for_its_answer(default_model_folder):
    tokenizer = Tokenizer.from_folder(default_model_folder)
    compiler = GrammarCompiler(Vocabulary(tokenizer.token_bytes(), tokenizer.eos_token_ids))
    for task in load_workload("structured") + load_workload("free_text"):
        assert len(tokenizer.encode_chat(task.chat())) <= 900, task.name
        if task.prediction is not None:
            assert len(tokenizer.encode(task.prediction)) <= 1024, task.name
        if task.schema_text is not None:
            assert compiler.compile_json_schema(task.schema_text).minimum_tokens <= 256, task.name


@pytest.mark.parametrize("name", ["structured", "free_text"])
def test_every_conversation_is_short_enough_for_a_small_context(name):
    # Tokenizers make less than a token of two characters of such texts: half of a context of 4096, at the worst.
    assert max(task.num_chars for task in load_workload(name)) <= 4096


@pytest.mark.parametrize("name", ["structured", "free_text"])
def test_every_conversation_ends_with_the_user(name):
    for task in load_workload(name):
        assert task.messages[-1].role == "user", task.name
        assert all(message.content == message.content.strip() != "" for message in task.messages), task.name


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
