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
    async def frames() -> AsyncIterator[bytes]:
        for delta in ({"role": "assistant", "content": ""}, {name: "hm"}, {"content": "yes"}):
            yield b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
            if name in delta:
                await asyncio.sleep(PAUSE_S)

    async def read() -> StreamedAnswer:
        return await _read(httpx.Response(200, content=frames()), time.perf_counter())

    answer = asyncio.run(read())
    assert answer.text == "yes"
    assert answer.first_token_seconds < PAUSE_S <= answer.decoding_seconds * 1.01
