"""serve: an engine, an application and uvicorn around it, from start to a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import uvicorn

from specdec import AsyncEngine, ConfigError, EngineConfig, EngineDescription, EngineHandle, EngineProcess
from specdec.allocator import share_one_arena
from specdec.logs import LogFormat, configure_logging
from specdec.server.app import create_app
from specdec.server.config import ServerConfig
from specdec.server.connection_limit import connection_limit
from specdec.server.http_protocol import HttpProtocol

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_ENGINE_DEAD = 1
DEATH_NOTICE_S = 0.5
"""How long a dead engine's server stays up, so that clients read their errors and probes see the 503."""
CUT_OFF_S = 5.0
"""How long clients have to read what is left, once the last request has ended, before they are cut off."""
IDLE_CONNECTION_S = 65
MAX_THREADS = 8
"""For what takes processor time: templates, tokenizing, metrics. The tokenizer keeps megabytes of words for each."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a banner needs to say."""

    url: str
    model_names: tuple[str, ...]
    engine: EngineDescription
    load_seconds: float


def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig | None = None,
    *,
    on_ready: Callable[[ServerInfo], None] | None = None,
    progress: Callable[..., None] | None = None,
    in_process: bool = False,
) -> int:
    """Load the model and serve it until SIGTERM or SIGINT; the exit code, non-zero if the engine died.

    The engine gets a process of its own (docs/design/007), or with `in_process` a thread of this one. `on_ready` is
    called once connections are accepted, `progress` while the model loads. A second signal cuts the grace period
    short. Raises ConfigError if the address cannot be had, before anything is loaded, and what Engine raises.
    """
    _take_interrupts()
    # Before there are threads, whose arenas would fill for many minutes.
    share_one_arena()
    config = server_config or ServerConfig()
    max_connections = connection_limit(config.max_connections)
    configure_logging(logging.getLevelNamesMapping()[config.log_level.upper()], config.log_format)
    with _bind(config) as listener:
        start = time.monotonic()
        with _loaded_engine(engine_config, progress, config.log_format, in_process=in_process) as engine:
            info = ServerInfo(
                url=_url(config.host, listener.getsockname()[1]),
                model_names=config.served_model_names or (engine.model_name,),
                engine=engine.describe(),
                load_seconds=time.monotonic() - start,
            )
            http = HttpProtocol.limited_to(max_connections)
            server = _Server(engine, config, http, lambda: on_ready(info) if on_ready else None)
            # What is loaded stays. Looking it through for cycles again and again would hold up a stream.
            gc.collect()
            gc.freeze()
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                return runner.run(server.run_until_stopped(listener))


def _take_interrupts() -> None:
    """While the model loads too: a shell's background job begins with SIGINT ignored, and serving would end that."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _loaded_engine(
    config: EngineConfig, progress: Callable[..., None] | None, log_format: LogFormat, *, in_process: bool
) -> Iterator[EngineHandle]:
    if in_process:
        yield AsyncEngine.from_config(config, progress=progress)
        return
    engine = EngineProcess.launch(config, progress=progress, log_format=log_format)
    try:
        yield engine
    finally:
        engine.kill()


class _Server(uvicorn.Server):
    """uvicorn with signals that drain the engine, and an exit code."""

    def __init__(
        self, engine: EngineHandle, config: ServerConfig, http: type[HttpProtocol], on_ready: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(engine, config),
                loop="auto",
                http=http,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_CONNECTION_S,
                timeout_graceful_shutdown=int(config.shutdown_grace_s + CUT_OFF_S),
            )
        )
        self._engine = engine
        self._grace_s = config.shutdown_grace_s
        self._on_ready = on_ready
        self._closing: set[asyncio.Task[None]] = set()
        self._has_died = False

    async def run_until_stopped(self, listener: socket.socket) -> int:
        """Serve; the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(num_threads(), thread_name_prefix="specdec-server"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        watch = asyncio.create_task(self._stop_on_death())
        try:
            await self.serve([listener])
        finally:
            watch.cancel()
            await asyncio.gather(watch, *self._closing, return_exceptions=True)
        return EXIT_ENGINE_DEAD if self._has_died else EXIT_OK

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own handlers would raise the signal again at the end, and so end a clean stop uncleanly."""
        yield

    def _stop(self) -> None:
        """On a signal: accept nothing more and drain; at the second one, drain no longer."""
        grace_s = 0.0 if self.should_exit else self._grace_s
        self.should_exit = True
        closing = asyncio.ensure_future(self._engine.close(grace_s))
        self._closing.add(closing)

    async def _stop_on_death(self) -> None:
        await self._engine.wait_dead()
        self._has_died = True
        logger.error("the engine has died; the server ends")
        await asyncio.sleep(DEATH_NOTICE_S)
        self.should_exit = True


def num_threads() -> int:
    """As many as there are processors; two at least, so that one prompt does not hold up all others."""
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(2, num_processors), MAX_THREADS)


def _bind(config: ServerConfig) -> socket.socket:
    """Bound, not yet listening: a client is turned away, not kept waiting, until the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"the host {config.host!r} has no address: {error}", flag="--host") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another --port",
            flag="--port",
        ) from error
    return listener


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104, shown only
    if ":" in reachable and not reachable.startswith("["):
        reachable = f"[{reachable}]"
    return f"http://{reachable}:{port}"
