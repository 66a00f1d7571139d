"""The OpenAI-compatible HTTP server: Litestar on uvicorn, msgspec wire types, one engine behind it."""

from specdec.server.app import create_app
from specdec.server.config import RequestLimits, ServerConfig
from specdec.server.run import ServerInfo, serve

__all__ = ["RequestLimits", "ServerConfig", "ServerInfo", "create_app", "serve"]
