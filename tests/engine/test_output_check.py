"""check_outputs: a wrong answer is its own request's error, and no check holds anything else up."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Callable

import pytest

from specdec import (
    AsyncEngine,
    Engine,
    EngineConfig,
    EngineError,
    FinishReason,
    GenerationError,
    JsonSchema,
    Request,
    SamplingParams,
)

pytestmark = pytest.mark.filterwarnings("error")
BRIEF_S = 2.0
WORD = JsonSchema(schema='{"enum":["yes","no"]}')
# The compiler takes the one text; Python's re tries 2**40 ways to read it before it matches.
SLOW = JsonSchema(schema=json.dumps({"const": "a" * 40, "pattern": "^(?:(?:a+)+b|a*)$"}))


@pytest.fixture(autouse=True)
def patient_checks(monkeypatch) -> None:
    """No check that ends by itself runs out of its time on a busy machine."""
    monkeypatch.setattr("specdec.output_check.CHECK_SECONDS", 60.0)


@pytest.fixture
def brief_checks(monkeypatch, patient_checks) -> None:
    """For those that do not end."""
    monkeypatch.setattr("specdec.output_check.CHECK_SECONDS", BRIEF_S)


@pytest.fixture(scope="module")
def make_engine(tiny_model_folder) -> Callable[..., Engine]:
    def make(**fields: object) -> Engine:
        settings = {"max_model_len": 256, "num_kv_blocks": 200, "check_outputs": True, "num_compile_workers": 0}
        settings |= fields
        return Engine(EngineConfig(model=str(tiny_model_folder), **settings))

    return make


@pytest.fixture(scope="module")
def engine(make_engine) -> Engine:
    return make_engine()


@pytest.fixture
def miscompiled(make_engine) -> Engine:
    """An engine whose compiler takes WORD for another schema."""
    engine = make_engine()
    compile_rightly = engine._compiler.compile

    def compile_wrongly(constraint: object, interest: object) -> object:
        return compile_rightly(JsonSchema(schema='{"const":"maybe"}') if constraint == WORD else constraint, interest)

    engine._compiler.compile = compile_wrongly
    return engine


def request(engine: Engine, request_id: str, constraint: object = None, **params: object) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(engine.tokenizer.encode("hello there")),
        sampling_params=SamplingParams(**{"max_tokens": 60, "seed": 1, **params}),
        constraint=constraint,
    )


def run(engine: Engine) -> dict[tuple[str, int], list]:
    deltas: dict[tuple[str, int], list] = {}
    while engine.has_unfinished_requests():
        for delta in engine.step():
            deltas.setdefault((delta.request_id, delta.choice_index), []).append(delta)
    return deltas


def test_right_answers_are_checked_and_handed_out(engine: Engine) -> None:
    before = engine.stats()
    engine.add_request(request(engine, "word", WORD, n=3))
    engine.add_request(request(engine, "free", max_tokens=5))
    deltas = run(engine)
    for index in range(3):
        assert json.loads("".join(delta.text for delta in deltas["word", index])) in {"yes", "no"}
        assert deltas["word", index][-1].finish_reason is FinishReason.STOP
    assert deltas["free", 0][-1].finish_reason is FinishReason.LENGTH
    after = engine.stats()
    assert after.num_outputs_checked - before.num_outputs_checked == 3
    assert after.num_output_check_failures == before.num_output_check_failures
    assert after.num_outputs_not_checked == before.num_outputs_not_checked


def test_without_the_flag_nothing_is_checked(make_engine) -> None:
    engine = make_engine(check_outputs=False)
    assert not EngineConfig().check_outputs
    engine.generate("a", SamplingParams(max_tokens=60), output_type=WORD)
    assert engine.stats().num_outputs_checked == 0


def test_a_wrong_answer_is_an_error_of_its_request_alone(miscompiled: Engine, caplog) -> None:
    engine = miscompiled
    engine.add_request(request(engine, "wrong", WORD))
    engine.add_request(request(engine, "right", JsonSchema(schema='{"const":1}')))
    engine.add_request(request(engine, "free", max_tokens=5))
    with caplog.at_level(logging.ERROR, logger="specdec"):
        deltas = run(engine)
    last = deltas["wrong", 0][-1]
    assert last.finish_reason is FinishReason.ERROR
    assert "does not satisfy its constraint" in last.error
    assert "'maybe'" in last.error
    assert deltas["right", 0][-1].finish_reason is FinishReason.STOP
    assert deltas["free", 0][-1].finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
    stats = engine.stats()
    assert (stats.num_outputs_checked, stats.num_output_check_failures) == (2, 1)
    assert stats.num_kv_blocks_in_use == 0
    [record] = caplog.records
    assert json.dumps(WORD.schema) in record.getMessage()
    engine.add_request(request(engine, "wrong", JsonSchema(schema='{"const":1}')))
    assert run(engine)["wrong", 0][-1].finish_reason is FinishReason.STOP


def test_what_is_logged_and_said_is_bounded(make_engine, caplog) -> None:
    engine = make_engine(max_model_len=2048)
    compile_rightly = engine._compiler.compile
    wrong = JsonSchema(schema=json.dumps({"const": "b", "description": "x" * 50_000}))
    engine._compiler.compile = lambda constraint, interest: compile_rightly(
        JsonSchema(schema=json.dumps({"const": "a" * 900})) if constraint == wrong else constraint, interest
    )
    with caplog.at_level(logging.ERROR, logger="specdec"), pytest.raises(GenerationError) as failed:
        engine.generate("a", SamplingParams(max_tokens=1000), output_type=wrong)
    assert len(str(failed.value)) < 1000
    assert len(caplog.records[0].getMessage()) < 5000


def test_python_users_get_an_exception_that_holds_the_other_answers(miscompiled: Engine) -> None:
    engine = miscompiled
    with pytest.raises(GenerationError, match="'maybe'") as failed:
        engine.generate(["a", "b"], SamplingParams(max_tokens=60), output_type=WORD)
    assert isinstance(failed.value, EngineError)
    assert [output.choices[0].finish_reason for output in failed.value.outputs] == [FinishReason.ERROR] * 2
    assert not engine.has_unfinished_requests()
    [output] = engine.generate("a", SamplingParams(max_tokens=60), output_type={"const": 1})
    assert output.text == "1"


def test_a_check_that_cannot_be_made_is_no_failure_and_counted(engine: Engine, caplog) -> None:
    letters = JsonSchema(schema=json.dumps({"type": "string", "pattern": "^\\p{Lu}$"}))
    before = engine.stats()
    with caplog.at_level(logging.WARNING, logger="specdec"):
        [output] = engine.generate("a", SamplingParams(max_tokens=60), output_type=letters)
    assert output.choices[0].finish_reason is FinishReason.STOP
    after = engine.stats()
    assert after.num_outputs_not_checked - before.num_outputs_not_checked == 1
    assert after.num_output_check_failures == before.num_output_check_failures
    assert "Lu" in caplog.records[0].getMessage()


def test_a_check_without_end_delays_one_delta_and_nothing_else(make_engine, brief_checks, monkeypatch, caplog) -> None:
    engine = make_engine()
    engine.generate("a", SamplingParams(max_tokens=60), output_type=WORD)
    begin = time.monotonic()
    engine.add_request(request(engine, "slow", SLOW, temperature=0.0))
    while len(engine.scheduler.running) + len(engine.scheduler.waiting):
        engine.step()
    assert engine.has_unfinished_requests()
    engine.add_request(request(engine, "free", max_tokens=20, ignore_eos=True))
    finished: dict[str, FinishReason] = {}
    with caplog.at_level(logging.WARNING, logger="specdec"):
        while engine.has_unfinished_requests():
            for delta in engine.step():
                if delta.finish_reason is not None:
                    finished[delta.request_id] = delta.finish_reason
    assert finished == {"free": FinishReason.LENGTH, "slow": FinishReason.STOP}
    assert list(finished) == ["free", "slow"], "no step waited for the check"
    assert BRIEF_S <= time.monotonic() - begin < BRIEF_S + 60
    assert engine.stats().num_outputs_not_checked == 1
    assert "more than" in caplog.text
    # The same constraint is not tried again, however long it might take.
    monkeypatch.setattr("specdec.output_check.CHECK_SECONDS", 600.0)
    begin = time.monotonic()
    [output] = engine.generate("a", SamplingParams(max_tokens=60), output_type=SLOW)
    assert json.loads(output.text) == "a" * 40
    assert time.monotonic() - begin < 600
    assert engine.stats().num_outputs_not_checked == 2
    assert engine.generate("a", SamplingParams(max_tokens=60), output_type=WORD)
    assert engine.stats().num_outputs_checked == 2


def test_an_abort_drops_what_is_held_back_and_frees_the_id(engine: Engine, brief_checks) -> None:
    num_not_checked = engine.stats().num_outputs_not_checked
    again = JsonSchema(schema=json.dumps({"const": "a" * 41, "pattern": "^(?:(?:a+)+b|a*)$"}))
    engine.add_request(request(engine, "slow", again))
    while engine.scheduler.has_unfinished:
        engine.step()
    assert engine.has_unfinished_requests()
    engine.abort_request("slow")
    assert not engine.has_unfinished_requests()
    engine.add_request(request(engine, "slow", WORD))
    deltas = run(engine)
    assert json.loads("".join(delta.text for delta in deltas["slow", 0])) in {"yes", "no"}
    assert engine.stats().num_outputs_not_checked >= num_not_checked + 1


async def test_streams_go_on_while_a_check_takes_its_time(make_engine, brief_checks) -> None:
    engine = AsyncEngine(make_engine())
    await engine.start()
    slow = asyncio.create_task(_last(engine, request(engine._engine, "slow", SLOW)))
    words = [await _last(engine, request(engine._engine, f"free{i}", max_tokens=3)) for i in range(3)]
    assert all(word.finish_reason is not None for word in words)
    assert not slow.done()
    async with asyncio.timeout(60):
        assert (await slow).finish_reason is FinishReason.STOP
    assert engine.num_in_flight == 0
    await engine.close()


async def _last(engine: AsyncEngine, request: Request):
    last = None
    async for delta in engine.generate(request):
        last = delta
    return last


def test_the_process_goes_with_its_engine(make_engine) -> None:
    engine = make_engine()
    engine.generate("a", SamplingParams(max_tokens=60), output_type=WORD)
    checker = engine._checker
    thread = checker._thread
    assert thread.is_alive()
    del engine, checker
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
