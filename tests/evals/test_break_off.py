"""An interrupt ends an eval between two runs, and what was measured is told."""

from __future__ import annotations

import itertools
import json
import signal
import threading

import pytest
from live_server import serving
from typer.testing import CliRunner

from specdec import Engine, EngineConfig
from specdec.evals import acceptance_group, acceptance_served, cli
from specdec.evals.break_off import break_off

ARGUMENTS = ["--repeats", "4", "--max-tokens", "8", "--group", "structured", "--group", "chat", "--spec", "ngram"]


@pytest.fixture
def told():
    return []


def test_the_first_interrupt_asks_and_the_second_ends_as_ever(told):
    before = signal.getsignal(signal.SIGINT)
    with break_off(told.append) as asked:
        assert not asked.is_asked
        assert asked.failures() == []
        signal.raise_signal(signal.SIGINT)
        assert asked.is_asked
        assert len(told) == len(asked.failures()) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_once_it_is_over_an_interrupt_is_what_it_was_before(told):
    with break_off(told.append):
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert told == []


def test_where_no_signals_come_none_are_taken(told):
    before = signal.getsignal(signal.SIGINT)

    def elsewhere():
        with break_off(told.append):
            told.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert told == [before]


@pytest.fixture
def interrupted_after(monkeypatch):
    """A run of an arm, of which the one of this number ends with an interrupt."""

    def patch(owner, number):
        numbers, run = itertools.count(1), owner._run

        def wrapped(*arguments, **options):
            result = run(*arguments, **options)
            if next(numbers) == number:
                signal.raise_signal(signal.SIGINT)
            return result

        monkeypatch.setattr(owner, "_run", wrapped)

    return patch


def acceptance(*arguments):
    finished = CliRunner().invoke(cli.app, ["acceptance", *ARGUMENTS, *arguments, "--json"])
    return finished.exit_code, json.loads(finished.stdout), finished.stderr


# After the untimed run, two runs a round.
@pytest.mark.parametrize(
    ("number", "num_tasks", "rounds"), [(6, "1", [2]), (2, "1", []), (10, "1", [4]), (6, "2", [2]), (6, "3", [2])]
)
def test_whole_rounds_of_an_engine_are_told(number, num_tasks, rounds, interrupted_after, tiny_model_folder):
    interrupted_after(acceptance_group, number)
    arguments = ["--concurrency", "1", "--num-tasks", num_tasks, "--parts", num_tasks]
    exit_code, shown, notes = acceptance("--model", str(tiny_model_folder), *arguments)
    assert exit_code == 1
    assert not shown["passed"]
    (failure,) = shown["failures"]
    assert failure.startswith("interrupted")
    assert "interrupt again" in notes
    assert [len(arm["tokens_per_second"]["values"]) for group in shown["groups"] for arm in group["arms"]] == [
        each for each in rounds for _ in group_arms(shown)
    ]
    # Of more parts than there are rounds some were not answered.
    assert all(group["num_requests"] == min([int(num_tasks), *rounds]) for group in shown["groups"])


def group_arms(shown):
    return [arm["arm"] for arm in shown["groups"][0]["arms"]]


# After an untimed run of each arm.
@pytest.mark.parametrize(("number", "rounds"), [(7, [2]), (1, []), (3, [])])
def test_whole_rounds_of_a_server_are_told(number, rounds, interrupted_after, tiny_model_folder):
    interrupted_after(acceptance_served._Group, number)
    with serving(Engine(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600))) as server:
        exit_code, shown, notes = acceptance("--url", server.url, "--concurrency", "1", "--num-tasks", "1")
    assert exit_code == 1
    (failure,) = shown["failures"]
    assert failure.startswith("interrupted")
    assert "interrupt again" in notes
    assert [len(arm["tokens_per_second"]["values"]) for group in shown["groups"] for arm in group["arms"]] == [
        each for each in rounds for _ in group_arms(shown)
    ]
