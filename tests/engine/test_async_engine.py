"""An engine's two handles over a scripted engine: streams, aborts, readers that lag, faults and the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from engine_in_thread import engine_behind_socket
from scripted_engine import ScriptedEngine

from specdec.async_engine import NUM_COMPILE_THREADS, AsyncEngine
from specdec.delta_stream import MAX_WAITING_DELTAS, DeltaStream
from specdec.engine_handle import EngineHandle
from specdec.engine_messages import EngineFaultError
from specdec.errors import EngineClosedError, EngineDeadError, RequestError
from specdec.grammars import JsonSchema
from specdec.request import FinishReason, Request, SamplingParams, TokenDelta, TokenLogprob

pytestmark = pytest.mark.filterwarnings("error")
TIMEOUT_S = 60.0
"""Against hanging only: a busy machine may take its time."""


def request(request_id: str, max_tokens: int | None = 5, n: int = 1, **fields: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens, n=n)
    return Request(request_id=request_id, prompt_token_ids=(1, 2), sampling_params=params, **fields)


async def texts(deltas: AsyncIterator[TokenDelta]) -> dict[int, str]:
    joined: dict[int, str] = {}
    async with asyncio.timeout(TIMEOUT_S):
        async for delta in deltas:
            joined[delta.choice_index] = joined.get(delta.choice_index, "") + delta.text
    return joined


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110, what is waited for happens on another thread
            await asyncio.sleep(0.002)


Handle = Callable[[ScriptedEngine], EngineHandle]


@pytest.fixture(params=[AsyncEngine, engine_behind_socket], ids=["thread", "process"])
def handle(request: pytest.FixtureRequest) -> Handle:
    return request.param


@pytest.fixture
async def scripted(tiny_model_folder: Path) -> ScriptedEngine:
    return ScriptedEngine(model_folder=tiny_model_folder)


@pytest.fixture
async def engine(handle: Handle, scripted: ScriptedEngine) -> AsyncIterator[EngineHandle]:
    engine = handle(scripted)
    await engine.start()
    yield engine
    scripted.is_open.set()
    async with asyncio.timeout(TIMEOUT_S):
        await engine.close()


def expected(num_tokens: int) -> str:
    return "".join(f"{token} " for token in range(num_tokens))


async def test_a_stream_carries_every_choice_to_its_end(engine: EngineHandle) -> None:
    assert await texts(engine.generate(request("a", max_tokens=50, n=3))) == dict.fromkeys(range(3), expected(50))
    assert engine.num_in_flight == 0


async def test_requests_submitted_together_share_a_stream(engine: EngineHandle) -> None:
    stream = await engine.submit(request("a", 3), request("b", 4))
    seen: dict[str, str] = {}
    async for delta in stream:
        seen[delta.request_id] = seen.get(delta.request_id, "") + delta.text
    assert seen == {"a": expected(3), "b": expected(4)}


async def test_many_requests_at_once_each_get_their_own_text(engine: EngineHandle) -> None:
    answers = await asyncio.gather(*(texts(engine.generate(request(f"r{i}", 1 + i % 17))) for i in range(200)))
    assert answers == [{0: expected(1 + i % 17)} for i in range(200)]


async def test_the_thread_of_an_idle_engine_has_what_libraries_make_for_it(
    engine: EngineHandle, scripted: ScriptedEngine
) -> None:
    assert await asyncio.to_thread(scripted.is_warm.wait, TIMEOUT_S)
    assert threading.get_ident() not in scripted.thread_ids
    assert scripted.num_added == scripted.num_steps == 0


async def test_the_engine_is_only_ever_touched_from_one_thread(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    await asyncio.gather(*(texts(engine.generate(request(f"r{i}"))) for i in range(20)))
    assert len(scripted.thread_ids) == 1
    assert threading.get_ident() not in scripted.thread_ids


async def test_an_idle_engine_takes_no_steps_and_is_not_busy(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    await texts(engine.generate(request("a")))
    num_steps = scripted.num_steps
    await until(lambda: engine.busy_seconds() == 0.0)
    await asyncio.sleep(0.05)
    assert scripted.num_steps == num_steps


async def test_a_long_step_shows_as_busy_seconds(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    scripted.is_open.clear()
    stream = await engine.submit(request("a"))
    await until(lambda: engine.busy_seconds() > 0.05)
    scripted.is_open.set()
    await texts(stream)
    await until(lambda: engine.busy_seconds() == 0.0)


@pytest.mark.parametrize("how", ["close", "cancel", "break"])
async def test_leaving_a_stream_early_frees_its_blocks(engine: EngineHandle, how: str) -> None:
    if how == "close":
        stream = await engine.submit(request("a", None))
        await anext(stream)
        stream.close()
    elif how == "cancel":
        reading = asyncio.create_task(texts(engine.generate(request("a", None))))
        await until(lambda: engine.stats().num_kv_blocks_in_use == 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    else:
        deltas = engine.generate(request("a", None))
        async for _ in deltas:
            break
        await deltas.aclose()
    await until(lambda: engine.stats().num_kv_blocks_in_use == 0)
    assert engine.num_in_flight == 0


async def test_a_stream_closed_before_its_first_step_is_never_computed(
    engine: EngineHandle, scripted: ScriptedEngine
) -> None:
    scripted.is_open.clear()
    blocker = await engine.submit(request("blocker", 1))
    await until(lambda: scripted.num_added == 1)
    computed: set[str] = set()
    scripted.before_step = lambda _: computed.update(scripted.request_ids)
    stream = await engine.submit(request("a", None))
    stream.close()
    # What is said to an engine arrives in order: with this request the closing has.
    after = await engine.submit(request("after", 1))
    scripted.is_open.set()
    await asyncio.gather(texts(blocker), texts(after))
    await until(lambda: engine.busy_seconds() == 0.0)
    await until(lambda: engine.stats().num_kv_blocks_in_use == 0)
    assert computed == {"blocker", "after"}


async def test_an_id_can_be_used_again_at_once_and_old_deltas_do_not_reach_the_new_stream(
    engine: EngineHandle,
) -> None:
    for _ in range(50):
        stream = await engine.submit(request("same", None))
        await anext(stream)
        stream.close()
    assert await texts(engine.generate(request("same", 4))) == {0: expected(4)}


async def test_an_id_in_flight_is_refused_and_the_first_request_unharmed(engine: EngineHandle) -> None:
    first = await engine.submit(request("same", 2000))
    with pytest.raises(RequestError) as refused:
        await engine.submit(request("same"))
    assert refused.value.param == "request_id"
    with pytest.raises(RequestError):
        await engine.submit(request("twin"), request("twin"))
    assert await texts(first) == {0: expected(2000)}


async def test_what_prepare_refuses_is_raised_before_the_first_delta(engine: EngineHandle) -> None:
    bad = Request(request_id="a", prompt_token_ids=())
    with pytest.raises(RequestError):
        await engine.submit(bad)
    with pytest.raises(RequestError):
        await engine.submit(request("good"), bad)
    assert engine.num_in_flight == 0
    assert await texts(engine.generate(request("a"))) == {0: expected(5)}


async def test_a_bug_in_prepare_costs_only_its_own_request(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    def fail(_: Request) -> None:
        raise ZeroDivisionError

    scripted.on_prepare = fail
    with pytest.raises((ZeroDivisionError, EngineFaultError)):
        await engine.submit(request("a"))
    scripted.on_prepare = lambda _: None
    assert engine.is_healthy
    assert await texts(engine.generate(request("a"))) == {0: expected(5)}


async def test_one_callers_many_slow_schemas_keep_no_thread_from_another(
    engine: EngineHandle, scripted: ScriptedEngine
) -> None:
    released = threading.Event()
    scripted.on_prepare = lambda request: request.caller == "many" and released.wait(TIMEOUT_S)
    constraint = JsonSchema(schema="{}")

    def ask(name: str, caller: str) -> Awaitable[dict[int, str]]:
        return texts(engine.generate(request(name, constraint=constraint, caller=caller)))

    slow = [asyncio.create_task(ask(f"slow{i}", "many")) for i in range(200)]
    # Half of the threads, which is as many as one caller may have.
    await until(lambda: len(scripted.interests) == NUM_COMPILE_THREADS // 2)
    async with asyncio.timeout(TIMEOUT_S / 2):
        assert await ask("small", "one") == {0: expected(5)}
    assert not any(task.done() for task in slow)
    released.set()
    assert await asyncio.gather(*slow) == [{0: expected(5)}] * 200


async def test_slow_schemas_hold_up_no_request_without_one(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    released = threading.Event()
    scripted.on_prepare = lambda request: request.constraint is not None and released.wait(TIMEOUT_S)
    constraint = JsonSchema(schema="{}")
    slow = [asyncio.create_task(texts(engine.generate(request(f"slow{i}", constraint=constraint)))) for i in range(8)]
    async with asyncio.timeout(TIMEOUT_S / 2):
        assert await texts(engine.generate(request("fast"))) == {0: expected(5)}
    assert not any(task.done() for task in slow)
    released.set()
    await asyncio.gather(*slow)


async def test_cancelling_during_prepare_leaves_nothing_behind(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    released = threading.Event()
    scripted.on_prepare = lambda _: released.wait(TIMEOUT_S)
    submitting = asyncio.create_task(engine.submit(request("a")))
    await until(lambda: bool(scripted.interests))
    assert not scripted.interests[0].has_left
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert engine.num_in_flight == 0
    await until(lambda: scripted.interests[0].has_left)
    released.set()
    assert await texts(engine.generate(request("a"))) == {0: expected(5)}
    assert scripted.num_added == 1


async def test_a_reader_that_stands_still_stalls_nobody_and_loses_nothing(engine: EngineHandle) -> None:
    stream = await engine.submit(request("slow", 3000))
    first = await anext(stream)
    assert await texts(engine.generate(request("fast", 3000))) == {0: expected(3000)}
    num_waiting = sum(map(len, stream._pending.values()))
    assert num_waiting <= MAX_WAITING_DELTAS
    deltas = [first, *[delta async for delta in stream]]
    assert "".join(delta.text for delta in deltas) == expected(3000)
    assert tuple(token for delta in deltas for token in delta.token_ids) == tuple(range(3000))
    assert deltas[-1].finish_reason == "length"


async def test_joined_deltas_keep_logprobs_aligned_with_tokens() -> None:
    stream = DeltaStream([request("a", None)], lambda _, abort: None)
    for token_id in range(3 * MAX_WAITING_DELTAS):
        entry = TokenLogprob(token_id=token_id, token="x", token_bytes=b"x", logprob=-1.0)
        stream.push(TokenDelta(request_id="a", choice_index=0, token_ids=(token_id,), text="x", logprobs=(entry,)))
    delta = await anext(stream)
    assert delta.logprobs is not None
    assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids) == list(range(3 * MAX_WAITING_DELTAS))
    assert delta.text == "x" * 3 * MAX_WAITING_DELTAS


def self_observing_stream(seen: list[bool]) -> DeltaStream:
    stream = DeltaStream([request("a", None)], lambda _, abort: None, lambda _: seen.append(stream.is_finished))
    return stream


@pytest.mark.parametrize("end", ["finished", "closed", "failed"])
async def test_a_stream_that_has_ended_is_freed_at_once_though_its_observer_holds_it(end: str) -> None:
    seen: list[bool] = []
    stream = self_observing_stream(seen)
    left = weakref.ref(stream)
    gc.disable()
    try:
        if end == "finished":
            stream.push(TokenDelta(request_id="a", choice_index=0, token_ids=(1,), text="a"))
            stream.push(TokenDelta(request_id="a", choice_index=0, finish_reason=FinishReason.LENGTH))
            assert seen == [False, True]
        elif end == "closed":
            stream.close()
        else:
            stream.fail(EngineDeadError("it failed"))
        del stream
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("num_before", [1, MAX_WAITING_DELTAS - 1, MAX_WAITING_DELTAS, 3 * MAX_WAITING_DELTAS])
async def test_what_a_choice_said_before_it_was_given_up_arrives_by_itself(num_before: int) -> None:
    stream = DeltaStream([request("a", None)], lambda _, abort: None)
    for token_id in range(num_before):
        stream.push(TokenDelta(request_id="a", choice_index=0, token_ids=(token_id,), text="x"))
    stream.push(TokenDelta(request_id="a", choice_index=0, finish_reason=FinishReason.ERROR))
    said, failure = [delta async for delta in stream]
    assert (said.token_ids, said.text, said.finish_reason) == (tuple(range(num_before)), "x" * num_before, None)
    assert (failure.token_ids, failure.finish_reason) == ((), "error")


async def test_an_observer_that_fails_costs_no_stream_its_deltas(engine: EngineHandle) -> None:
    def fail(_: TokenDelta) -> None:
        raise ZeroDivisionError

    stream = await engine.submit(request("a"), observer=fail)
    other = asyncio.create_task(texts(engine.generate(request("b"))))
    assert await texts(stream) == {0: expected(5)}
    assert await other == {0: expected(5)}


@pytest.mark.parametrize("fault", [RuntimeError("boom"), MemoryError(), SystemExit(3)])
async def test_a_dying_engine_fails_every_request_in_flight_and_every_later_one(
    handle: Handle, scripted: ScriptedEngine, fault: BaseException
) -> None:
    def die(step: int) -> None:
        if step == 3:
            raise fault

    scripted.before_step = die
    engine = handle(scripted)
    await engine.start()
    assert engine.is_healthy
    scripted.is_open.clear()
    streams = [await engine.submit(request(f"r{i}", None)) for i in range(5)]
    scripted.is_open.set()
    async with asyncio.timeout(TIMEOUT_S):
        outcomes = await asyncio.gather(*map(texts, streams), return_exceptions=True)
        await engine.wait_dead()
    assert [type(outcome) for outcome in outcomes] == [EngineDeadError] * 5
    assert not engine.is_healthy
    assert not engine.is_alive
    with pytest.raises(EngineDeadError):
        await engine.submit(request("late"))
    async with asyncio.timeout(TIMEOUT_S):
        await engine.close(grace_s=5.0)


async def test_tokens_made_before_the_engine_died_still_arrive(handle: Handle, scripted: ScriptedEngine) -> None:
    def die(step: int) -> None:
        if step == 3:
            raise RuntimeError("boom")

    scripted.before_step = die
    engine = handle(scripted)
    await engine.start()
    stream = await engine.submit(request("a", None))
    await asyncio.wait_for(engine.wait_dead(), TIMEOUT_S)
    assert (await anext(stream)).text == expected(3)
    with pytest.raises(EngineDeadError):
        await anext(stream)
    await engine.close()


async def test_close_lets_running_requests_finish_within_the_grace(handle: Handle, scripted: ScriptedEngine) -> None:
    engine = handle(scripted)
    await engine.start()
    scripted.is_open.clear()
    stream = await engine.submit(request("a", 20))
    closing = asyncio.create_task(engine.close(grace_s=TIMEOUT_S))
    await asyncio.sleep(0)
    with pytest.raises(EngineClosedError):
        await engine.submit(request("late"))
    assert engine.is_alive
    assert not engine.is_healthy
    scripted.is_open.set()
    assert await texts(stream) == {0: expected(20)}
    await asyncio.wait_for(closing, TIMEOUT_S)


async def test_close_ends_what_outlasts_the_grace_and_frees_its_blocks(
    handle: Handle, scripted: ScriptedEngine
) -> None:
    engine = handle(scripted)
    await engine.start()
    streams = [await engine.submit(request(f"r{i}", None)) for i in range(3)]
    start = time.monotonic()
    closing = asyncio.create_task(engine.close(grace_s=0.1))
    outcomes = await asyncio.wait_for(asyncio.gather(*map(texts, streams), return_exceptions=True), TIMEOUT_S)
    assert [type(outcome) for outcome in outcomes] == [EngineClosedError] * 3
    await asyncio.wait_for(closing, TIMEOUT_S)
    assert 0.1 <= time.monotonic() - start < TIMEOUT_S
    assert scripted.stats().num_kv_blocks_in_use == 0
    assert not engine.is_alive


async def test_a_second_close_cuts_the_grace_of_the_first_short(handle: Handle, scripted: ScriptedEngine) -> None:
    engine = handle(scripted)
    await engine.start()
    stream = await engine.submit(request("a", None))
    patient = asyncio.create_task(engine.close(grace_s=10 * TIMEOUT_S))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(TIMEOUT_S):
        await engine.close()
        await patient
    with pytest.raises(EngineClosedError):
        await texts(stream)


async def test_closing_during_prepare_ends_the_submission_at_once(handle: Handle, scripted: ScriptedEngine) -> None:
    released = threading.Event()
    scripted.on_prepare = lambda _: released.wait(TIMEOUT_S)
    engine = handle(scripted)
    await engine.start()
    submitting = asyncio.create_task(engine.submit(request("a")))
    await until(lambda: engine.num_in_flight == 1)
    async with asyncio.timeout(TIMEOUT_S / 2):
        await engine.close()
        with pytest.raises(EngineClosedError):
            await submitting
    released.set()


async def test_an_engine_that_was_never_started_refuses_and_closes(handle: Handle, scripted: ScriptedEngine) -> None:
    engine = handle(scripted)
    with pytest.raises(EngineClosedError):
        await engine.submit(request("a"))
    await engine.close()
    assert not engine.is_alive


async def test_a_request_the_engine_itself_refuses_fails_alone(engine: EngineHandle, scripted: ScriptedEngine) -> None:
    def refuse(_: Request) -> None:
        raise RequestError("no room", param="prompt")

    accept, scripted.add_request = scripted.add_request, refuse
    with pytest.raises(RequestError):
        await texts(engine.generate(request("a")))
    scripted.add_request = accept
    assert await texts(engine.generate(request("a"))) == {0: expected(5)}
