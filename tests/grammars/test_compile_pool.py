"""Constraints compiled in processes of their own: the same grammars, and nothing that a constraint does to one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import schemas
from live_server import wait_until
from vocabularies import merged_vocabulary

from specdec.grammars import (
    AfterMarker,
    Choice,
    CompileBusyError,
    CompilePoolError,
    CompilerKilledError,
    Constraint,
    Function,
    GrammarCompiler,
    GrammarError,
    Interest,
    InvalidSchemaError,
    JsonSchema,
    LeftError,
    Limits,
    Regex,
    SchemaOptions,
    TextOrToolCalls,
    ToolCalls,
    compile_pool,
)
from specdec.grammars.compile_pool import CompilePool
from specdec.grammars.errors import CompileResourceError

PATIENT = Limits(
    max_schema_bytes=10**8, max_nodes=10**7, max_goals=10**7, max_refs=10**7, max_properties=10**6,
    max_compile_seconds=300.0,
)  # fmt: skip
TIMEOUT_S = 120.0
"""Against hanging only: a busy machine may take its time."""


def slow_constraint(salt: int = 0) -> JsonSchema:
    """What takes the compiler half a minute, if it may."""
    definitions = {f"d{i}": {"type": "array", "items": {"enum": [i, salt]}, "minItems": i} for i in range(100_000)}
    properties = {name: {"$ref": f"#/$defs/{name}"} for name in definitions}
    return JsonSchema(schema=json.dumps({"properties": properties, "$defs": definitions}))


def quick_constraint(salt: object = 0) -> JsonSchema:
    return JsonSchema(schema=json.dumps({"const": salt}))


@pytest.fixture(scope="module")
def compiler():
    compiler = GrammarCompiler(merged_vocabulary(), num_workers=2)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def patient():
    compiler = GrammarCompiler(merged_vocabulary(), limits=PATIENT, num_workers=1)
    compiler.compile(quick_constraint())
    yield compiler
    compiler.close()


def in_background(compiler: GrammarCompiler, constraint: Constraint, interest: Interest | None = None):
    """(thread, what it got) of a compilation on a thread of its own."""
    got: list[object] = []

    def run() -> None:
        try:
            got.append(compiler.compile(constraint, interest))
        except Exception as error:  # noqa: BLE001, for the test to look at
            got.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, got


def wait_for(thread: threading.Thread) -> None:
    thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "the compilation does not end"


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_busy(pool: CompilePool) -> int:
    """The pid of the worker that is at work: its time counts up."""
    deadline = time.monotonic() + TIMEOUT_S
    seconds_at_first: dict[int, float] = {}
    while time.monotonic() < deadline:
        nursery = pool._nursery
        if nursery is not None and pool.num_running:
            children = Path(f"/proc/{nursery.pid}/task/{nursery.pid}/children").read_text().split()
            for pid in map(int, children):
                # One that was killed may go at any moment.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    seconds = processor_seconds(pid)
                    if seconds > seconds_at_first.setdefault(pid, seconds) + 0.1:
                        return pid
        time.sleep(0.01)
    raise AssertionError("no worker takes the job")


FUNCTION = Function(name="f", parameters={"type": "object", "properties": {"a": {"type": "string", "format": "date"}}})
CONSTRAINTS: list[Constraint] = [
    Regex(pattern=r"[a-z]+@(é|ab){2,3}"),
    Choice(choices=("yes", "no", "né")),
    AfterMarker(marker="</t>", then=JsonSchema(schema='{"type":"object","required":["a"]}')),
    AfterMarker(marker="é", then=Regex(pattern="a+"), optional=True),
    ToolCalls(functions=(FUNCTION,), parallel=True),
    TextOrToolCalls(calls=ToolCalls(functions=(FUNCTION,))),
    JsonSchema(schema='{"type":"array","uniqueItems":true,"items":{"type":"integer"}}'),
    JsonSchema(
        schema='{"properties":{"a":{"type":"string","pattern":"^a+$"},"b":{"type":"number","multipleOf":0.5}},"required":["a","b"]}',
        options=SchemaOptions(whitespace="pretty", property_order="any"),
    ),
    JsonSchema(schema='{"anyOf":[{"type":"string","maxLength":400,"pattern":"^é.*$"},{"type":"string","format":"uuid"}]}'),
    JsonSchema(schema='{"patternProperties":{"^x":{"minimum":1.5},"y$":{"maximum":7}},"minProperties":2}'),
]  # fmt: skip


def assert_same_walks(compiler: GrammarCompiler, reference: GrammarCompiler, constraint: Constraint, seed: int) -> None:
    theirs, ours = compiler.compile(constraint), reference.compile(constraint)
    assert theirs.report == ours.report
    assert theirs.minimum_tokens == ours.minimum_tokens
    rng = random.Random(seed)
    for _ in range(3):
        state, expected = theirs.initial_state, ours.initial_state
        for _ in range(25):
            words = compiler.mask_table.rows[theirs.mask_row(state)]
            assert np.array_equal(words, reference.mask_table.rows[ours.mask_row(expected)])
            theirs_closing, ours_closing = theirs.closing(state), ours.closing(expected)
            assert (theirs_closing and theirs_closing.data) == (ours_closing and ours_closing.data)
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            token_id = int(rng.choice(allowed))
            state, expected = theirs.advance(state, token_id), ours.advance(expected, token_id)
            assert state is not None
            assert expected is not None
            if theirs.is_terminated(state):
                break


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: type(one).__name__)
def test_a_grammar_from_a_worker_is_the_grammar_compiled_here(compiler, constraint) -> None:
    assert_same_walks(compiler, GrammarCompiler(merged_vocabulary()), constraint, 1)


def test_random_schemas_are_compiled_or_refused_alike(compiler) -> None:
    reference = GrammarCompiler(merged_vocabulary())
    num_compiled = 0
    for seed in range(60):
        constraint = JsonSchema(schema=json.dumps(schemas.random_schema(random.Random(seed))))
        try:
            reference.compile(constraint)
        except GrammarError as error:
            expected = error
        else:
            num_compiled += 1
            assert_same_walks(compiler, reference, constraint, seed)
            continue
        with pytest.raises(type(expected)) as refused:
            compiler.compile(constraint)
        assert vars(refused.value) == vars(expected)
    assert num_compiled > 30


def test_what_is_wrong_is_said_again_without_compiling(compiler) -> None:
    constraint = JsonSchema(schema='{"properties":{"a":{"type":"whole"}}}')
    before = compiler.cache_misses
    for _ in range(3):
        with pytest.raises(InvalidSchemaError) as refused:
            compiler.compile(constraint)
        assert refused.value.pointer == "/properties/a/type"
    assert compiler.cache_misses == before + 1


def test_one_compilation_serves_all_that_ask_at_once(patient) -> None:
    before = patient.cache_misses
    interests = [Interest() for _ in range(4)]
    running = [in_background(patient, slow_constraint(1), interest) for interest in interests]
    wait_until_busy(patient._pool)
    assert patient.cache_misses == before + 1
    interests[0].leave()
    interests[1].leave()
    for thread, got in running[1:2]:
        wait_for(thread)
        assert isinstance(got[0], LeftError)
    assert patient._pool.num_killed == 0 or not patient._pool._idle, "two are still waiting"
    for interest in interests[2:]:
        interest.leave()
    for thread, got in running:
        wait_for(thread)
        assert isinstance(got[0], LeftError)
    assert patient.compile(quick_constraint("after")) is not None


def test_a_compilation_ends_when_the_last_that_waits_leaves(patient) -> None:
    pool, interest = patient._pool, Interest()
    before = pool.num_killed
    thread, got = in_background(patient, slow_constraint(2), interest)
    pid = wait_until_busy(pool)
    interest.leave()
    wait_for(thread)
    assert isinstance(got[0], LeftError)
    assert pool.num_killed == before + 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # Whoever asks anew is not given the end of the first.
    assert patient.compile(quick_constraint("anew")) is not None


def test_who_left_before_asking_gets_nothing(patient) -> None:
    interest = Interest()
    interest.leave()
    with pytest.raises(LeftError):
        patient.compile(quick_constraint("left"), interest)
    assert patient.compile(quick_constraint("left")) is not None


def test_who_waits_for_a_worker_can_leave(patient) -> None:
    first, second = Interest(), Interest()
    thread, _ = in_background(patient, slow_constraint(3), first)
    wait_until_busy(patient._pool)
    waiting, got = in_background(patient, quick_constraint("waits"), second)
    while not len(patient._pool._waiting):
        time.sleep(0.01)
    second.leave()
    wait_for(waiting)
    assert isinstance(got[0], LeftError)
    first.leave()
    wait_for(thread)


def test_callers_take_turns_at_the_workers(patient, monkeypatch) -> None:
    pool = patient._pool
    reply, served = pool._reply, []

    def recorded(worker, constraint, job):
        served.append(json.loads(constraint.schema)["const"])
        return reply(worker, constraint, job)

    def num_waiting() -> int:
        with pool._free:
            return sum(1 + len(job.callers) for job in pool._waiting)

    first = Interest("many")
    slow, _ = in_background(patient, slow_constraint(7), first)
    wait_until_busy(pool)
    monkeypatch.setattr(pool, "_reply", recorded)
    threads = [slow]

    def ask(caller: str, name: str) -> None:
        num_before = num_waiting()
        threads.append(in_background(patient, quick_constraint(name), Interest(caller))[0])
        wait_until(lambda: num_waiting() > num_before, f"{name} to wait for its turn")

    for i in range(6):
        ask("many", f"many {i}")
    ask("one", "of one")
    ask("another", "many 4")
    first.leave()
    for thread in threads:
        wait_for(thread)
    assert served == ["many 0", "of one", "many 4", "many 1", "many 2", "many 3", "many 5"]


def test_a_busy_pool_says_so_in_time(patient, monkeypatch) -> None:
    monkeypatch.setattr(compile_pool, "_WAIT_SECONDS", 0.2)
    interest = Interest()
    thread, _ = in_background(patient, slow_constraint(4), interest)
    wait_until_busy(patient._pool)
    with pytest.raises(CompileBusyError, match="busy"):
        patient.compile(quick_constraint("no room"))
    interest.leave()
    wait_for(thread)
    assert patient.compile(quick_constraint("no room")) is not None, "that there was no room is not remembered"


def test_a_compilation_is_killed_at_its_deadline(patient, monkeypatch) -> None:
    monkeypatch.setattr(compile_pool, "_WALL_FACTOR", 1 / 300)
    with pytest.raises(CompileResourceError, match="max_compile_seconds"):
        patient.compile(slow_constraint(5))
    monkeypatch.undo()
    assert patient.compile(quick_constraint("after a deadline")) is not None


def test_a_worker_that_dies_takes_one_compilation_with_it(patient) -> None:
    thread, got = in_background(patient, slow_constraint(6))
    os.kill(wait_until_busy(patient._pool), signal.SIGKILL)
    wait_for(thread)
    assert isinstance(got[0], CompilerKilledError)
    assert patient.compile(quick_constraint("after a death")) is not None


@pytest.mark.parametrize(("number", "error", "match"), [
    (signal.SIGXCPU, CompileResourceError, "max_compile_seconds"), (signal.SIGSEGV, CompilePoolError, "died"),
])  # fmt: skip
def test_how_a_worker_died_says_whose_fault_it_is(patient, number, error, match) -> None:
    thread, got = in_background(patient, slow_constraint(7))
    os.kill(wait_until_busy(patient._pool), number)
    wait_for(thread)
    assert type(got[0]) is error
    assert match in str(got[0])
    assert patient.compile(quick_constraint(f"after {number}")) is not None


def test_processes_that_died_while_idle_are_replaced(patient) -> None:
    pool = patient._pool
    nursery, (worker,) = pool._nursery, pool._idle
    nursery._process.kill()
    nursery._process.wait()
    assert patient.compile(quick_constraint("orphans work")) is not None
    assert pool._nursery is nursery
    os.kill(worker.pid, signal.SIGKILL)
    worker.jobs.poll(TIMEOUT_S)
    assert patient.compile(quick_constraint("after all that")) is not None
    assert pool._nursery is not nursery


def test_memory_is_limited() -> None:
    limits = Limits(
        max_schema_bytes=10**8, max_nodes=10**7, max_goals=10**7, max_refs=10**7, max_properties=10**6,
        max_compile_seconds=60.0, max_compile_bytes=64 * 2**20,
    )  # fmt: skip
    compiler = GrammarCompiler(merged_vocabulary(), limits=limits, num_workers=1)
    with pytest.raises(CompileResourceError, match="max_compile_bytes"):
        compiler.compile(slow_constraint())
    assert compiler.compile(quick_constraint()) is not None
    compiler.close()


def test_processor_time_is_limited() -> None:
    compiler = GrammarCompiler(
        merged_vocabulary(), limits=Limits(max_schema_bytes=10**8, max_nodes=10**7, max_goals=10**7, max_refs=10**7,
                                           max_properties=10**6, max_compile_seconds=0.5), num_workers=1,
    )  # fmt: skip
    with pytest.raises(CompileResourceError, match="max_compile_seconds"):
        compiler.compile(slow_constraint())
    compiler.close()


def test_a_closed_pool_leaves_no_process_and_says_that_it_is_closed() -> None:
    compiler = GrammarCompiler(merged_vocabulary(), num_workers=2)
    compiler.compile(quick_constraint())
    pid = compiler._pool._nursery._process.pid
    compiler.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(CompilePoolError, match="closed"):
        compiler.compile(quick_constraint(1))
    assert compiler.compile(quick_constraint()) is not None, "what was compiled can still be had"


def test_a_pool_that_is_no_longer_used_ends() -> None:
    compiler = GrammarCompiler(merged_vocabulary(), num_workers=1)
    compiler.compile(quick_constraint())
    process = compiler._pool._nursery._process
    del compiler
    assert process.wait(TIMEOUT_S) is not None


def test_a_program_that_ends_while_its_compilers_start_says_nothing() -> None:
    program = """
import time
from specdec.grammars import GrammarCompiler, Vocabulary

vocabulary = Vocabulary([*(bytes([byte]) for byte in range(256)), None], [256])
compiler = GrammarCompiler(vocabulary, num_workers=2)
while compiler._pool._nursery is None:
    time.sleep(0.001)
# A thread waits for the first answer now, which takes longer than this.
time.sleep(0.05)
"""
    command = [sys.executable, "-P", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_an_interrupt_leaves_nobody_waiting(monkeypatch) -> None:
    compiler = GrammarCompiler(merged_vocabulary())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compiler, "_program", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiler.compile(quick_constraint("interrupted"))
    thread, got = in_background(compiler, quick_constraint("interrupted"))
    wait_for(thread)
    assert got[0] is compiler.compile(quick_constraint("interrupted"))
