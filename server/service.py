"""What every handler works with: the engine, the configuration, the metrics, the served names."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

from litestar import Request as HttpRequest

from specdec import EngineHandle, __version__
from specdec.server.admission import Admission
from specdec.server.config import ServerConfig
from specdec.server.errors import ApiError, ErrorObject
from specdec.server.metrics import ServerMetrics

_STATE_NAME = "service"


@dataclass(slots=True)
class Service:
    """One server's parts; built once by create_app."""

    engine: EngineHandle
    config: ServerConfig
    model_names: tuple[str, ...]
    metrics: ServerMetrics
    admission: Admission
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: EngineHandle, config: ServerConfig) -> Service:
        """The service of this engine, under the configured names or its own."""
        names = config.served_model_names or (engine.model_name,)
        metrics = ServerMetrics(names[0], engine.stats, engine.pid, has_vllm_names=config.metrics_compat == "vllm")
        digest = hashlib.sha256(f"{__version__}\0{engine.config!r}".encode()).hexdigest()
        return cls(
            engine=engine,
            config=config,
            model_names=names,
            metrics=metrics,
            admission=Admission(
                metrics,
                max_num_choices=config.max_num_queued_reqs,
                max_num_prompt_tokens=config.max_num_queued_tokens,
            ),
            fingerprint=f"fp_{digest[:12]}",
        )

    def check_model(self, name: str) -> str:
        """The name itself, if it is served. Raises a 404 with OpenAI's code otherwise."""
        if name not in self.model_names:
            raise ApiError(
                404,
                ErrorObject(
                    message=f"the model {name[:200]!r} does not exist here; served: {', '.join(self.model_names)}",
                    type="not_found_error",
                    param="model",
                    code="model_not_found",
                ),
            )
        return name

    def put(self, state: Any) -> None:
        """Make this the service of an application (Any: Litestar's State is untyped)."""
        state[_STATE_NAME] = self


def service_of(http_request: HttpRequest[Any, Any, Any]) -> Service:
    """The service of the application that a request came to."""
    service = http_request.app.state[_STATE_NAME]
    assert isinstance(service, Service)
    return service
