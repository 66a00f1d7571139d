"""The engine dies, stalls or is shut down: every client is told, and so is whoever watches /health."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from collections.abc import Callable

import httpx
import msgspec
import pytest
from live_server import TIMEOUT_S, chat_body, dying, read_events, serving, slowed, wait_until
from step_gate import StepGate

from specdec import Engine, FinishReason, TokenDelta
from specdec.grammars import Limits
from specdec.server import RequestLimits, ServerConfig

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.filterwarnings("error")


def stream_events(url: str, **fields: object) -> list[dict]:
    with httpx.stream("POST", url + CHAT, json=chat_body(stream=True, **fields), timeout=TIMEOUT_S) as response:
        assert response.status_code == 200
        return list(read_events(response))


def test_when_the_engine_dies_every_client_gets_an_error_and_health_turns_503(
    make_engine: Callable[..., Engine],
) -> None:
    def all_have_tokens(engine: Engine) -> bool:
        running = engine.scheduler.running
        return len(running) == 8 and all(sequence.num_output_tokens > 10 for sequence in running)

    with serving(dying(slowed(make_engine(), 0.005), all_have_tokens)) as server:
        assert httpx.get(server.url + "/health").status_code == 200
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            streams = [pool.submit(stream_events, server.url, ignore_eos=True) for _ in range(4)]
            wholes = [
                pool.submit(httpx.post, server.url + CHAT, json=chat_body(ignore_eos=True), timeout=TIMEOUT_S)
                for _ in range(4)
            ]
            for stream in streams:
                *chunks, last = stream.result(TIMEOUT_S)
                assert chunks, "tokens made before the fault arrive"
                assert last["error"]["code"] == "engine_dead"
            for whole in wholes:
                response = whole.result(TIMEOUT_S)
                assert response.status_code == 500
                assert response.json()["error"]["code"] == "engine_dead"
                assert "0xdeadbeef" not in response.text, "internals stay in the log"
        for path in ("/health", "/ready"):
            assert httpx.get(server.url + path).status_code == 503
        late = httpx.post(server.url + CHAT, json=chat_body(), timeout=TIMEOUT_S)
        assert (late.status_code, late.json()["error"]["code"]) == (500, "engine_dead")
        assert late.headers["x-should-retry"] == "false"
        assert httpx.get(server.url + "/metrics").status_code == 200


def test_an_engine_stuck_in_a_step_turns_health_to_503_and_back(make_engine: Callable[..., Engine]) -> None:
    config = ServerConfig(served_model_names=("tiny",), stall_timeout_s=0.1)
    gate = StepGate(make_engine())
    with (
        serving(gate.engine, config) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        gate,
    ):
        answer = pool.submit(httpx.post, server.url + CHAT, json=chat_body(max_tokens=1), timeout=TIMEOUT_S)
        wait_until(lambda: httpx.get(server.url + "/health").status_code == 503, "the stall to show")
        assert httpx.get(server.url + "/health").json()["error"]["code"] == "engine_stalled"
        gate.open()
        assert answer.result(TIMEOUT_S).status_code == 200
        wait_until(lambda: httpx.get(server.url + "/health").status_code == 200, "the stall to end")


def test_a_choice_that_the_engine_gives_up_is_an_error_of_its_request_alone(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    step = engine.step

    def partly_failing_step() -> list[TokenDelta]:
        return [
            msgspec.structs.replace(delta, finish_reason=FinishReason.ERROR, error="the grammar lost its way")
            if delta.num_prompt_tokens > 100
            else delta
            for delta in step()
        ]

    engine.step = partly_failing_step
    long = {"messages": [{"role": "user", "content": "word " * 200}]}
    with serving(engine) as server:
        assert stream_events(server.url, **long)[-1]["error"]["code"] == "generation_failed"
        whole = httpx.post(server.url + CHAT, json=chat_body(**long), timeout=30)
        assert whole.status_code == 500
        assert whole.json()["error"]["message"] == "the grammar lost its way"
        assert httpx.post(server.url + CHAT, json=chat_body(max_tokens=3), timeout=30).status_code == 200
        wait_until(lambda: server.async_engine.num_in_flight == 0, "the failed requests to be forgotten")


def test_a_fault_inside_a_step_is_an_internal_error_of_its_request_alone(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(exact=True)
    checker = engine.scheduler._stop_checker
    accept = checker.accept

    def faulty_accept(sequence: object, token_ids: object) -> object:
        if sequence.num_prompt_tokens > 100 and sequence.num_output_tokens > 3:
            raise KeyError("secret path /etc/x")
        return accept(sequence, token_ids)

    checker.accept = faulty_accept
    long = {"messages": [{"role": "user", "content": "word " * 200}], "max_tokens": 20, "ignore_eos": True, "seed": 3}
    short = {"max_tokens": 60, "ignore_eos": True, "seed": 3}
    with serving(engine) as server, concurrent.futures.ThreadPoolExecutor(3) as pool:
        beside = pool.submit(httpx.post, server.url + CHAT, json=chat_body(**short), timeout=30)
        stream = pool.submit(stream_events, server.url, **long)
        headers = {"x-request-id": "my-request"}
        whole = httpx.post(server.url + CHAT, json=chat_body(**long), headers=headers, timeout=30)
        assert whole.status_code == 500
        assert whole.json()["error"] | {"message": ""} == {
            "message": "", "type": "server_error", "param": None, "code": "internal_error"
        }  # fmt: skip
        assert whole.headers["x-should-retry"] == "false"
        *chunks, last = stream.result(30)
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert last == whole.json()
        assert "secret" not in whole.text
        alone = httpx.post(server.url + CHAT, json=chat_body(**short), timeout=30)
        assert beside.result(30).json()["choices"] == alone.json()["choices"]
        assert httpx.get(server.url + "/health").status_code == 200
        counted = 'specdec:request_faults_total{model_name="tiny",stage="commit"} 2.0'
        wait_until(lambda: counted in httpx.get(server.url + "/metrics").text, "the faults to be counted")
        wait_until(lambda: server.num_blocks_in_use() == 0, "the blocks to be free")
    faults = [record for record in caplog.records if record.message == "the engine failed on a request"]
    assert all("secret path" in str(record.exc_info[1]) for record in faults)
    told = [record for record in caplog.records if "whose log says why" in record.message]
    answer_ids = {record.specdec_fields["answer_id"] for record in faults}
    assert {record.specdec_fields["answer_id"] for record in told} == answer_ids
    assert len(answer_ids) == 2


def test_a_fault_in_one_request_is_its_own(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    prepare = engine.prepare

    def faulty_prepare(request: object, interest: object) -> object:
        if len(request.prompt_token_ids) > 100:
            raise KeyError("secret path /etc/x")
        return prepare(request, interest)

    engine.prepare = faulty_prepare
    with serving(engine) as server:
        long = chat_body(messages=[{"role": "user", "content": "word " * 200}], max_tokens=3)
        response = httpx.post(server.url + CHAT, json=long, timeout=30)
        assert response.status_code == 500
        assert "secret" not in response.text
        assert httpx.post(server.url + CHAT, json=chat_body(max_tokens=3), timeout=30).status_code == 200
        assert httpx.get(server.url + "/health").status_code == 200


def test_a_request_whose_compiler_is_killed_may_come_again(make_engine: Callable[..., Engine]) -> None:
    many = {"max_properties": 10**6, "max_refs": 10**6, "max_nodes": 10**6, "max_goals": 10**6}
    limits = Limits(max_schema_bytes=10**7, max_compile_seconds=100.0, **many)
    definitions = {f"d{i}": {"type": "array", "items": {"const": i}, "minItems": i} for i in range(20_000)}
    schema = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions}, "$defs": definitions}
    request_limits = RequestLimits(max_body_bytes=10**7, max_schema_bytes=10**7)
    config = ServerConfig(served_model_names=("tiny",), limits=request_limits)
    with (
        serving(make_engine(grammar_limits=limits, num_compile_workers=1), config) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        compilers = server.async_engine._engine._compiler._pool
        wait_until(lambda: compilers._idle[-1:] not in ([], [None]), "the worker to start")
        (worker,) = compilers._idle
        body = chat_body(structured_outputs={"json": schema})
        answer = pool.submit(httpx.post, server.url + CHAT, json=body, timeout=60)
        wait_until(lambda: compilers.num_running == 1, "the schema to be compiled")
        os.kill(worker.pid, signal.SIGKILL)
        killed = answer.result(30)
        assert (killed.status_code, killed.json()["error"]["code"]) == (503, "engine_busy")
        assert killed.headers["retry-after"]
        again = chat_body(structured_outputs={"json": {"const": "small"}}, max_tokens=50)
        assert httpx.post(server.url + CHAT, json=again, timeout=60).status_code == 200
