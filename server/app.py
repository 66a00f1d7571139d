"""create_app: the routes, their error handler and the gate around them, as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from litestar import Litestar
from litestar.exceptions import HTTPException

from specdec import EngineHandle
from specdec.server.chat import chat_completions
from specdec.server.completions import completions
from specdec.server.config import ServerConfig
from specdec.server.errors import handle_exception
from specdec.server.gate import Gate
from specdec.server.openapi import openapi_json
from specdec.server.reference import reference
from specdec.server.responses import responses
from specdec.server.service import Service
from specdec.server.status import health, info, metrics, model, models, ready, version
from specdec.server.tokenization import detokenize, tokenize

if TYPE_CHECKING:
    from litestar.types import Receive, Scope, Send


class Application(Litestar):
    """Litestar behind the gate."""

    gate: Gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # Any: Litestar's own signature is a union of HTTP and lifespan types that no caller can tell apart.
        await self.gate(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is behind the gate."""
        await super().__call__(scope, receive, send)


def create_app(engine: EngineHandle, config: ServerConfig | None = None) -> Application:
    """The ASGI application; it starts the engine with its own lifespan, and closes it at the end of that."""
    config = config or ServerConfig()
    service = Service.of(engine, config)

    @asynccontextmanager
    async def running_engine(_: Litestar) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.close()

    app = Application(
        route_handlers=[
            chat_completions, completions, detokenize, health, info, metrics, model, models, openapi_json, ready,
            reference, responses, tokenize, version,
        ],
        exception_handlers={HTTPException: handle_exception, Exception: handle_exception},
        lifespan=[running_engine],
        # Litestar's own document knows nothing of bodies that handlers decode, and its pages fetch scripts.
        openapi_config=None,
        request_max_body_size=config.limits.max_body_bytes,
        logging_config=None,
    )  # fmt: skip
    service.put(app.state)
    app.gate = Gate(app.route, config, service.metrics)
    return app
