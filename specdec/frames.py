"""Frames: messages with their length before them, over a stream socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

_LENGTH = struct.Struct(">I")


class FrameProtocol(asyncio.Protocol):
    """One end of a connection, on an event loop."""

    def __init__(
        self,
        on_frame: Callable[[memoryview], None],
        on_lost: Callable[[], None],
        on_writable: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_writable` is called when the other side reads again, after `is_paused` was True."""
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()

    def send(self, payload: bytes) -> None:
        """Write a frame; nothing after the connection was lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_LENGTH.pack(len(payload)) + payload)

    @property
    def is_paused(self) -> bool:
        """Whether more waits to be read by the other side than should."""
        return not self._writable.is_set()

    async def writable(self) -> None:
        """Return once it is not paused."""
        await self._writable.wait()

    async def flushed(self) -> None:
        """Return once everything that was sent has left this process."""
        transport = self._transport
        if transport is not None:
            transport.set_write_buffer_limits(0)
            await self._writable.wait()

    async def close(self) -> None:
        """End the connection, whatever was not sent yet; return once it has ended."""
        if self._transport is not None:
            self._transport.abort()
            await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        with memoryview(received) as view:
            while len(received) - start >= _LENGTH.size:
                end = start + _LENGTH.size + _LENGTH.unpack_from(received, start)[0]
                if end > len(received):
                    break
                with view[start + _LENGTH.size : end] as frame:
                    self._on_frame(frame)
                start = end
        del received[:start]

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, however it was lost
        self._transport = None
        self._lost.set()
        self._writable.set()
        self._on_lost()


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """Write a frame, waiting for it to be taken. Raises OSError."""
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive_frame(connection: socket.socket) -> bytes:
    """Read one frame and nothing beyond it. Raises EOFError where the other side is gone, and OSError."""
    return _receive(connection, _LENGTH.unpack(_receive(connection, _LENGTH.size))[0])


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        piece = connection.recv(num_bytes - len(received))
        if not piece:
            raise EOFError("the other side has closed the connection")
        received += piece
    return bytes(received)
