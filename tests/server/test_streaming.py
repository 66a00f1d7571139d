"""Streams as they run: text as it is made, an end within a step of a client's leaving, ten thousand chunks in a row."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import (
    CHAT,
    TIMEOUT_S,
    LiveServer,
    chat_body,
    raw_request,
    read_events,
    read_past,
    serving,
    wait_until,
)
from step_gate import StepGate

from specdec import Engine, EngineConfig


@pytest.fixture
def gate(make_engine: Callable[..., Engine]) -> StepGate:
    return StepGate(make_engine())


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_tokens_arrive_while_later_ones_are_made(gate: StepGate, path: str) -> None:
    """Each step is taken when the token of the one before has arrived."""
    num_tokens = 30
    # Every token is a letter: text of several bytes comes with the last of them.
    (letter,) = gate.engine.tokenizer.encode("x", add_special_tokens=False)
    asked = chat_body() if path == CHAT else {"model": "tiny", "prompt": "Once"}
    body = asked | {
        "stream": True, "ignore_eos": True, "max_tokens": num_tokens, "speculative": {"enabled": False},
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "logit_bias": {str(letter): 100},
    }  # fmt: skip
    with serving(gate.engine) as server, gate:
        num_arrived = 0
        gate.allow(1)
        with httpx.stream("POST", server.url + path, json=body, timeout=TIMEOUT_S) as response:
            for event in read_events(response):
                if event["usage"]["completion_tokens"] > num_arrived:
                    num_arrived += 1
                    assert event["usage"]["completion_tokens"] == num_arrived
                    gate.allow(num_arrived + 1)
        assert num_arrived == num_tokens


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_ends_its_sequence_within_a_step(gate: StepGate, stream: bool) -> None:
    engine = gate.engine
    with serving(engine) as server, gate:
        for _ in range(3):
            num_before = gate.num_taken
            connection = raw_request(server.port, chat_body(stream=stream, ignore_eos=True, max_tokens=1000))
            gate.allow(num_before + 4)
            wait_until(lambda num=num_before: gate.num_taken == num + 4 and gate.is_stood_before, "a fifth step")
            if stream:
                read_past(connection, b"data: ")
            connection.close()
            wait_until(lambda: server.async_engine.num_in_flight == 0, "the request to be forgotten")
            # The step that had begun, and one that may have been asked for before the abort was told.
            gate.allow(num_before + 6)
            wait_until(lambda: not engine.has_unfinished_requests(), "the engine to have nothing left")
            wait_until(lambda: server.async_engine.busy_seconds() == 0.0, "the engine to be idle")
        wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")


@pytest.mark.slow
def test_ten_thousand_chunks_of_one_choice_arrive_in_constant_memory(tmp_path: Path) -> None:
    from tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path / "long", seed=1, max_position_embeddings=16384)
    num_tokens = 10_001
    memory = psutil.Process(os.getpid())
    gate = StepGate(Engine(EngineConfig(model=str(folder), num_kv_blocks=1200)))
    (letter,) = gate.engine.tokenizer.encode("x", add_special_tokens=False)
    with serving(gate.engine) as server, gate:
        body = chat_body(
            stream=True, ignore_eos=True, max_tokens=num_tokens, logprobs=True, logit_bias={str(letter): 100},
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )  # fmt: skip
        counts, text, sizes = [], [], []
        gate.allow(1)
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=TIMEOUT_S) as response:
            for event in read_events(response):
                counts.append(event["usage"]["completion_tokens"])
                # One at a time: what arrives before it is read is joined.
                gate.allow(counts[-1] + 1)
                text += [choice["delta"].get("content", "") for choice in event["choices"]]
                if len(counts) % 500 == 0:
                    sizes.append(memory.memory_info().rss)
        assert counts == sorted(counts)
        assert counts[-1] == num_tokens
        assert sum(after > before for before, after in itertools.pairwise(counts)) >= 10_000
        assert "".join(text) == "x" * num_tokens
        assert sizes[-1] - sizes[2] < 64e6
        wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")


def test_the_wall_clock_may_jump_and_nothing_but_created_follows(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards by years between calls, and back to the beginning of time."""
    clock = itertools.cycle([4e9, 0.0, 1.7e9])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    before = histogram_sums(live.url)
    start = time.monotonic()
    for _ in range(3):
        whole = httpx.post(live.url + CHAT, json=chat_body(max_tokens=4), timeout=20)
        assert whole.json()["created"] in {4_000_000_000, 0, 1_700_000_000}
        assert int(whole.headers["openai-processing-ms"]) < 20_000
        with httpx.stream("POST", live.url + CHAT, json=chat_body(max_tokens=4, stream=True), timeout=20) as response:
            events = list(read_events(response))
        assert len({event["created"] for event in events}) == 1
        assert httpx.get(live.url + "/health").status_code == 200
    elapsed = time.monotonic() - start
    for name, seconds in histogram_sums(live.url).items():
        assert 0 <= seconds - before[name] <= elapsed, name


def histogram_sums(url: str) -> dict[str, float]:
    """Seconds that each histogram of latencies has seen in all."""
    lines = [line for line in httpx.get(url + "/metrics").text.splitlines() if "_seconds_sum{" in line]
    sums = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if "http" not in line}
    assert len(sums) >= 3
    return sums
