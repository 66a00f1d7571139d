"""What is more than the server holds is turned away, and no caller uses up the room of another."""

from __future__ import annotations

import concurrent.futures
import json
import os
import threading
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_server import LiveServer, chat_body, read_events, serving, slowed, wait_until
from step_gate import StepGate

from specdec import ConfigError, Engine, FinishReason, JsonSchema, Request, SamplingParams, TokenDelta
from specdec.async_engine import NUM_COMPILE_THREADS
from specdec.server import ServerConfig
from specdec.server.admission import Admission, Ticket
from specdec.server.errors import ApiError
from specdec.server.metrics import ServerMetrics
from specdec.server.rate_limit import RateLimit
from specdec.stats import EngineStats

CHAT = "/v1/chat/completions"


def admission(**limits: int | None) -> Admission:
    fields = {"max_num_choices": None, "max_num_prompt_tokens": None, **limits}
    return Admission(ServerMetrics("tiny", EngineStats, os.getpid()), **fields)


def request(request_id: str, *, n: int = 1, num_prompt_tokens: int = 1) -> Request:
    return Request(
        request_id=request_id, prompt_token_ids=(0,) * num_prompt_tokens, sampling_params=SamplingParams(n=n)
    )


def admitted(book: Admission, caller: str, **fields: int) -> Ticket | None:
    try:
        return book.admit(caller, [request("r", **fields)])
    except ApiError:
        return None


def test_every_choice_counts_until_it_ends() -> None:
    book = admission(max_num_choices=4)
    ticket = admitted(book, "", n=3)
    assert ticket is not None
    assert admitted(book, "", n=2) is None
    assert admitted(book, "") is not None
    assert admitted(book, "") is None
    ticket.observe(TokenDelta(request_id="r", choice_index=1, finish_reason=FinishReason.STOP))
    assert admitted(book, "") is not None
    assert admitted(book, "") is None
    ticket.close()
    assert admitted(book, "", n=2) is not None


def test_prompt_tokens_count_until_the_first_token_of_the_answer() -> None:
    book = admission(max_num_prompt_tokens=100)
    ticket = admitted(book, "", num_prompt_tokens=60)
    assert ticket is not None
    assert admitted(book, "", num_prompt_tokens=41) is None
    ticket.observe(TokenDelta(request_id="r", choice_index=0, token_ids=(1,)))
    assert admitted(book, "", num_prompt_tokens=100) is not None


def test_what_is_larger_than_a_limit_gets_in_when_nothing_else_is_there() -> None:
    book = admission(max_num_choices=2, max_num_prompt_tokens=10)
    ticket = admitted(book, "", n=5, num_prompt_tokens=1000)
    assert ticket is not None
    assert admitted(book, "") is None
    ticket.close()
    assert admitted(book, "") is not None


def test_a_caller_that_has_filled_the_queue_leaves_the_others_their_share() -> None:
    book = admission(max_num_choices=12)
    flood = [admitted(book, "loud") for _ in range(20)]
    assert sum(ticket is not None for ticket in flood) == 12
    assert sum(admitted(book, "quiet") is not None for _ in range(20)) == 6
    assert sum(admitted(book, "third") is not None for _ in range(20)) == 4
    assert admitted(book, "loud") is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 50), st.booleans())))
def test_whatever_comes_and_goes_nothing_is_left_counted(
    moves: list[tuple[str, int, int, bool]],
) -> None:
    book = admission(max_num_choices=8, max_num_prompt_tokens=60)
    tickets = []
    for caller, n, num_prompt_tokens, closes in moves:
        ticket = admitted(book, caller, n=n, num_prompt_tokens=num_prompt_tokens)
        if ticket is not None:
            tickets.append(ticket)
            if n > 1:
                ticket.observe(TokenDelta(request_id="r", choice_index=0, finish_reason=FinishReason.STOP))
        if closes and tickets:
            tickets.pop(0).close()
    for ticket in tickets:
        ticket.close()
        ticket.close()
    assert (book._all.num_choices, book._all.num_prompt_tokens, book._by_caller) == (0, 0, {})


@settings(deadline=None)
@given(st.integers(1, 600), st.lists(st.floats(0, 30), min_size=1, max_size=200))
@example(1, [4.751537209745557, 0.0])
def test_no_minute_has_more_than_twice_the_rate_and_whoever_waits_as_told_is_served(
    rate: int, pauses: list[float]
) -> None:
    now = 0.0
    limit = RateLimit(rate, clock=lambda: now)
    served = []
    for pause in pauses:
        now += pause
        wait_s = limit.take("a")
        if wait_s is None:
            served.append(now)
        else:
            assert wait_s >= 1
            now += wait_s
            assert limit.take("a") is None
            served.append(now)
    for start in served:
        assert sum(start <= moment < start + 60 for moment in served) <= 2 * rate + 1


def test_callers_have_buckets_of_their_own_and_idle_ones_are_forgotten() -> None:
    now = 0.0
    limit = RateLimit(2, clock=lambda: now)
    assert [limit.take("a") for _ in range(3)] == [None, None, 30]
    assert limit.take("b") is None
    for number in range(20_000):
        now += 1.0
        limit.take(f"once-{number}")
        assert len(limit._buckets) <= 62, "those of the last minute"
    assert limit.take("a") is None


@pytest.fixture
def gate(make_engine: Callable[..., Engine]) -> StepGate:
    return StepGate(make_engine(max_num_seqs=1))


@pytest.fixture
def full(gate: StepGate) -> Iterator[LiveServer]:
    config = ServerConfig(served_model_names=("tiny",), max_num_queued_reqs=3, api_keys=("loud", "quiet"))
    with serving(gate.engine, config) as server, gate:
        yield server


def test_a_full_server_answers_503_counts_it_and_takes_requests_again(full: LiveServer, gate: StepGate) -> None:
    headers = {"authorization": "Bearer loud"}
    with (
        concurrent.futures.ThreadPoolExecutor(2) as pool,
        httpx.Client(base_url=full.url, headers=headers, timeout=60) as client,
    ):
        long = pool.submit(client.post, CHAT, json=chat_body(n=3, max_tokens=30, ignore_eos=True))
        wait_until(lambda: full.async_engine.num_in_flight == 1, "the first request to arrive")
        refused = client.post(CHAT, json=chat_body(stream=True))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        rejections = 'specdec:admission_rejections_total{model_name="tiny",reason="queued_reqs"} 1.0'
        assert rejections in client.get("/metrics").text
        # A library's client waits as it is told and tries again.
        retrying = openai.OpenAI(base_url=full.url + "/v1", api_key="loud", max_retries=50)
        again = pool.submit(
            retrying.chat.completions.create, **chat_body(max_tokens=2), extra_body={"ignore_eos": True}
        )
        gate.open()
        assert long.result(60).status_code == 200
        assert again.result(60).choices[0].finish_reason == "length"
        wait_until(lambda: full.async_engine.num_in_flight == 0, "everything to end")


def test_a_key_that_floods_the_queue_does_not_keep_another_waiting(full: LiveServer, gate: StepGate) -> None:
    step, ended = gate.engine.step, []

    def watched_step() -> list[TokenDelta]:
        deltas = step()
        ended.extend(delta.request_id for delta in deltas if delta.finish_reason is not None)
        return deltas

    gate.engine.step = watched_step

    def ask(key: str, **fields: object) -> None:
        body = chat_body(ignore_eos=True, **fields)
        response = httpx.post(full.url + CHAT, json=body, headers={"x-api-key": key}, timeout=60)
        assert response.status_code == 200

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        loud = pool.submit(ask, "loud", n=3, max_tokens=15)
        wait_until(lambda: gate.is_stood_before, "the flood to be at the engine")
        quiet = pool.submit(ask, "quiet", max_tokens=10)
        wait_until(lambda: full.async_engine.num_in_flight == 2, "the other to arrive")
        gate.open()
        quiet.result(60)
        loud.result(60)
    flood = ended[0]
    assert [request_id == flood for request_id in ended] == [True, False, True, True]


def test_a_request_beyond_the_rate_is_a_429_that_says_when_to_come_back(make_engine: Callable[..., Engine]) -> None:
    config = ServerConfig(served_model_names=("tiny",), rate_limit=2, api_keys=("one", "two"))
    with serving(make_engine(), config) as server:

        def post(key: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(server.url + CHAT, json=chat_body(max_tokens=1), headers=headers, timeout=30)

        assert [post("one").status_code for _ in range(2)] == [200, 200]
        refused = post("one")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert post("two").status_code == 200
        assert post("wrong").status_code == 401
        metrics = httpx.get(server.url + "/metrics", headers={"authorization": "Bearer one"}).text
        assert 'specdec:admission_rejections_total{model_name="tiny",reason="rate_limit"} 1.0' in metrics


def test_what_takes_longer_than_the_timeout_ends_with_an_error_and_frees_its_blocks(
    make_engine: Callable[..., Engine],
) -> None:
    config = ServerConfig(served_model_names=("tiny",), request_timeout_s=2.0)
    with serving(slowed(make_engine(), 0.01), config) as server:
        whole = httpx.post(server.url + CHAT, json=chat_body(ignore_eos=True), timeout=30)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "request_timeout")
        assert whole.headers["x-should-retry"] == "false"
        body = chat_body(ignore_eos=True, stream=True)
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=30) as response:
            *chunks, last = read_events(response)
        assert chunks
        assert last["error"]["code"] == "request_timeout"
        wait_until(lambda: server.num_blocks_in_use() == 0, "the blocks to be freed")
        assert server.async_engine.num_in_flight == 0
        assert httpx.post(server.url + CHAT, json=chat_body(max_tokens=1), timeout=30).status_code == 200


def test_one_keys_many_schemas_do_not_hold_up_anothers(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServerConfig(served_model_names=("tiny",), api_keys=("many", "one"))
    is_open, served = threading.Event(), []

    def ask(url: str, key: str, const: object) -> httpx.Response:
        body = chat_body(structured_outputs={"json": {"const": const}}, max_tokens=200)
        return httpx.post(url + CHAT, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)

    with (
        serving(make_engine(num_compile_workers=1), config) as server,
        concurrent.futures.ThreadPoolExecutor(81) as clients,
    ):
        pool = server.async_engine._engine._compiler._pool
        reply = pool._reply

        def held(worker: object, constraint: JsonSchema, job: object) -> object:
            served.append(json.loads(constraint.schema)["const"])
            assert is_open.wait(60)
            return reply(worker, constraint, job)

        monkeypatch.setattr(pool, "_reply", held)

        def num_waiting() -> int:
            with pool._free:
                return len(pool._waiting)

        of_many = [clients.submit(ask, server.url, "many", i) for i in range(80)]
        wait_until(lambda: server.async_engine.num_in_flight == 80 and len(served) == 1, "all of them to wait")
        wait_until(lambda: num_waiting() == NUM_COMPILE_THREADS // 2 - 1, "the threads that they may hold to wait")
        of_one = clients.submit(ask, server.url, "one", "small")
        wait_until(lambda: num_waiting() == NUM_COMPILE_THREADS // 2, "the other to wait for the compiler")
        is_open.set()
        assert of_one.result(60).status_code == 200
        assert served.index("small") <= 2, "after the one in progress and the one whose turn it was"
        assert [answer.result(60).status_code for answer in of_many] == [200] * 80


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("max_num_queued_reqs", "--max-num-queued-reqs"),
        ("max_num_queued_tokens", "--max-num-queued-tokens"),
        ("rate_limit", "--rate-limit"),
        ("request_timeout_s", "--request-timeout"),
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_that_admits_nothing_is_refused_at_start(field: str, flag: str, value: int) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerConfig(**{field: value})
    assert refused.value.flag == flag
