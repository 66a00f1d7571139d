"""What is read of a stream of chat completion chunks, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from specdec.evals.chat_stream import StreamedAnswer, _read

PAUSE_S = 0.05


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_the_first_token_of_a_model_that_thinks_is_a_thought(name: str) -> None:
    around_thought: list[float] = []

    def frame(delta: dict[str, str]) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"

    async def frames() -> AsyncIterator[bytes]:
        yield frame({"role": "assistant", "content": ""})
        around_thought.append(time.perf_counter())
        yield frame({name: "hm"})
        around_thought.append(time.perf_counter())
        await asyncio.sleep(PAUSE_S)
        yield frame({"content": "yes"})

    async def read(begin: float) -> StreamedAnswer:
        return await _read(httpx.Response(200, content=frames()), begin)

    begin = time.perf_counter()
    answer = asyncio.run(read(begin))
    assert answer.text == "yes"
    sent, received = around_thought
    assert sent <= begin + answer.first_token_seconds <= received
    assert answer.decoding_seconds * 1.01 >= PAUSE_S
