"""The OpenAI-compatible HTTP server: Litestar on uvicorn, msgspec wire types, one engine behind it."""

from specdec.server.app import create_app
from specdec.server.config import RequestLimits, ServerConfig, SpecDecodeMetrics
from specdec.server.run import ServerInfo, serve

__all__ = ["RequestLimits", "ServerConfig", "ServerInfo", "SpecDecodeMetrics", "create_app", "serve"]
