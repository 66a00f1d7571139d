"""The client's connection: what is done for a client ends when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from specdec.server.errors import ApiError, ErrorObject

CLIENT_CLOSED_REQUEST = 499

T = TypeVar("T")


async def while_connected(work: Coroutine[Any, Any, T], receive: Any) -> T:
    """What the work returns; it is cancelled, and ApiError raised, once the client has left.

    (Any: Litestar's and ASGI's Receive differ.)
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise ApiError(
            CLIENT_CLOSED_REQUEST,
            ErrorObject(message="the client closed the connection", type="invalid_request_error"),
        )
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_for_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
