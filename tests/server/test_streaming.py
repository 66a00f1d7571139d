"""Streams as they run: text as it is made, an end within a step of a client's leaving, ten thousand chunks in a row."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import LiveServer, chat_body, read_events, serving, slowed, wait_until

from specdec import Engine, EngineConfig

CHAT = "/v1/chat/completions"
STEP_S = 0.03


@pytest.fixture
def step_times(make_engine: Callable[..., Engine]) -> tuple[Engine, list[float]]:
    """An engine of slow steps, and when each of them began."""
    engine = slowed(make_engine(), STEP_S)
    step, times = engine.step, []

    def timed_step() -> object:
        times.append(time.monotonic())
        return step()

    engine.step = timed_step
    return engine, times


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_tokens_arrive_while_later_ones_are_made(step_times: tuple[Engine, list[float]], path: str) -> None:
    engine, times = step_times
    body = chat_body(
        stream=True, ignore_eos=True, max_tokens=30, prompt="Once", speculative={"enabled": False},
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )  # fmt: skip
    with serving(engine) as server:
        arrivals = {}
        with httpx.stream("POST", server.url + path, json=body, timeout=30) as response:
            for event in read_events(response):
                if event["choices"]:
                    arrivals.setdefault(event["usage"]["completion_tokens"], time.monotonic())
        assert len(arrivals) > 10
        # The n-th token is made by the n-th step; a busy machine may hold some of them up.
        num_prompt = sum(
            num_tokens <= 20 and arrival < times[num_tokens + 3] for num_tokens, arrival in arrivals.items()
        )
        assert num_prompt > 0.7 * sum(num_tokens <= 20 for num_tokens in arrivals)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_ends_its_sequence_within_a_step(
    step_times: tuple[Engine, list[float]], stream: bool
) -> None:
    engine, times = step_times
    with serving(engine) as server:
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                client = stack.enter_context(httpx.Client(base_url=server.url))
                body = chat_body(stream=stream, ignore_eos=True, max_tokens=1000)
                num_before = len(times)
                if stream:
                    response = stack.enter_context(client.stream("POST", CHAT, json=body))
                    next(response.iter_lines())
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        client.post(CHAT, json=body, timeout=4 * STEP_S)
            left = time.monotonic()
            assert len(times) > num_before
            wait_until(lambda: server.async_engine.num_in_flight == 0, "the request to be forgotten")
            time.sleep(3 * STEP_S)
            assert sum(begun > left for begun in times) <= 1, "the step that had begun may be followed by one more"
            assert not engine.has_unfinished_requests()
        wait_until(lambda: server.num_blocks_in_use() == 0, "every block to be freed")


@pytest.mark.slow
def test_ten_thousand_chunks_of_one_choice_arrive_in_constant_memory(tmp_path: Path) -> None:
    from tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path / "long", seed=1, max_position_embeddings=16384)
    num_tokens = 13_000
    memory = psutil.Process(os.getpid())
    with serving(Engine(EngineConfig(model=str(folder), num_kv_blocks=1200))) as server:
        body = chat_body(
            stream=True, ignore_eos=True, max_tokens=num_tokens, seed=3, logprobs=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )  # fmt: skip
        counts, text, sizes = [], [], []
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as response:
            for event in read_events(response):
                counts.append(event["usage"]["completion_tokens"])
                text += [choice["delta"].get("content", "") for choice in event["choices"]]
                if len(counts) % 500 == 0:
                    sizes.append(memory.memory_info().rss)
        assert counts == sorted(counts)
        assert counts[-1] == num_tokens
        assert sum(after > before for before, after in itertools.pairwise(counts)) >= 10_000
        assert len("".join(text)) > num_tokens / 2
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
